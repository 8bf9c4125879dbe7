"""Labels for unlabelled nodes, from a kernel machine that learns from the labelled ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.nodes import Csr
from datastill.backbones.ridge import ridge_solve

HOPS = (0, 1, 2, 3, 4, 6)
RIDGES = (1e-2, 1e-1, 0.3, 1.0)
CAP = 4000  # labelled nodes that the teacher learns from, and on which it is validated: its cost is cubic in them
_CHUNK = 16384


def teach(
    features: Tensor, adjacency: Csr | None, labels: Tensor, train: Tensor, validation: Tensor, rng: torch.Generator
) -> Tensor:
    """Classes (n,) of all nodes: those of `train` as they are, those of all others as the teacher says.

    The teacher is ridge regression with the NTK of one hidden layer on A^k X. Its k and its ridge, of `HOPS` and
    `RIDGES`, are those of the best accuracy on the validation nodes, of whose labels nothing else is used.

    Args:
        features: X, (n, d).
        adjacency: A, or None for a graph without edges.
        labels: (n,) int64; read at `train` and `validation` only.
        train: ids of the labelled nodes.
        validation: ids of the nodes that choose the teacher.
        rng: of the choice among more than `CAP` nodes.
    """
    classes = int(labels[train].max()) + 1
    support, judges = _some(train, rng), _some(validation, rng)
    targets = F.one_hot(labels[support], classes).to(features.dtype) - 1 / classes
    kernel = InfiniteReLU(1)
    best: tuple[float, int, float] | None = None
    reached, hops = features, 0
    for wanted in HOPS if adjacency is not None else HOPS[:1]:
        reached, hops = _propagate(reached, adjacency, wanted - hops), wanted
        a, b = _scaled(reached[support], reached[support]), _scaled(reached[judges], reached[support])
        gram, across = kernel(a, a), kernel(b, a)
        for ridge in RIDGES:
            predicted = (across @ ridge_solve(gram, targets, ridge)).argmax(1)
            accuracy = float((predicted == labels[judges]).double().mean())
            if best is None or accuracy > best[0]:
                best = accuracy, wanted, ridge
    assert best is not None
    reached = _propagate(features, adjacency, best[1])
    known = _scaled(reached[support], reached[support])
    coefficients = ridge_solve(kernel(known, known), targets, best[2])
    taught = torch.cat(
        [(kernel(_scaled(chunk, reached[support]), known) @ coefficients).argmax(1) for chunk in reached.split(_CHUNK)]
    )
    taught[train] = labels[train]
    return taught


def _some(nodes: Tensor, rng: torch.Generator) -> Tensor:
    return nodes if len(nodes) <= CAP else nodes[torch.randperm(len(nodes), generator=rng)[:CAP]]


def _propagate(values: Tensor, adjacency: Csr | None, hops: int) -> Tensor:
    if adjacency is not None:
        for _ in range(hops):
            values = adjacency @ values
    return values


def _scaled(rows: Tensor, reference: Tensor) -> Tensor:
    """`rows` over the root mean square of `reference`."""
    return rows / (float(reference.square().mean().sqrt()) or 1.0)
