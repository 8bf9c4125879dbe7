"""Embedding tables: files, models, co-occurrences; and decoding against brute force."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from datastill.errors import InputError
from datastill.modalities.text_corpus import corpus_embeddings
from datastill.modalities.text_decode import nearest_rows
from datastill.modalities.text_embeddings import load_embeddings, load_word_vectors, pretrained_embeddings
from datastill.modalities.text_table import UNKNOWN, WordTokenizer, split_words, word_embeddings

WORDS = {"good": [1.0, 0.0], "bad": [0.0, 1.0], "n't": [0.5, 0.5], "!": [2.0, 2.0]}

# --- words ------------------------------------------------------------------------------------------------------------


def test_words_are_split_with_clitics_apart() -> None:
    assert split_words("Don't panic: it's re-made!") == ["do", "n't", "panic", ":", "it", "'s", "re", "-", "made", "!"]


def test_a_piece_that_is_in_the_table_stays_whole() -> None:
    tokenizer = WordTokenizer(["re-made", "re", "-", "Film", "film"])
    assert tokenizer.encode("Re-made Film FILM") == [0, 3, 4]
    assert tokenizer.encode("re-tell") == [1, 2, UNKNOWN]


def test_decoded_text_reads_back_exactly() -> None:
    words = ["a", "n't", "'s", "-lrb-", "u.s.", "re-made", ",", "x1"]
    tokenizer = WordTokenizer(words)
    ids = [5, 0, 3, 2, 1, 6, 4, 7, 7]
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@pytest.mark.parametrize(("keep", "expected"), [(False, [0, 1]), (True, [0, 4, 1])])
def test_unknown_words_are_dropped_or_kept(keep: bool, expected: list[int]) -> None:
    table = load_embeddings(WORDS, [], keep_unknown=keep)
    assert table.encode("Good unheard bad") == expected
    assert table.encode("unheard") == [4]
    torch.testing.assert_close(table.vectors[4], torch.tensor([3.5 / 4, 3.5 / 4]))
    assert table.decodable.tolist() == [True] * 4 + [False]


def test_a_table_keeps_its_own_unknown_row() -> None:
    table = word_embeddings(["a", "<unk>", "b c", "<pad>"], torch.eye(4), name="t")
    assert table.unknown == 1
    assert len(table.vectors) == 4
    assert table.decodable.tolist() == [True, False, False, False]


def test_standardised_is_centred_and_scaled_over_the_corpus() -> None:
    rng = np.random.default_rng(0)
    table = word_embeddings([f"w{i}" for i in range(6)], torch.tensor(rng.normal(2, 3, (6, 4))).float(), name="t")
    counts = torch.tensor([5, 1, 0, 2, 7, 1, 0])
    tokens = np.repeat(table.standardised(counts).vectors.double().numpy(), counts.numpy(), axis=0)
    np.testing.assert_allclose(tokens.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(tokens).mean(), 1, rtol=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------


def test_json_and_text_files_give_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(WORDS))
    lines = [" ".join([word, *map(str, row)]) for word, row in WORDS.items()]
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "t.vec").write_text("\n".join(["4 2", *lines]))
    mapped = load_embeddings(WORDS, [])
    for name in ("t.json", "t.txt", "t.vec"):
        table = load_embeddings(tmp_path / name, [])
        assert torch.equal(table.vectors, mapped.vectors)
        assert table.encode("good bad n't !") == [0, 1, 2, 3]


def test_a_word_with_a_blank_is_read_but_never_decoded(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("good 1 0\n. . 0 1\n")
    table = load_word_vectors(path)
    assert table.vectors[1].tolist() == [0, 1]
    assert table.decodable.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.txt", "good 1 2\nbad 1\n", "'bad'.*2 numbers"),
        ("t.txt", "good 1 2\nbad 1 2 3\n", "'bad'.*2 numbers"),
        ("t.txt", "good 1 2\nbad 1 x\n", "'bad'.*not a row of numbers"),
        ("t.txt", "good 1 2\ngood 1 3\n", "'good'.*more than once"),
        ("t.txt", "good 1 nan\n", "NaN"),
        ("t.txt", "good\n", "holds no numbers"),
        ("t.txt", "", "holds no word vectors"),
        ("t.json", "{", "not valid JSON"),
        ("t.json", "[]", "must hold an object"),
        ("t.json", '{"good": [1, 2], "bad": [1]}', "'bad'.*2 numbers"),
        ("t.json", '{"good": 3}', "'good'.*row of numbers"),
        ("t.json", '{"good": "x"}', "'good'.*not a row of numbers"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        load_embeddings(tmp_path / name, [])


def test_absent_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_embeddings(tmp_path / "absent.txt", [])
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_embeddings(tmp_path / "t.txt", [])
    with pytest.raises(InputError, match="embeddings must be"):
        load_embeddings(3, [])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty mapping"):
        load_embeddings({}, [])


# --- the corpus itself ------------------------------------------------------------------------------------------------

CORPUS = ["the cat sat on the mat", "the dog sat on the rug", "a cat and a dog ran", "the rug and the mat"]


def information_by_loop(texts: list[str], words: list[str], window: int) -> np.ndarray:
    """PPMI with smoothed contexts, counted pair by pair."""
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        kept = [word for word in text.split() if word in words]
        for (i, a), (j, b) in combinations(enumerate(kept), 2):
            if j - i <= window:
                pairs[a, b] += 1 / (j - i)  # type: ignore[assignment]
                pairs[b, a] += 1 / (j - i)  # type: ignore[assignment]
    total = {word: sum(value for (a, _), value in pairs.items() if a == word) for word in words}
    smooth = {word: total[word] ** 0.75 for word in words}
    table = np.zeros((len(words), len(words)))
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            if pairs[a, b] > 0:
                share = smooth[b] / sum(smooth.values())
                table[i, j] = max(math.log(pairs[a, b] / (total[a] * share)), 0)
    return table


def test_corpus_table_is_the_root_of_the_information_matrix() -> None:
    """At full width the rows' inner products are (M M^T)^(1/2), by SciPy's matrix square root."""
    table = corpus_embeddings(CORPUS, width=50, window=3, min_count=1)
    assert isinstance(table.tokenizer, WordTokenizer)
    words = table.tokenizer.words[:-1]
    assert words[0] == "the"
    matrix = information_by_loop(CORPUS, words, 3)
    gram = scipy.linalg.sqrtm(matrix @ matrix.T).real
    norms = np.sqrt(np.diag(gram))
    found = table.vectors[:-1].double().numpy()
    np.testing.assert_allclose(found @ found.T, gram / np.outer(norms, norms), atol=2e-3)
    assert table.width == len(words)


def test_corpus_table_of_many_words_agrees_with_a_dense_decomposition() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{int(i)}" for i in rng.integers(0, 300, 12)) for _ in range(400)]
    table = corpus_embeddings(texts, width=8, window=2, min_count=1)
    assert isinstance(table.tokenizer, WordTokenizer)
    left, values, _ = np.linalg.svd(information_by_loop(texts, table.tokenizer.words[:-1], 2))
    dense = left[:, :8] * np.sqrt(values[:8])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    found = table.vectors[:-1].double().numpy()
    np.testing.assert_allclose(found @ found.T, dense @ dense.T, atol=1e-3)
    again = corpus_embeddings(texts, width=8, window=2, min_count=1)
    assert torch.equal(table.vectors, again.vectors)


def test_words_of_equal_contexts_are_neighbours() -> None:
    rng = np.random.default_rng(1)
    fill = [f"f{i}" for i in range(30)]
    texts = []
    for _ in range(300):
        twin = ("tea", "coffee")[rng.integers(2)]
        texts.append(f"drink {twin} hot")
        texts.append(" ".join(rng.choice(fill, 5)))
    table = corpus_embeddings(texts, width=10)
    tea, coffee = table.tokenizer.encode("tea coffee")
    allowed = table.decodable.clone()
    allowed[tea] = False
    _, rows = nearest_rows(table.vectors[[tea]], table.vectors, allowed)
    assert rows.item() == coffee


def test_corpus_limits() -> None:
    assert len(corpus_embeddings(CORPUS, max_words=3).vectors) == 3 + 1
    lonely = corpus_embeddings(["one", "two"])  # no two words meet, none comes twice
    assert lonely.decodable.sum() == 2
    with pytest.raises(InputError, match="no words"):
        corpus_embeddings([" "])
    with pytest.raises(InputError, match="width"):
        corpus_embeddings(CORPUS, width=0)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the extra [text]")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "good", "bad", "##ly", "!", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab={word: row for row, word in enumerate(words)}).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_models_table_is_its_input_embeddings(tiny_model: Path) -> None:
    import transformers

    before = torch.get_rng_state()
    table = load_embeddings(str(tiny_model), [])
    assert torch.equal(before, torch.get_rng_state())
    model = transformers.AutoModel.from_pretrained(tiny_model)
    assert torch.equal(table.vectors, model.embeddings.word_embeddings.weight.detach())
    assert not table.vectors.requires_grad
    assert table.encode("The film goodly bad!") == [10, 5, 6, 8, 7, 9]
    assert table.encode("good unheard bad") == [6, 7]
    assert table.encode("unheard") == [table.unknown] == [1]
    # neither special tokens nor a part of a word can be decoded
    assert table.decodable.nonzero().squeeze(1).tolist() == [5, 6, 7, 9, 10]
    assert table.encode(table.tokenizer.decode([10, 5, 9, 7])) == [10, 5, 9, 7]


def test_unknown_tokens_of_a_model_can_be_kept(tiny_model: Path) -> None:
    assert pretrained_embeddings(tiny_model, keep_unknown=True).encode("good unheard bad") == [6, 1, 7]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra [text]")
    with pytest.raises(InputError, match=r"neither a file nor a model.*download=True"):
        load_embeddings(str(tmp_path), [])


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_nearest_rows_are_those_of_brute_force(chunk: int) -> None:
    rng = np.random.default_rng(2)
    queries, table = rng.normal(size=(9, 5)), rng.normal(size=(40, 5))
    allowed = rng.random(40) < 0.6
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, table)]
    cosine = unit[0] @ unit[1].T
    cosine[:, ~allowed] = -2
    expected = np.argsort(-cosine, axis=1)[:, :3]
    found, rows = nearest_rows(torch.tensor(queries), torch.tensor(table), torch.tensor(allowed), count=3, chunk=chunk)
    np.testing.assert_array_equal(rows.numpy(), expected)
    np.testing.assert_allclose(found.numpy(), np.take_along_axis(cosine, expected, 1), rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_ties_go_to_the_lower_row(chunk: int) -> None:
    table = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    _, rows = nearest_rows(torch.tensor([[1.0, 0.0]]), table, torch.ones(4, dtype=torch.bool), count=2, chunk=chunk)
    assert rows.tolist() == [[1, 2]]


def test_decoding_needs_no_more_than_was_asked() -> None:
    options: Mapping[str, Any] = {"count": 0}
    with pytest.raises(InputError, match="count"):
        nearest_rows(torch.eye(2), torch.eye(2), torch.ones(2, dtype=torch.bool), **options)
