"""First sentences of a summary: random real ones, the most central real ones, or noise."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.backbones.kmeans import k_means, nearest_members
from datastill.errors import require


def random_members(members: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` distinct entries of `members`."""
    _check_supply(members, count)
    return members[torch.randperm(len(members), generator=rng)[:count]]


def central_members(members: Tensor, points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` distinct entries of `members`, each the nearest to one of `count` k-means centres.

    Args:
        members: (n,) ids of the points.
        points: (n, d), where they lie.
        count: centres, at most n.
        rng: of the centres' first positions.
    """
    _check_supply(members, count)
    if count == 0:
        return members[:0]
    return members[nearest_members(points, k_means(points, count, rng))]


def noise_like(tokens: Tensor, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Normal vectors (*shape, d) with the mean and the covariance of the rows of `tokens` (n, d)."""
    mean = tokens.mean(0)
    centred = (tokens - mean).double()
    covariance = centred.T @ centred / max(len(tokens) - 1, 1)
    values, axes = torch.linalg.eigh(covariance)
    root = (axes * values.clamp(min=0).sqrt()).to(tokens.dtype)
    return mean + torch.randn(*shape, tokens.shape[1], generator=rng, dtype=tokens.dtype) @ root.T


def _check_supply(members: Tensor, count: int) -> None:
    require(
        count <= len(members),
        f"{count} real points of a class were asked for, but it has {len(members)} training texts; "
        "lower the budget or start from noise.",
    )
