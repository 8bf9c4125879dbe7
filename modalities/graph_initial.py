"""The start of a synthetic graph: nodes of each class, and their first features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datastill.backbones.kmeans import k_means

INITS = ("real", "noise", "kmeans", "propagated")
_JITTER = 0.01  # of a repeated node, in units of the features' scale: equal nodes would get equal gradients for ever


def in_proportion(sizes: Sequence[int], points: int) -> list[int]:
    """`points` shared out as `sizes` are, at least one each, by largest remainders; `points` is at least len(sizes)."""
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes) * points
    wanted = (shares - 1).clamp(min=0)  # beyond the one that each has for certain
    spare = points - len(sizes)
    wanted = wanted / wanted.sum() * spare if float(wanted.sum()) > 0 else wanted
    counts = wanted.floor().long()
    most = torch.argsort(wanted - counts, descending=True, stable=True)
    counts[most[: spare - int(counts.sum())]] += 1
    return (counts + 1).tolist()


def pick_nodes(nodes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` random members of `nodes`, each as often as any other, give or take one."""
    rounds = [nodes[torch.randperm(len(nodes), generator=rng)] for _ in range(-(-count // len(nodes)))]
    return torch.cat(rounds)[:count]


def separate(points: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    """`points` (n, d), those that repeat an earlier one with a little noise."""
    _, which = torch.unique(points, dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    repeated = torch.zeros(len(points), dtype=torch.bool)
    repeated[order[1:]] = which[order[1:]] == which[order[:-1]]
    noise = torch.randn(points.shape, generator=rng, dtype=points.dtype) * (_JITTER * scale)
    return torch.where(repeated[:, None], points + noise, points)


def class_centres(points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Centres (count, d) of a class's points by k-means, or the points themselves, repeated as needed, if too few."""
    if len(points) <= count:
        return points[pick_nodes(torch.arange(len(points)), count, rng)]
    return k_means(points, count, rng)
