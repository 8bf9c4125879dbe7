"""Distributions as points of the simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_distributions(rows: Tensor) -> Tensor:
    """The Euclidean projection of each row (n, c) onto the simplex (Held, Wolfe & Crowder 1974)."""
    ordered = rows.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    support = (ordered * rank > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (rows - threshold).clamp(min=0)


def nearest_sums_of_one(rows: Tensor) -> Tensor:
    """The Euclidean projection of each row (n, c) onto those that sum to one, of either sign."""
    return rows - (rows.sum(1, keepdim=True) - 1) / rows.shape[1]
