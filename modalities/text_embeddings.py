"""Where embedding tables come from: a file of word vectors, a Hugging Face model, a mapping, or the corpus itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datastill.errors import InputError, load_extra, require
from datastill.modalities.text_corpus import corpus_embeddings
from datastill.modalities.text_table import Embeddings, word_embeddings
from datastill.rng import isolated


def load_embeddings(
    source: Embeddings | Mapping[str, Any] | str | Path | None,
    texts: Sequence[str],
    *,
    keep_unknown: bool = False,
    download: bool = False,
    seed: int = 0,
) -> Embeddings:
    """The table that `source` means.

    Args:
        source: a table; a mapping of words to vectors; a file of word vectors; the name or folder of a Hugging Face
            model; None builds one from `texts`.
        texts: the corpus.
        keep_unknown: whether words outside the table stay as an unknown vector instead of being dropped.
        download: whether a model may be fetched from the network.
        seed: of a table built from the corpus.
    """
    if isinstance(source, Embeddings):
        return source
    if source is None:
        return corpus_embeddings(texts, keep_unknown=keep_unknown, seed=seed)
    if isinstance(source, Mapping):
        rows = _rows(source.items(), "embeddings")
        require(bool(rows), "embeddings is an empty mapping; give a vector for at least one word.")
        return word_embeddings(list(source), torch.from_numpy(np.stack(rows)), name="given", keep_unknown=keep_unknown)
    if not isinstance(source, str | Path):
        raise InputError(
            "embeddings must be None, a file, a model's name, a mapping of words to vectors or an Embeddings table, "
            f"got {type(source).__name__}."
        )
    path = Path(source)
    if path.is_file() or path.suffix in (".json", ".txt", ".vec"):
        return load_word_vectors(path, keep_unknown=keep_unknown)
    return pretrained_embeddings(source, download=download, keep_unknown=keep_unknown)


def load_word_vectors(path: str | Path, *, keep_unknown: bool = False) -> Embeddings:
    """A file of word vectors: JSON `{word: [numbers]}`, or lines "word v1 v2 ...", with word2vec's header or without.

    Args:
        path: a file; `.json` is read as JSON, anything else as text in UTF-8.
        keep_unknown: as in `word_embeddings`.

    Raises:
        InputError: the file is absent, malformed, or its rows differ in length.
    """
    path = Path(path)
    require(path.is_file(), f"embeddings must be a file of word vectors or a model; there is no file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"The embeddings file {str(path)!r} is not text in UTF-8: {error}.") from error
    read = _read_json if path.suffix == ".json" else _read_lines
    words, rows = read(text, str(path))
    return word_embeddings(words, torch.from_numpy(np.stack(rows)), name=path.name, keep_unknown=keep_unknown)


def _read_json(text: str, name: str) -> tuple[list[str], list[np.ndarray]]:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The embeddings file {name!r} is not valid JSON: {error}.") from error
    if not isinstance(table, dict) or not table:
        raise InputError(
            f"The embeddings file {name!r} must hold an object {{word: [numbers]}} with at least one word."
        )
    return list(table), _rows(table.items(), name)


def _read_lines(text: str, name: str) -> tuple[list[str], list[np.ndarray]]:
    lines = [line.rstrip() for line in text.split("\n")]
    lines = [line for line in lines if line]
    header = lines[0].split() if lines else []
    if len(header) == 2 and all(part.isdigit() for part in header):
        lines = lines[1:]
    require(bool(lines), f"The embeddings file {name!r} holds no word vectors.")
    width = len(lines[0].split(" ")) - 1
    require(width > 0, f"Line 1 of the embeddings file {name!r} holds no numbers; expected 'word v1 v2 ...'.")
    words, values = [], []
    for line in lines:
        # From the right: a few published words contain blanks. If a number precedes the vector, the row is ragged.
        parts = line.split(" ")
        split = max(len(parts) - width, 1)
        if any(_is_number(part) for part in parts[1:split]):
            split = 1
        words.append(" ".join(parts[:split]))
        values.append(parts[split:])
    return words, _rows(zip(words, values), name)


def _rows(items: Iterable[tuple[str, Any]], name: str) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for word, value in items:
        try:
            row = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"The vector of {word!r} in the embeddings {name!r} is not a row of numbers.") from error
        if row.ndim != 1 or not len(row) or (rows and len(row) != len(rows[0])):
            expected = f"{len(rows[0])} numbers, as the words before it" if rows else "a row of numbers"
            raise InputError(
                f"The vector of {word!r} in the embeddings {name!r} has shape {row.shape}, not {expected}."
            )
        rows.append(row)
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def pretrained_embeddings(name: str | Path, *, download: bool = False, keep_unknown: bool = False) -> Embeddings:
    """The input embeddings and the tokenizer of a Hugging Face model.

    Decoding gives only tokens that read back as themselves: no special tokens, no parts that cannot stand alone.

    Args:
        name: a model's name, or a folder with its weights in safetensors, its configuration and its tokenizer.
        download: whether a model that is not on this machine may be fetched.
        keep_unknown: whether the model's unknown token stays in a sentence; otherwise it is dropped.

    Raises:
        InputError: the model cannot be loaded.
        MissingExtraError: transformers is not installed.
    """
    transformers = load_extra("transformers", "text")
    options = {"local_files_only": not download}
    try:
        with isolated(0):
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(name), **options)
            model = transformers.AutoModel.from_pretrained(str(name), use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        hint = "" if download else " Only this machine was searched; download=True fetches it."
        raise InputError(
            f"embeddings={str(name)!r} is neither a file nor a model with weights in safetensors.{hint}"
        ) from error
    vectors = model.get_input_embeddings().weight.detach().float().cpu().clone()
    unknown = tokenizer.unk_token_id
    if unknown is None:
        unknown = len(vectors)
        vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
    rows = range(min(len(tokenizer), len(vectors)))
    alone = [tokenizer.decode([row], clean_up_tokenization_spaces=False) for row in rows]
    again = tokenizer(alone, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    decodable = torch.zeros(len(vectors), dtype=torch.bool)
    for row, text, back in zip(rows, alone, again):
        decodable[row] = row not in special and bool(text.strip()) and list(back) == [row]
    return Embeddings(vectors, _PretrainedTokenizer(tokenizer), decodable, unknown, str(name), keep_unknown)


class _PretrainedTokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        # `tokenize` has no length limit to warn about; the modality cuts sentences itself.
        return list(self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text)))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).strip()
