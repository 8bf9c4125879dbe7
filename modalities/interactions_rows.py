"""Rows of real users as tensors, and the part of a row that is held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from datastill.backbones.recommender import SparseRows


@dataclass(frozen=True)
class Held:
    """What a learner should recommend to real users of whom it sees a part.

    Attributes:
        rows: the items to be found.
        seen: the items that the learner reads, which are not to be ranked; empty where they are to be found themselves.
    """

    rows: SparseRows
    seen: SparseRows


def hide(counts: np.ndarray, fraction: float, rng: torch.Generator) -> np.ndarray:
    """Which entries of rows of so many are held out: max(1, round(fraction * n)) random ones of each, but never all of n >= 2."""
    total, owners = int(counts.sum()), np.repeat(np.arange(len(counts)), counts)
    keys = torch.rand(total, dtype=torch.float64, generator=rng).numpy()
    order = np.argsort(owners + keys)
    rank = np.empty(total, dtype=np.int64)
    rank[order] = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    quota = np.minimum(np.maximum(1, np.round(fraction * counts)), np.maximum(1, counts - 1))
    return rank < quota[owners]


def entries(rows: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
    """The chosen entries of `rows`, in the same shape."""
    starts = np.concatenate(([0], np.cumsum(chosen)))[rows.indptr]
    return sp.csr_matrix((rows.data[chosen], rows.indices[chosen], starts), shape=rows.shape)
