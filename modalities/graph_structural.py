"""Features for nodes that have none, from the edges alone: where a node lies in the graph, and how it is connected."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.backbones.nodes import Csr, normalised
from datastill.rng import isolated

POSITIONS = 32  # columns of the spectral embedding, less where a graph has fewer nodes
_SPARE, _ROUNDS = 8, 12  # of the randomised factorisation: more vectors than are kept, and passes over the edges


def structural_features(edge_index: Tensor, edge_weight: Tensor | None, count: int) -> Tensor:
    """Features (count, 2 + positions) that are the same for the same graph.

    Columns: log(1 + weight received) and log(1 + weight sent), then a spectral embedding, the leading singular vectors U
    of the propagation operator of the graph without directions, times the square root of their singular values and of
    `count`, so that every column is of the order of 1. Cost: O((edges + nodes) * positions).

    Args:
        edge_index: (2, edges) int64.
        edge_weight: (edges,) at least 0, or None for ones.
        count: nodes.
    """
    weights = torch.ones(edge_index.shape[1]) if edge_weight is None else edge_weight.to(torch.float32)
    received, sent = (torch.zeros(count).index_add_(0, ends, weights) for ends in edge_index.flip(0))
    both = torch.cat([edge_index, edge_index.flip(0)], 1)
    operator = normalised(both, torch.cat([weights, weights]), count)
    kept = min(POSITIONS, count)
    left, values = _leading(operator, min(count, kept + _SPARE))
    position = left[:, :kept] * (values[:kept] * count).sqrt()
    # A singular vector's sign is arbitrary; its largest entry is made positive.
    largest = position.gather(0, position.abs().argmax(0, keepdim=True))
    return torch.cat([received.log1p()[:, None], sent.log1p()[:, None], position * largest.sign()], 1)


def _leading(operator: Csr, count: int) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors (n, count) and values (count,) of a symmetric operator.

    Randomised subspace iteration (Halko et al. 2011, algorithms 4.4 and 5.1); with M = M^T two products are one round.
    """
    with isolated(0):
        basis = torch.randn(operator.width, count)
    for _ in range(1 + 2 * _ROUNDS):
        basis = torch.linalg.qr(operator @ basis).Q
    left, values, _ = torch.linalg.svd((operator @ basis).T, full_matrices=False)
    return basis @ left, values
