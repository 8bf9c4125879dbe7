"""Labels for unlabelled nodes, from a kernel machine that learns from the labelled ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill import memory
from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.nodes import Nodes
from datastill.backbones.ridge import ridge_solve

HOPS = (0, 1, 2, 3, 4, 6)
RIDGES = (1e-2, 1e-1, 0.3, 1.0)
CAP = 4000  # labelled nodes that the teacher learns from, and on which it is validated: its cost is cubic in them
CHOOSING = 1500  # labelled nodes that it learns from while its receptive field and its ridge are chosen
_CHUNK = 512  # nodes that it teaches at a time, at most, with their kernel in the processor's cache


@torch.no_grad()
def teach(view: Nodes, labels: Tensor, train: Tensor, validation: Tensor, rng: torch.Generator) -> Tensor:
    """Classes (n,) of all nodes: those of `train` as they are, those of all others as the teacher says.

    The teacher is ridge regression with the NTK of one hidden layer on A^k X. Its k and its ridge, of `HOPS` and
    `RIDGES`, are those of the best accuracy on the validation nodes, of whose labels nothing else is used.

    Args:
        view: all nodes of the graph.
        labels: (n,) int64; read at `train` and `validation` only.
        train: ids of the labelled nodes.
        validation: ids of the nodes that choose the teacher.
        rng: of the choice among more than `CAP` nodes.
    """
    classes = int(labels[train].max()) + 1
    support, judges = _some(train, rng), _some(validation, rng)
    targets = F.one_hot(labels[support], classes).to(view.features.dtype) - 1 / classes
    hops, ridge = _choose(view, targets[:CHOOSING], support[:CHOOSING], judges, labels[judges])
    reached = view.features if view.hops is None else view.hops.once(hops)
    known = reached[support.to(reached.device)]
    scale = _typical(known)
    known = known / scale
    kernel = InfiniteReLU(1)
    coefficients = ridge_solve(kernel(known, known), targets.to(known.device), ridge)
    taught = labels.clone()
    pupil = torch.ones(len(labels), dtype=torch.bool)
    pupil[train] = False
    # Features as found and as scaled, and some matrices on the way to the kernel.
    bytes_each = known.element_size() * (2 * known.shape[1] + 8 * len(known))
    for nodes in pupil.nonzero().squeeze(1).split(memory.chunk(bytes_each, known.device, most=_CHUNK)):
        rows = reached[nodes.to(reached.device)] / scale
        taught[nodes] = (kernel(rows, known) @ coefficients).argmax(1).cpu()
    return taught


def _choose(view: Nodes, targets: Tensor, support: Tensor, judges: Tensor, truth: Tensor) -> tuple[int, float]:
    """The hops and the ridge of the best accuracy on `judges`; ties go to the first."""
    both = torch.cat([support, judges]).to(view.features.device)
    seen = {0: view.features[both]} if view.hops is None else view.hops.at(both, HOPS)
    kernel = InfiniteReLU(1)
    targets, truth = targets.to(both.device), truth.to(both.device)
    best: tuple[float, int, float] | None = None
    for hops, values in seen.items():
        known, others = values.split([len(support), len(judges)])
        scale = _typical(known)
        known, others = known / scale, others / scale
        gram, across = kernel(known, known), kernel(others, known)
        for ridge in RIDGES:
            predicted = (across @ ridge_solve(gram, targets, ridge)).argmax(1)
            accuracy = float((predicted == truth).double().mean())
            if best is None or accuracy > best[0]:
                best = accuracy, hops, ridge
    assert best is not None
    return best[1], best[2]


def _some(nodes: Tensor, rng: torch.Generator) -> Tensor:
    return nodes if len(nodes) <= CAP else nodes[torch.randperm(len(nodes), generator=rng)[:CAP]]


def _typical(rows: Tensor) -> float:
    """The root mean square, or 1 where that is 0."""
    return float(rows.square().mean().sqrt()) or 1.0
