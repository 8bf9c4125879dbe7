"""An embedding table from the corpus itself: co-occurrences, their pointwise mutual information, and an SVD."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datastill.errors import check_count, require
from datastill.modalities.text_table import Embeddings, split_words, word_embeddings


def corpus_embeddings(
    texts: Sequence[str],
    *,
    width: int = 100,
    window: int = 5,
    min_count: int = 2,
    max_words: int = 20_000,
    keep_unknown: bool = False,
    seed: int = 0,
) -> Embeddings:
    """A table from the corpus itself: positive pointwise mutual information of co-occurring words, reduced by an SVD.

    Levy, Goldberg & Dagan (2015): context counts are smoothed by the power 0.75 and singular values enter by their
    square root. Rows have unit length.

    Args:
        texts: the corpus, at least one word in all.
        width: d; less where the corpus has fewer words.
        window: co-occurring words are at most this far apart, nearer ones counting more (1 / distance).
        min_count: rarer words are left out, unless that leaves none.
        max_words: at most this many words, the most frequent ones.
        keep_unknown: as in `word_embeddings`.
        seed: of the SVD's start vector.
    """
    for label, value in (("width", width), ("window", window), ("min_count", min_count), ("max_words", max_words)):
        check_count(label, value)
    sentences = [split_words(text) for text in texts]
    counts = Counter(word for sentence in sentences for word in sentence)
    require(bool(counts), "The corpus holds no words to build embeddings from.")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = [word for word in ranked if counts[word] >= min_count][:max_words] or ranked[:max_words]
    information = _positive_information(sentences, words, window)
    vectors = _square_root_factor(information, min(width, len(words)), seed)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms > 0, norms, 1.0)
    return word_embeddings(words, torch.from_numpy(vectors.copy()), name="corpus", keep_unknown=keep_unknown)


def _positive_information(sentences: list[list[str]], words: list[str], window: int) -> Any:
    """PPMI of words (rows) and contexts (columns) as a SciPy CSR matrix."""
    import scipy.sparse as sp

    ids = {word: row for row, word in enumerate(words)}
    flat: list[int] = []
    owner: list[int] = []
    for number, sentence in enumerate(sentences):
        kept = [ids[word] for word in sentence if word in ids]
        flat.extend(kept)
        owner.extend([number] * len(kept))
    rows, sentence_of = np.asarray(flat), np.asarray(owner)
    size = len(words)
    together = sp.csr_matrix((size, size))
    for distance in range(1, window + 1):
        same = sentence_of[distance:] == sentence_of[:-distance]
        left, right = rows[:-distance][same], rows[distance:][same]
        together = together + sp.csr_matrix((np.full(len(left), 1.0 / distance), (left, right)), shape=(size, size))
    together = (together + together.T).tocoo()
    if together.nnz == 0:  # no two words meet: every word is its own context
        return sp.identity(size, format="csr")
    of_word = np.asarray(together.sum(1)).ravel()
    of_context = np.asarray(together.sum(0)).ravel() ** 0.75
    share = of_context / of_context.sum()
    information = np.log(together.data / (of_word[together.row] * share[together.col]))
    kept = information > 0
    pairs = (together.row[kept], together.col[kept])
    return sp.csr_matrix((information[kept], pairs), shape=(size, size))


def _square_root_factor(matrix: Any, width: int, seed: int) -> np.ndarray:
    """U sqrt(S) of the `width` largest singular values, with signs fixed, float32."""
    from scipy.sparse.linalg import svds

    size = matrix.shape[0]
    if size <= 256 or width >= size - 1:
        left, values, _ = np.linalg.svd(matrix.toarray())
        left, values = left[:, :width], values[:width]
    else:
        start = np.random.default_rng(seed).standard_normal(size) / math.sqrt(size)
        left, values, _ = svds(matrix, k=width, v0=start)
        left, values = left[:, ::-1], values[::-1]
    # A singular vector's sign is arbitrary; make its largest entry positive.
    signs = np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])
    factor: np.ndarray = (left * np.where(signs == 0, 1, signs) * np.sqrt(values)).astype(np.float32)
    return factor
