"""Ordinary training against plain loops in PyTorch, written as the papers' programs write them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill.backbones.batch import Batch
from datastill.backbones.mlp import MLP
from datastill.backbones.training import Centred, Protocol, learning_rate, train
from datastill.errors import InputError
from datastill.rng import generator, isolated


def data(points: int = 12) -> Batch:
    rng = generator("training data")
    inputs = torch.randn(points, 5, generator=rng)
    labels = torch.randint(3, (points,), generator=rng)
    return Batch(inputs, labels, labels)


def net() -> MLP:
    with isolated(0):
        return MLP(5, 3, depth=1, width=8)


def test_halves_are_those_of_the_published_program() -> None:
    """One pass more than asked for, a tenth of the rate after pass E // 2 + 1, with a new optimiser."""
    passes, batch = 10, data()
    theirs = net()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(passes + 1):
        optimizer.zero_grad()
        F.cross_entropy(theirs(batch.inputs), batch.targets).backward()
        optimizer.step()
        if number == passes // 2 + 1:
            optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    protocol = Protocol(
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        schedule="drop",
        restart=True,
        epochs=passes + 1,
        drops=((passes // 2 + 2) / (passes + 1),),
    )
    ours = train(net(), batch, loss=F.cross_entropy, protocol=protocol, seed=0)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("epochs", "sizes"), [(2, [5, 5, 2, 5, 5, 2]), (None, [5, 5, 5, 5])])
def test_passes_end_with_a_smaller_batch_only_where_they_are_counted(epochs: int | None, sizes: list[int]) -> None:
    seen = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    protocol = Protocol(steps=4, batch_size=5, epochs=epochs)
    train(net(), data(), loss=loss, protocol=protocol, seed=0)
    assert seen == sizes
    assert protocol.total_steps(12) == len(sizes)


def test_every_point_is_seen_once_a_pass() -> None:
    marked = Batch(torch.arange(12.0)[:, None].expand(12, 5), torch.zeros(12, dtype=torch.int64), torch.zeros(12))
    seen: list[float] = []

    def note(batch: Batch, seed: int) -> Batch:
        seen.extend(batch.inputs[:, 0].tolist())
        return batch

    protocol = Protocol(batch_size=5, epochs=2, augment=True)
    train(net(), marked, loss=F.cross_entropy, protocol=protocol, seed=0, augment=note)
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_rates() -> None:
    warm = Protocol(lr=2.0, warmup=4, floor=0.1)
    assert [learning_rate(warm, step, 10) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate(warm, 10, 10) == pytest.approx(0.2)
    assert learning_rate(warm, 7, 10) == pytest.approx(1.1)  # half of the cosine
    twice = Protocol(lr=1.0, schedule="drop", drops=(2 / 3, 5 / 6), drop_factor=0.2)
    assert [learning_rate(twice, step, 12) for step in (7, 8, 9, 10, 11)] == pytest.approx([1, 0.2, 0.2, 0.04, 0.04])
    published = Protocol(lr=1.0, schedule="drop", drops=(502 / 1001,))
    assert [learning_rate(published, step, 1001) for step in (501, 502)] == pytest.approx([1, 0.1])


def test_centred_learner_begins_at_zero_and_moves_by_the_same_gradients() -> None:
    plain, batch = net(), data()
    centred = Centred(copy.deepcopy(plain))
    assert not centred(batch.inputs).any()
    targets = F.one_hot(batch.targets, 3).float()
    before = [value.detach().clone() for value in centred.start.parameters()]

    def squared(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 0.5 * (outputs - targets).square().sum(1).mean()

    train(centred, batch, loss=squared, protocol=Protocol(3, "sgd", schedule="constant", batch_size=None), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, centred.start.parameters()))
    shift = plain(batch.inputs).detach()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (plain(batch.inputs) - shift - targets).square().sum(1).mean()).backward()
        optimizer.step()
    assert torch.allclose(centred(batch.inputs), plain(batch.inputs) - shift, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "rmsprop"}, r"Unknown optimizer 'rmsprop'.* Known: adam, adamw, sgd\."),
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"schedule": "steps"}, r"Unknown schedule 'steps'.* Known: constant, cosine, drop\."),
        ({"loss": "squares"}, "Unknown loss 'squares'. Did you mean 'squared'"),
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"steps": 1.5}, "steps must be an integer of at least 0, got 1.5"),
        ({"epochs": -3}, "epochs must be an integer of at least 0, got -3"),
        ({"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"validate_every": 0}, "validate_every must be an integer of at least 1, got 0"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": -0.1}, "lr must be a positive number, got -0.1"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"lr": float("inf")}, "lr must be a positive number, got inf"),
        ({"lr": "0.1"}, "lr must be a positive number, got '0.1'"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), got 1.0"),
        ({"weight_decay": -1e-4}, "weight_decay must be a number of at least 0, got -0.0001"),
        ({"floor": 2}, r"floor must be a number in \[0, 1\], got 2"),
        ({"drops": (0.5, 1.0)}, r"Each of drops must be a number in \(0, 1\), got 1.0"),
        ({"drops": (0,)}, r"Each of drops must be a number in \(0, 1\), got 0"),
        ({"drops": 0.5}, "drops must be a tuple of parts of the run"),
        ({"drops": (), "schedule": "drop"}, "drops must be a tuple of parts of the run"),
        ({"drop_factor": 0}, "drop_factor must be a positive number, got 0"),
        ({"target_scale": -1.0}, "target_scale must be a positive number, got -1.0"),
        ({"restart": 1}, "restart must be True or False, got 1"),
        ({"augment": None}, "augment must be True, False or the name of an augmentation, got None"),
    ],
)
def test_what_no_training_can_follow_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Protocol(**given)
    with pytest.raises(InputError, match=said):
        dataclasses.replace(Protocol(), **given)


def test_the_ends_of_what_is_allowed() -> None:
    assert Protocol(steps=0, epochs=0, warmup=0, batch_size=None, momentum=0, floor=1, drops=()).total_steps(5) == 0
    before = [value.clone() for value in net().parameters()]
    left = train(net(), data(), loss=F.cross_entropy, protocol=Protocol(steps=0), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, left.parameters()))
