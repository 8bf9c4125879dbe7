"""AdaBelief and LAMB against their papers' formulas and PyTorch's Adam."""

from __future__ import annotations

import math

import pytest
import torch

from datastill.backbones.adaptive import LAMB, AdaBelief
from datastill.outer import OuterOptimizer
from datastill.rng import generator

SLOPES = [0.5, -0.25, 0.75, 0.75]


def steps_of(kind: type, start: float, **options: float) -> list[float]:
    """Where a single number is after each of SLOPES."""
    place = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = kind([place], **options)
    found = []
    for slope in SLOPES:
        place.grad = torch.full_like(place, slope)
        optimizer.step()
        found.append(place.item())
    return found


def test_adabelief_steps_by_the_paper() -> None:
    place, mean, spread, expected = 2.0, 0.0, 0.0, []
    for age, slope in enumerate(SLOPES, 1):
        mean = 0.9 * mean + 0.1 * slope
        spread = 0.999 * spread + 0.001 * (slope - mean) ** 2 + 1e-16
        place -= 0.1 * mean / (1 - 0.9**age) / (math.sqrt(spread / (1 - 0.999**age)) + 1e-16)
        expected.append(place)
    assert steps_of(AdaBelief, 2.0, lr=0.1) == pytest.approx(expected, rel=1e-12)


def test_lamb_goes_where_adam_goes_as_far_as_the_tensor_is_long() -> None:
    rng = generator(0)
    start = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    lamb, adam = LAMB([ours], lr=0.01), torch.optim.Adam([theirs], lr=1.0)
    for _ in range(3):
        before = ours.detach().clone()
        theirs.data.copy_(before)
        ours.grad = torch.randn(3, 4, generator=rng, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        lamb.step()
        adam.step()
        moved, direction = ours.detach() - before, theirs.detach() - before
        assert float(moved.norm()) == pytest.approx(0.01 * float(before.norm()), rel=1e-9)
        torch.testing.assert_close(moved / moved.norm(), direction / direction.norm(), rtol=1e-6, atol=1e-7)


def test_lamb_moves_zeros_as_adam_does() -> None:
    assert steps_of(LAMB, 0.0, lr=0.1)[0] == pytest.approx(steps_of(torch.optim.Adam, 0.0, lr=0.1)[0], rel=1e-9)


@pytest.mark.parametrize("name", ["adabelief", "lamb"])
def test_a_run_steps_with_them_by_name_and_goes_on_from_their_state(name: str) -> None:
    def optimizer(points: torch.nn.Parameter) -> OuterOptimizer:
        return OuterOptimizer(
            {"points": [points]},
            optimizer=name,
            lr=0.1,
            momentum=0.8,
            schedule="constant",
            alternate=None,
            clip=None,
            steps=6,
        )

    def advance(outer: OuterOptimizer, steps: range) -> None:
        for step in steps:
            outer.prepare(step)
            (outer.parameters[0] - 3).square().sum().backward()
            outer.step(step)

    whole = torch.nn.Parameter(torch.ones(2))
    advance(optimizer(whole), range(6))
    halves = torch.nn.Parameter(torch.ones(2))
    first = optimizer(halves)
    assert first.optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    advance(first, range(3))
    second = optimizer(halves)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    advance(second, range(3, 6))
    assert torch.equal(whole, halves)
    assert (whole > 1).all()
