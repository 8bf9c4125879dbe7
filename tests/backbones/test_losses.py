"""Slopes of losses and what learners make of them, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.graph import SGC
from datastill.backbones.losses import cross_entropy_slopes, sloped, slopes_of
from datastill.backbones.nodes import Nodes
from datastill.checks.toy import ToyModality
from datastill.modalities.classification import ClassificationModality


@sloped(cross_entropy_slopes)
def closed(outputs: Tensor, targets: Any) -> Tensor:
    return F.cross_entropy(outputs, targets)


def example(soft: bool) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    outputs = torch.randn(9, 4, generator=rng, dtype=torch.float64)
    weights = torch.rand(9, 4, generator=rng, dtype=torch.float64)  # rows need not add up to one
    return outputs, weights if soft else torch.randint(4, (9,), generator=rng)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("sizes", [[9], [3, 3, 3], [5, 1, 3]])
def test_closed_slopes_are_those_of_autograd(soft: bool, sizes: list[int]) -> None:
    outputs, targets = example(soft)
    found = slopes_of(closed, outputs, targets, sizes, differentiable=False)
    torch.testing.assert_close(found, slopes_of(F.cross_entropy, outputs, targets, sizes, differentiable=False))
    assert not found.requires_grad


@pytest.mark.parametrize("loss", [closed, F.cross_entropy])
def test_slopes_can_be_differentiated(loss: Any) -> None:
    outputs, targets = example(True)
    free = outputs.requires_grad_(), targets.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: slopes_of(loss, a, b, [4, 5], differentiable=True), free)


def test_a_loss_that_is_overridden_has_no_slopes_of_its_ancestor() -> None:
    class Doubled(ToyModality):
        def loss(self, outputs: Tensor, targets: Any) -> Tensor:
            return 2 * super().loss(outputs, targets)

    assert hasattr(ClassificationModality.loss, "slopes")
    outputs, targets = example(False)
    doubled = slopes_of(Doubled(points=6).loss, outputs, targets, [9], differentiable=False)
    torch.testing.assert_close(doubled, 2 * cross_entropy_slopes(outputs, targets, [9]))


@pytest.mark.parametrize("loss", [closed, F.cross_entropy])
@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1, 2, 2, 2], [2, 0, 1, 1, 0, 2, 2, 2, 0]])
def test_a_linear_learner_has_its_gradients_in_closed_form(loss: Any, labels: list[int]) -> None:
    torch.manual_seed(0)
    net = SGC(5, 3).double()
    features = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    adjacency = torch.rand(9, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(labels)
    batch = Batch(Nodes(features, adjacency, torch.arange(9)), targets, targets)
    for groups in ([0, 1, 2], [2, 0]):
        ours, theirs = (
            kind.group_gradients(net, batch, groups, loss, create_graph=True)  # type: ignore[attr-defined]
            for kind in (SGC, Learner)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        second = [
            torch.autograd.grad(sum((part.sin().sum() for part in parts), torch.zeros(())), [features, adjacency])
            for parts in (ours, theirs)
        ]
        for a, b in zip(*second, strict=True):
            torch.testing.assert_close(a, b)
    net.differentiate(batch.detach(), loss)
    mine = [parameter.grad for parameter in net.parameters()]
    Learner.differentiate(net, batch.detach(), loss)
    for gradient, parameter in zip(mine, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_positions_of_groups() -> None:
    groups = torch.tensor([1, 1, 3, 0])
    batch = Batch(torch.arange(4), groups, groups)
    assert batch.in_blocks([1, 3, 0])[0] is None
    assert batch.in_blocks([1, 3, 0])[1] == [2, 1, 1]
    order, sizes = batch.in_blocks([0, 1])
    assert order is not None
    assert (order.tolist(), sizes) == ([3, 0, 1], [1, 2])
    assert batch.in_blocks([2, 3])[1] == [0, 1]
