"""Gradients of a linear layer by group that are kept as the two factors they are products of.

With S the slopes of a group's outputs (n, c) and F the features of its points (n, d) the gradient of the weight is S^T F, c * d
numbers for each group. Of many classes with few points each the factors are far smaller, and so are the n * n inner products that
inner products of its rows are made of: row r of S^T F with row r of T^T H has s_r^T (F H^T) t_r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """S^T F of each group, (groups, c, d), not multiplied out.

    Attributes:
        slopes: S of all groups, (n, c), one group after the other.
        features: F of the same points, (n, d).
        sizes: points of each group.
    """

    slopes: Tensor
    features: Tensor
    sizes: Sequence[int]

    @property
    def uniform(self) -> bool:
        """Whether groups have as many points each, which `inner` asks for."""
        return min(self.sizes) == max(self.sizes)

    def dense(self) -> Tensor:
        """The products, (groups, c, d)."""
        return by_block(self.slopes, self.features, self.sizes)

    def inner(self, other: Outer) -> Tensor:
        """Inner products of its rows with those of `other`, (groups, c), by group. Both have to be `uniform`."""
        mine, theirs = self._by_group(), other._by_group()
        return (mine[0] * ((mine[1] @ theirs[1].mT) @ theirs[0])).sum(1)

    def _by_group(self) -> tuple[Tensor, Tensor]:
        """S (groups, points, c) and F (groups, points, d)."""
        shape = (len(self.sizes), -1)
        return self.slopes.unflatten(0, shape), self.features.unflatten(0, shape)


def dense(part: Tensor | Outer) -> Tensor:
    """A gradient as one tensor."""
    return part.dense() if isinstance(part, Outer) else part


def by_block(slopes: Tensor, features: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """S^T F of each stretch of rows, (blocks, c, d), for S (n, c) and F (n, d); the sum of its rows S, (blocks, c), without F."""
    if min(sizes) == max(sizes):
        slopes = slopes.unflatten(0, (len(sizes), -1))
        return slopes.sum(1) if features is None else slopes.mT @ features.unflatten(0, (len(sizes), -1))
    parts = slopes.split(list(sizes))
    if features is None:
        return torch.stack([part.sum(0) for part in parts])
    return torch.stack([part.T @ mine for part, mine in zip(parts, features.split(list(sizes)))])
