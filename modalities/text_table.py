"""Embedding tables: what turns words into vectors, and vectors back into words. A table is never trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from datastill.errors import require

UNKNOWN = -1
"""The id that a tokenizer gives to a word outside its table."""

_MARKERS = {"<unk>", "[unk]", "<pad>", "[pad]", "<s>", "</s>", "[cls]", "[sep]", "[mask]", "<mask>"}
# Penn Treebank's way with clitics, which word-vector files follow: "don't" is "do n't", "film's" is "film 's".
_PIECES = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]")


class Tokenizer(Protocol):
    """Text to ids of table rows and back."""

    def encode(self, text: str) -> list[int]:
        """Row ids of the tokens, `UNKNOWN` for those outside the table."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these rows."""
        ...


def split_words(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a text, clitics apart."""
    return _PIECES.findall(text.lower())


class WordTokenizer:
    """Whole words. A piece between blanks that is itself in the table is taken as it stands: decoded text reads back exactly.

    Args:
        words: the word of each row.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: row for row, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        for chunk in text.split():
            row = self._ids.get(chunk, self._ids.get(chunk.lower()))
            if row is not None:
                found.append(row)
            else:
                found.extend(self._ids.get(piece, UNKNOWN) for piece in split_words(chunk))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[row] for row in ids)


@dataclass(frozen=True)
class Embeddings:
    """A fixed table of token vectors.

    Attributes:
        vectors: (rows, d) float32.
        tokenizer: text to rows and back.
        decodable: (rows,) bool, the rows that decoding may give: no special, unknown or unprintable tokens.
        unknown: the row that stands for tokens outside the table, and for a sentence none of whose tokens is in it.
        name: where the table comes from.
        keep_unknown: whether unknown tokens stay in a sentence as the unknown row; otherwise they are dropped.
    """

    vectors: Tensor
    tokenizer: Tokenizer
    decodable: Tensor
    unknown: int
    name: str
    keep_unknown: bool = False

    def __post_init__(self) -> None:
        require(bool(self.vectors.isfinite().all()), f"The embeddings {self.name!r} contain NaN or infinite values.")
        require(
            bool(self.decodable.any()),
            f"The embeddings {self.name!r} hold no token that decoding could give; use another table.",
        )

    @property
    def width(self) -> int:
        """d, the length of a vector."""
        return self.vectors.shape[1]

    def encode(self, text: str) -> list[int]:
        """Rows of a text's tokens, at least one. Unknown tokens are dropped, or kept as `unknown` if `keep_unknown`."""
        rows = self.tokenizer.encode(text)
        if self.keep_unknown:
            rows = [self.unknown if row == UNKNOWN else row for row in rows]
        else:
            rows = [row for row in rows if row not in (UNKNOWN, self.unknown)]
        return rows or [self.unknown]

    def standardised(self, counts: Tensor) -> Embeddings:
        """The table centred and scaled so that a token of the corpus has mean zero and mean square one a coordinate.

        Centring removes the direction that all words share, which otherwise dominates cosines and pooled sentences.

        Args:
            counts: (rows,) occurrences of each row in the corpus.
        """
        weights = counts.double() / counts.sum().clamp_min(1)
        vectors = self.vectors.double()
        vectors = vectors - weights @ vectors
        scale = (weights @ vectors.square().mean(1)).sqrt()
        if scale == 0:  # a corpus of one word
            scale = vectors.square().mean().sqrt().clamp_min(1e-12)
        return replace(self, vectors=(vectors / scale).float())


def word_embeddings(words: Sequence[str], vectors: Tensor, *, name: str, keep_unknown: bool = False) -> Embeddings:
    """A table of whole words.

    Its unknown row is the table's own ("<unk>" and the like), or a last row of the mean vector.

    Args:
        words: the word of each row, all different.
        vectors: (words, d).
        name: for messages and records.
        keep_unknown: whether unknown words keep their place as the unknown row; otherwise they are dropped.
    """
    require(len(words) > 0, f"The embeddings {name!r} hold no words.")
    require(len(words) == len(vectors), f"The embeddings {name!r} hold {len(words)} words but {len(vectors)} vectors.")
    twice = [word for word, count in Counter(words).items() if count > 1]
    require(not twice, f"The embeddings {name!r} list {twice[:1]!r} more than once; keep one vector a word.")
    words = list(words)
    vectors = vectors.detach().float().cpu()
    unknown = next((row for row, word in enumerate(words) if word.lower() in ("<unk>", "[unk]")), None)
    if unknown is None:
        unknown = len(words)
        words.append("<unk>")
        vectors = torch.cat([vectors, vectors.mean(0, keepdim=True)])
    tokenizer = WordTokenizer(words)
    # A word with a blank inside (some published files have them) could not be read back as one token.
    decodable = torch.tensor([word.lower() not in _MARKERS and word.split() == [word] for word in words])
    return Embeddings(vectors, tokenizer, decodable, unknown, name, keep_unknown)
