"""The score of a ranking of graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.errors import InputError


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """How often a positive point has the higher score than a negative one; equal scores count half.

    Args:
        scores: (n,).
        positive: (n,) bool, of both kinds.
    """
    pairs = int(positive.sum()) * int((~positive).sum())
    if pairs == 0:
        raise InputError("ROC-AUC needs graphs of both classes in every held-out part; give another split or metric.")
    _, where, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0)
    ranks = (ends - (counts - 1) / 2)[where]  # equal scores share their mean rank
    least = int(positive.sum()) * (int(positive.sum()) + 1) / 2
    return float((ranks[positive].sum() - least) / torch.tensor(pairs, dtype=torch.float64))
