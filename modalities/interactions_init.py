"""Where synthetic users start: clusters of real ones, by spherical k-means on sparse rows."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datastill import memory

_CHUNK = 4096  # users whose cosines with all centres are in memory together, at most
_SMOOTHING = 0.1
"""Share of a row's mass that is spread over all items, so that every weight is positive."""


def positive_weights(rows: Tensor) -> Tensor:
    """Positive weights of items, near to `rows` (users, items), which have at least one item each."""
    return (1 - _SMOOTHING) * rows + _SMOOTHING * rows.mean(1, keepdim=True)


def cluster_means(rows: sp.csr_matrix, clusters: int, rng: torch.Generator, iterations: int = 20) -> np.ndarray:
    """Mean rows of clusters of users that have similar items.

    Spherical k-means: a user belongs to the centre with the highest cosine, a centre is the mean of its users' unit rows.
    Centres start as in k-means++ (Arthur & Vassilvitskii 2007): at users drawn with probabilities that grow with the distance
    to the centres so far. A centre that nobody belongs to moves to the user who fits its own centre worst.

    Args:
        rows: (users, items) CSR with at least one item a user.
        clusters: at least 1, at most the number of users.
        rng: of the users at which the centres start.
        iterations: at most so many; fewer if nothing changes any more.

    Returns:
        (clusters, items) float32: for 0/1 rows the share of a cluster's users who have an item.
    """
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    unit = sp.diags(1 / lengths).tocsr() @ rows
    centres = unit[_spread(unit, clusters, rng)].toarray()
    members = np.full(rows.shape[0], -1)
    for _ in range(iterations):
        found, fit = _nearest(unit, centres)
        for empty in np.setdiff1d(np.arange(clusters), found):
            # A user who is alone in a cluster stays there, or the next cluster would be empty.
            sizes = np.bincount(found, minlength=clusters)
            worst = int(np.argmin(np.where(sizes[found] > 1, fit, np.inf)))
            found[worst], fit[worst] = empty, np.inf
        if np.array_equal(found, members):
            break
        members = found
        centres = _means(unit, members, clusters)
    return _means(rows, members, clusters).astype(np.float32)


def _spread(unit: sp.csr_matrix, clusters: int, rng: torch.Generator) -> list[int]:
    """Positions of distinct rows, each drawn in proportion to its squared distance from the nearest one before."""
    users = unit.shape[0]
    chosen: list[int] = []
    distances = np.ones(users)
    for draw in torch.rand(clusters, dtype=torch.float64, generator=rng).tolist():
        if distances.sum() == 0:  # only copies of chosen rows are left
            distances = np.ones(users)
            distances[chosen] = 0
        heights = np.cumsum(distances)
        chosen.append(int(np.searchsorted(heights, draw * heights[-1], side="right")))
        squared = np.maximum(2 - 2 * (unit @ unit[chosen[-1]].T).toarray().ravel(), 0)
        squared[squared < 1e-6] = 0  # rounding
        distances = np.minimum(distances, squared)
        distances[chosen] = 0
    return chosen


def _nearest(unit: sp.csr_matrix, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre of highest cosine for each row, and that cosine."""
    directions = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    found, fit = [], []
    size = memory.chunk(directions.itemsize * directions.shape[1], most=_CHUNK)
    for start in range(0, unit.shape[0], size):
        cosines = unit[start : start + size] @ directions
        found.append(cosines.argmax(1))
        fit.append(cosines.max(1))
    return np.concatenate(found), np.concatenate(fit)


def _means(rows: sp.csr_matrix, members: np.ndarray, clusters: int) -> np.ndarray:
    ones = np.ones(len(members), dtype=np.float64)
    belongs = sp.csr_matrix((ones, (members, np.arange(len(members)))), shape=(clusters, len(members)))
    sizes = np.asarray(belongs.sum(1))
    return (belongs @ rows).toarray() / sizes
