"""The exact reverse adjoint against plain autograd through every step, which is its oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import call_with, parameters_of
from datastill.backbones.batch import Batch
from datastill.backbones.mlp import MLP
from datastill.objectives.unroll import Descent, unroll
from datastill.rng import generator, isolated


def make_case(points: int = 6, features: int = 4, classes: int = 3) -> tuple[MLP, Tensor, Tensor, Batch]:
    rng = generator("unroll")
    with isolated(1):
        net = MLP(features, classes, depth=2, width=8).double()
    x = torch.randn(points, features, generator=rng, dtype=torch.float64)
    y = torch.softmax(torch.randn(points, classes, generator=rng, dtype=torch.float64), 1)
    real_x = torch.randn(9, features, generator=rng, dtype=torch.float64)
    real = Batch(real_x, torch.arange(9) % classes, torch.arange(9) % classes)
    return net, x, y, real


def plain_autograd(
    descent: Descent, start: dict[str, Tensor], x: Tensor, y: Tensor, rates: Tensor
) -> dict[str, Tensor]:
    """The same inner loop, written the obvious way with one graph for all steps."""
    theta = {name: value.detach().requires_grad_() for name, value in start.items()}
    velocity = {name: torch.zeros_like(value) for name, value in theta.items()}
    for step, pick in enumerate(descent.picks):
        index = slice(None) if pick is None else pick
        batch = Batch(x[index], y[index], torch.zeros(len(x), dtype=torch.int64)[index])
        if descent.augment is not None:
            batch = descent.augment(batch, step)
        loss = F.cross_entropy(call_with(descent.learner, theta, batch.inputs), batch.targets)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for (name, value), grad in zip(list(theta.items()), grads):
            velocity[name] = descent.momentum * velocity[name] + grad + descent.weight_decay * value
            theta[name] = value - rates[step] * velocity[name]
    return theta


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("minibatch", [False, True])
def test_equals_plain_autograd(momentum: float, weight_decay: float, minibatch: bool) -> None:
    net, x, y, real = make_case()
    steps = 25
    rng = generator("picks")
    picks: list[Tensor | None] = [
        torch.randperm(len(x), generator=rng)[:4] if minibatch else None for _ in range(steps)
    ]

    def augment(batch: Batch, step: int) -> Batch:
        return Batch(batch.inputs * (1 + 0.01 * step), batch.targets, batch.groups)

    descent = Descent(net, F.cross_entropy, picks, momentum, weight_decay, augment if minibatch else None)
    start = parameters_of(net)
    found = []
    for exact in (True, False):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        rates = torch.full((steps,), 0.1, dtype=torch.float64).requires_grad_()
        if exact:
            batch = Batch(leaves[0], leaves[1], torch.zeros(len(x), dtype=torch.int64))
            final = unroll(descent, start, batch, rates)
        else:
            final = plain_autograd(descent, start, leaves[0], leaves[1], rates)
        loss = F.cross_entropy(call_with(net, final, real.inputs), real.targets)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in [*leaves, rates])])
    for ours, oracle in zip(*found):
        assert ours is not None
        assert oracle is not None
        assert float((ours - oracle).norm() / oracle.norm()) < 1e-6


class Kept:
    """A tensor that an autograd graph holds on to, counted for as long as it does."""

    live = 0
    peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Kept.live += tensor.numel()
        Kept.peak = max(Kept.peak, Kept.live)

    def __del__(self) -> None:
        Kept.live -= self.tensor.numel()


def test_graph_memory_does_not_grow_with_steps() -> None:
    """The most that graphs hold at any moment, forward and backward, is the same for 3 steps and for 60."""
    net, x, y, _ = make_case()
    peaks = {}
    for way in (unroll, None):
        for steps in (3, 60):
            Kept.live = Kept.peak = 0
            leaf = x.clone().requires_grad_()
            descent = Descent(net, F.cross_entropy, [None] * steps)
            rates = torch.tensor(0.1, dtype=torch.float64).expand(steps)
            with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
                if way is None:
                    final = plain_autograd(descent, parameters_of(net), leaf, y, rates)
                else:
                    final = way(descent, parameters_of(net), Batch(leaf, y, torch.zeros(6, dtype=torch.int64)), rates)
                torch.stack([value.sum() for value in final.values()]).sum().backward()
            peaks[way, steps] = Kept.peak
            del final
    assert peaks[unroll, 60] - 60 <= peaks[unroll, 3]  # the rates themselves are a number a step
    assert peaks[None, 60] > 10 * peaks[None, 3]


def test_tesla_is_the_published_formula() -> None:
    """d/dX_i of g_i(X_i) . (2 lr (goal - theta_0) + 2 lr^2 sum_j g_j), every theta_i and the other gradients held constant."""
    net, x, y, _ = make_case()
    steps, rate = 7, 0.3
    picks = [torch.randperm(len(x), generator=generator("tesla", step))[:4] for step in range(steps)]
    start = parameters_of(net)
    goal = {name: value + 0.1 for name, value in start.items()}
    leaf, rates = x.clone().requires_grad_(), torch.full((steps,), rate, dtype=torch.float64).requires_grad_()
    descent = Descent(net, F.cross_entropy, picks)
    batch = Batch(leaf, y, torch.zeros(len(x), dtype=torch.int64))
    final = unroll(descent, start, batch, rates, exact=False)
    sum((final[name] - goal[name]).square().sum() for name in goal).backward()  # type: ignore[union-attr]

    theta, moments = dict(start), []
    for pick in picks:
        active = {name: value.clone().requires_grad_() for name, value in theta.items()}
        loss = F.cross_entropy(call_with(net, active, x[pick]), y[pick])
        moments.append((active, torch.autograd.grad(loss, list(active.values()))))
        theta = {name: value - rate * grad for (name, value), grad in zip(theta.items(), moments[-1][1])}
    total = [sum(parts) for parts in zip(*(grads for _, grads in moments))]
    expected = torch.zeros_like(x)
    for (active, _), pick in zip(moments, picks):
        points = x[pick].clone().requires_grad_()
        loss = F.cross_entropy(call_with(net, active, points), y[pick])
        grads = torch.autograd.grad(loss, list(active.values()), create_graph=True)
        vectors = [2 * rate * (goal[name] - start[name]) + 2 * rate**2 * g for name, g in zip(start, total)]
        value = sum(((g * v).sum() for g, v in zip(grads, vectors)), torch.zeros(()))
        expected = expected.index_add(0, pick, torch.autograd.grad(value, points)[0])
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected)
    by_rate = [
        -2 * sum((((theta[name] - goal[name]) * g).sum() for name, g in zip(start, grads)), torch.zeros(()))
        for _, grads in moments
    ]
    assert rates.grad is not None
    torch.testing.assert_close(rates.grad, torch.stack(by_rate))


def test_tesla_tends_to_the_gradient_as_the_rate_tends_to_zero() -> None:
    net, x, y, real = make_case()
    gaps = []
    for rate in (0.3, 0.03, 0.003):
        found = []
        for exact in (True, False):
            leaf = x.clone().requires_grad_()
            batch = Batch(leaf, y, torch.zeros(len(x), dtype=torch.int64))
            rates = torch.full((10,), rate, dtype=torch.float64)
            descent = Descent(net, F.cross_entropy, [None] * 10, momentum=0.5)
            final = unroll(descent, parameters_of(net), batch, rates, exact=exact)
            F.cross_entropy(call_with(net, final, real.inputs), real.targets).backward()
            assert leaf.grad is not None
            found.append(leaf.grad)
        gaps.append(float((found[0] - found[1]).norm() / found[0].norm()))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0


def test_linear_learner_by_hand() -> None:
    """One step on a linear least-squares learner has a gradient that fits on a napkin."""
    with isolated(0):
        net = MLP(1, 1, depth=0).double()
    start = {"head.weight": torch.tensor([[2.0]], dtype=torch.float64), "head.bias": torch.zeros(1).double()}
    x = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0]], dtype=torch.float64)
    descent = Descent(net, lambda out, goal: 0.5 * (out - goal).square().sum(), [None])
    final = unroll(descent, start, Batch(x, target, torch.zeros(1, dtype=torch.int64)), torch.tensor([0.1]).double())
    # w' = w - r (w x - t) x = 2 - 0.1 * 5 * 3; dw'/dx = -r (2 w x - t) = -0.1 * 11
    assert final["head.weight"].item() == pytest.approx(0.5)
    final["head.weight"].sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-1.1)
