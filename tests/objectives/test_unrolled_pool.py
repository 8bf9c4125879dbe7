"""Unrolled training that goes on from one outer step to the next, against PyTorch's optimiser and plain autograd."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import call_with, parameters_of
from datastill.backbones.batch import Batch
from datastill.backbones.mlp import MLP
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.unroll import Descent, continued, unroll
from datastill.rng import generator, isolated

MODALITY = ToyModality(points=8)


def case() -> tuple[MLP, Batch]:
    rng = generator("case")
    with isolated(3):
        net = MLP(4, 3, depth=2, width=8).double()
    return net, Batch(torch.randn(6, 4, generator=rng, dtype=torch.float64), torch.arange(6) % 3, torch.arange(6) % 3)


def trained_by_torch(net: torch.nn.Module, batch: Batch, steps: int, momentum: float) -> list[Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(batch.inputs), batch.targets).backward()
        optimizer.step()
    return [value.detach().clone() for value in net.parameters()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_halves_are_one_training(momentum: float) -> None:
    net, batch = case()
    start = {name: value.detach().clone() for name, value in parameters_of(net).items()}
    rates = torch.full((5,), 0.1, dtype=torch.float64)
    halfway, velocity = continued(Descent(net, F.cross_entropy, [None] * 4, momentum), start, batch, rates)
    given = [value.clone() for value in velocity.values()]
    found, _ = continued(Descent(net, F.cross_entropy, [None] * 5, momentum), halfway, batch, rates, velocity=velocity)
    assert all(torch.equal(one, other) for one, other in zip(given, velocity.values()))  # left as it was
    for ours, oracle in zip(found.values(), trained_by_torch(net, batch, 9, momentum)):
        assert torch.allclose(ours, oracle, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_a_second_half_takes_its_beginning_as_constant() -> None:
    """By finite differences of the second half alone."""
    net, batch = case()
    rates = torch.full((4,), 0.1, dtype=torch.float64)
    descent = Descent(net, F.cross_entropy, [None] * 4, 0.9)
    halfway, velocity = continued(descent, parameters_of(net), batch, rates)

    def outcome(inputs: Tensor) -> Tensor:
        points = Batch(inputs, batch.targets, batch.groups)
        final, _ = continued(descent, halfway, points, rates, velocity=velocity)
        return call_with(net, final, torch.ones(1, 4, dtype=torch.float64)).square().sum()

    leaf = batch.inputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(outcome, (leaf,), eps=1e-6, atol=1e-6)
    whole = unroll(
        Descent(net, F.cross_entropy, [None] * 8, 0.9),
        parameters_of(net),
        Batch(leaf, batch.targets, batch.groups),
        torch.full((8,), 0.1, dtype=torch.float64),
    )
    through_all = torch.autograd.grad(
        call_with(net, whole, torch.ones(1, 4, dtype=torch.float64)).square().sum(), leaf
    )[0]
    assert not torch.allclose(through_all, torch.autograd.grad(outcome(leaf), leaf)[0], rtol=1e-2)


def started(**options: Any) -> UnrolledTraining:
    objective = UnrolledTraining(inner_lr=0.1, momentum=0.9, real_size=None, **options)
    objective.start(MODALITY, MODALITY.summary([2, 2, 2], rng=generator("small")), seed=1)
    return objective


def test_learners_of_the_pool_train_on_from_step_to_step() -> None:
    """Three outer steps of a pool of one are the loss after 3, 6 and 9 steps of PyTorch's SGD."""
    objective = started(pool=1, max_age=100, inner_steps=3)
    net = MODALITY.learner(rng=generator(0))
    assert objective._pool is not None
    parameters, _ = objective._pool.pick(generator(0))
    net.load_state_dict({**net.state_dict(), **parameters})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    points, real = objective.summary().detach(), MODALITY.real()
    for step in range(3):
        found = objective.loss(generator(step))
        for _ in range(3):
            optimizer.zero_grad()
            MODALITY.loss(net(points.inputs), points.targets).backward()
            optimizer.step()
        assert float(found.detach()) == pytest.approx(MODALITY.loss(net(real.inputs), real.targets).item(), rel=1e-4)
        objective.after_step(generator(step))


def test_a_loss_alone_leaves_the_pool_where_it_is() -> None:
    objective = started(pool=2, max_age=100, inner_steps=3)
    first = objective.loss(generator(7)).detach()
    assert torch.equal(objective.loss(generator(7)).detach(), first)
    objective.after_step(generator(0))
    assert not torch.equal(objective.loss(generator(7)).detach(), first)


def test_ages_are_spread_and_the_old_begin_again() -> None:
    objective = started(pool=4, max_age=8, inner_steps=3)
    pool = objective._pool
    assert pool is not None
    assert pool.ages == [0, 2, 4, 6]
    ages: list[list[int]] = []
    for step in range(40):
        objective.loss(generator(step))
        objective.after_step(generator(step))
        ages.append(list(pool.ages))
    assert max(max(now) for now in ages) < 8
    assert all(any(after < before for before, after in pairwise(column)) for column in zip(*ages))  # all were replaced
    assert {age for now in ages[20:] for age in now} == {0, 3, 6}
    fresh = pool.ages.index(0)
    assert all(not value.any() for value in pool.state_dict()["velocities"][fresh].values())


def test_a_pool_excludes_a_rate_for_each_step() -> None:
    with pytest.raises(InputError, match="leave one of the two out"):
        UnrolledTraining(pool=2, lr_per_step=True)


@pytest.mark.parametrize(("field", "value"), [("pool", 0), ("max_age", 0)])
def test_refused_at_the_door(field: str, value: int) -> None:
    with pytest.raises(InputError, match=field):
        UnrolledTraining(**{field: value})  # type: ignore[arg-type]
