"""Closed forms and shortcuts of gradient matching, against autograd and against runs that do without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill import distill
from datastill.backbones.base import Learner, LinearLearner
from datastill.backbones.batch import Batch
from datastill.backbones.graph import SGC
from datastill.backbones.nodes import Nodes, normalised_dense
from datastill.checks.toy import ToyModality
from datastill.modalities.base import Summary
from datastill.objectives.gradient_matching import GradientMatching, gradient_distances
from datastill.objectives.inner import OncePerStep
from datastill.rng import generator


def graph(*, soft: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = generator("closed form")
    features = torch.randn(9, 6, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.rand(9, 9, generator=rng, dtype=torch.float64).triu(1)
    weights = (weights + weights.T).requires_grad_()
    groups = torch.tensor([2, 0, 0, 1, 2, 2, 1, 2, 0])  # not in blocks
    targets = groups
    if soft:
        targets = torch.rand(9, 3, generator=rng, dtype=torch.float64).softmax(1).requires_grad_()
    return features, weights, groups, targets


def batch_of(features: Tensor, weights: Tensor, groups: Tensor, targets: Tensor) -> Batch:
    return Batch(Nodes(features, normalised_dense(weights), torch.arange(len(groups))), targets, groups)


def by_autograd(net: Learner, batch: Batch, groups: list[int], *, create_graph: bool) -> list[Tensor]:
    """Every group's gradients through the whole network, one group after the other."""
    found = []
    for group in groups:
        mine = batch.groups == group
        loss = F.cross_entropy(net(batch.inputs)[mine], batch.targets[mine])
        found.append(torch.autograd.grad(loss, list(net.parameters()), create_graph=create_graph))
    return [torch.stack(parts) for parts in zip(*found)]


@pytest.mark.parametrize("soft", [False, True])
def test_closed_form_gradients_are_autograds(soft: bool) -> None:
    """Values and derivatives in features, edges and soft labels, in float64."""
    torch.manual_seed(0)
    net = SGC(6, 3).double()
    features, weights, groups, targets = graph(soft=soft)
    leaves = [features, weights, *([targets] if soft else [])]
    target = [torch.randn_like(part) for part in by_autograd(net, batch_of(*graph()), [0, 1, 2], create_graph=False)]
    results = []
    for how in (net.group_gradients, None):
        batch = batch_of(features, weights, groups, targets)
        if how is None:
            gradients = by_autograd(net, batch, [0, 1, 2], create_graph=True)
        else:
            gradients = how(batch, [0, 1, 2], F.cross_entropy, create_graph=True)
        distance = gradient_distances(gradients, target, "rows").sum()
        distance = distance + gradient_distances(gradients, target, "squared").sum()
        results.append([*gradients, *torch.autograd.grad(distance, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    plain = net.group_gradients(
        batch_of(features, weights, groups, targets), [2, 0], F.cross_entropy, create_graph=False
    )
    for ours, expected in zip(plain, results[1]):
        torch.testing.assert_close(ours, expected.detach()[[2, 0]], atol=1e-10, rtol=1e-10)
        assert not ours.requires_grad


def test_linear_learner_builds_no_graph_of_its_features() -> None:
    """On the real side nothing of the features' size is kept, and the embedding is not differentiated."""

    class Watched(LinearLearner):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2, bias=False)

        def embed(self, inputs: Tensor) -> Tensor:
            return Fragile.apply(inputs)  # type: ignore[no-any-return]

    class Fragile(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> None:
            raise AssertionError("the features were differentiated")

    inputs = torch.randn(6, 4, generator=generator(0)).requires_grad_()
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    (weight,) = Watched().group_gradients(Batch(inputs, groups, groups), [0, 1], F.cross_entropy, create_graph=False)
    assert weight.shape == (2, 2, 4)


class Counted(Summary):
    """Points that count how often they are asked, with or without noise."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(6, 5, generator=generator("counted")))
        self.scale = nn.Parameter(torch.ones(5))
        self.noise, self.calls = noise, 0

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        self.calls += 1
        points = self.points * self.scale
        if self.noise and rng is not None:
            points = points + self.noise * torch.randn(points.shape, generator=rng)
        labels = torch.arange(3).repeat_interleave(2)
        return Batch(points, labels, labels)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"points": [self.points], "scale": [self.scale]}

    def export(self) -> Any:
        return self.points.detach(), torch.arange(3).repeat_interleave(2)

    @property
    def num_points(self) -> int:
        return 6


def matched(summary: Counted, steps: int = 12) -> Counted:
    objective = GradientMatching(learner="linear", outer_loops=6, inner_epochs=1, real_size=None)
    distill(
        ToyModality(),
        summary,
        objective,
        steps=steps,
        lr=0.05,
        alternate={"points": 3, "scale": 2},
        validate_every=0,
        progress=False,
    )
    return summary


def test_a_batch_is_computed_once_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same summary bit for bit as when it is computed for training and for the loss apart, in fewer calls."""
    quick = matched(Counted(0.0))
    with monkeypatch.context() as patch:
        patch.setattr(OncePerStep, "take", lambda self, rng: self.summary(rng))
        plain = matched(Counted(0.0))
    assert torch.equal(quick.points, plain.points)
    assert torch.equal(quick.scale, plain.scale)
    # 12 losses; 10 trainings, as two of the steps end a network; the batch of one is used for the next loss unless a turn
    # ended in between, which happens at steps 3, 5, 8 and 10.
    assert plain.calls == 22
    assert quick.calls == 22 - 10 + 4


def test_a_random_summary_draws_for_every_use() -> None:
    assert matched(Counted(0.1)).calls == 22


def test_remembered_batch_is_dropped_when_a_parameter_changes() -> None:
    summary = Counted(0.0)
    once = OncePerStep(summary)
    first = once.ahead(generator(0))
    assert once.take(generator(1)) is first
    assert once.take(generator(1)) is not first  # its graph is used up
    first = once.ahead(generator(0))
    with torch.no_grad():
        summary.points.add_(1.0)
    assert torch.equal(once.take(generator(1)).inputs, summary.points * summary.scale)
    first = once.ahead(generator(0))
    summary.points.requires_grad_(False)
    assert once.take(generator(1)) is not first


def test_a_role_whose_turn_it_is_not_gets_no_gradient() -> None:
    seen: list[tuple[bool, bool]] = []

    class Watched(Counted):
        def forward(self, rng: torch.Generator | None = None) -> Batch:
            seen.append((self.points.requires_grad, self.scale.requires_grad))
            return super().forward(rng)

    summary = matched(Watched(0.1), steps=5)
    assert set(seen) == {(True, False), (False, True)}
    assert summary.points.requires_grad
    assert summary.scale.requires_grad
