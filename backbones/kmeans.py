"""k-means, by which summaries are initialised and real points chosen."""

from __future__ import annotations

import torch
from torch import Tensor

_PROJECTED = 256  # dimensions in which the distances of many wide points are taken (Johnson & Lindenstrauss 1984)
_LARGE = 2**22  # numbers in a matrix of points from which on they are
_NUMBERS = 2**24  # in a matrix of distances that is in memory at once: 64 MiB in float32, of however many points


def k_means(points: Tensor, count: int, rng: torch.Generator, *, rounds: int = 50) -> Tensor:
    """Centres (count, d) by Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).

    Points that are many and wide are assigned in a random projection, which keeps distances to a few percent; their centres are
    the means of the points themselves.

    Args:
        points: (n, d).
        count: centres, from 1 to n.
        rng: of the start.
        rounds: at most so many passes; fewer if the assignment stops changing.
    """
    if points.shape[1] > 2 * _PROJECTED and points.numel() > _LARGE:
        mix = torch.randn(points.shape[1], _PROJECTED, generator=rng).to(points) / _PROJECTED**0.5
        near = points @ mix
        owner = _nearest(near, k_means(near, count, rng, rounds=rounds), _squares(near))[1]
        sizes = torch.bincount(owner, minlength=count)
        # Where two centres coincide, one of them owns nothing: it takes a point that is far from its own centre.
        sums = points.new_zeros(count, points.shape[1]).index_add_(0, owner, points)
        centres = sums / sizes.clamp(min=1)[:, None].to(points.dtype)
        spare = (points - centres[owner]).square().sum(1).argsort(descending=True, stable=True)
        empty = (sizes == 0).nonzero().squeeze(1)
        centres[empty] = points[spare[: len(empty)]]
        return centres
    chosen = [int(torch.randint(len(points), (), generator=rng))]
    squares = _squares(points)
    nearest = _squared_distances(points, points[chosen], squares).squeeze(1)
    while len(chosen) < count:
        weights = nearest if bool((nearest > 0).any()) else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weights.double(), 1, generator=rng)))
        nearest = torch.minimum(nearest, _squared_distances(points, points[chosen[-1:]], squares).squeeze(1))
    centres = points[chosen]
    owner = torch.full((len(points),), -1)
    for _ in range(rounds):
        gaps, found = _nearest(points, centres, squares)
        if torch.equal(found, owner):
            break
        owner = found
        sizes = torch.bincount(owner, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        centres = sums / sizes.clamp(min=1)[:, None].to(points.dtype)
        # A centre that has lost all of its points restarts at a point that is far from its own centre.
        empty = (sizes == 0).nonzero().squeeze(1)
        if len(empty) > 0:
            centres[empty] = points[gaps.argsort(descending=True, stable=True)[: len(empty)]]
    return centres


def nearest_members(points: Tensor, centres: Tensor) -> Tensor:
    """For each centre (k, d) the position of the nearest of `points` (n, d), k <= n, that no earlier centre took."""
    squares = _squares(points)
    chosen: list[int] = []
    for block in centres.split(max(1, _NUMBERS // len(points))):
        for row in _squared_distances(points, block, squares).T:
            row[chosen] = torch.inf
            chosen.append(int(row.argmin()))
    return torch.tensor(chosen, dtype=torch.int64)


def _nearest(points: Tensor, centres: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance of each of `points` (n, d) to its nearest centre, and which that is."""
    size = max(1, _NUMBERS // len(centres))
    blocks = zip(points.split(size), squares.split(size))
    parts = [_squared_distances(block, centres, its).min(1) for block, its in blocks]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _squares(points: Tensor) -> Tensor:
    size = max(1, _NUMBERS // points.shape[1])
    return torch.cat([part.square().sum(1) for part in points.split(size)])


def _squared_distances(a: Tensor, b: Tensor, squares: Tensor | None = None) -> Tensor:
    """(n_a, n_b), with the squared norms of `a` if they are known."""
    squares = _squares(a) if squares is None else squares
    return (squares[:, None] + b.square().sum(1)[None]).sub_(a @ (2 * b).T).clamp_(min=0)
