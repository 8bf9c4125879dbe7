"""Dropout: the share that is dropped, the mean that stays, and the gradient."""

from __future__ import annotations

import pytest
import torch

from datastill.backbones.dropout import dropout
from datastill.rng import isolated


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_share_and_mean(rate: float) -> None:
    values = torch.full((1000, 333), 2.0, requires_grad=True)
    with isolated(1):
        dropped = dropout(values, rate, training=True)
    share = float((dropped == 0).double().mean())
    assert share == pytest.approx(round(256 * rate) / 256, abs=3e-3)
    assert float(dropped.detach().mean()) == pytest.approx(2.0, abs=2e-2)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, dropped.detach() / 2)


def test_neighbours_are_independent() -> None:
    """Units that share a drawn word are dropped independently of one another."""
    with isolated(2):
        kept = (dropout(torch.ones(40000, 8), 0.5, training=True) > 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.03


def test_outside_of_training_nothing_happens() -> None:
    values = torch.randn(3, 4)
    assert dropout(values, 0.5, training=False) is values
    assert dropout(values, 0.0, training=True) is values


def test_seeded_by_the_global_generator() -> None:
    draws = []
    for _ in range(2):
        with isolated(7):
            draws.append(dropout(torch.ones(50), 0.5, training=True))
    assert torch.equal(*draws)
