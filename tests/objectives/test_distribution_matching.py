"""The discrepancies of distribution matching, and the learners that it meets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill import memory
from datastill.checks.toy import ToyModality
from datastill.modalities.image import ImageModality
from datastill.objectives import distribution_matching, in_parts
from datastill.objectives.distribution_matching import DistributionMatching, gaussian_discrepancy
from datastill.rng import generator

MODALITY = ToyModality(points=7)


def by_pairs(a: Tensor, b: Tensor) -> float:
    """The definition, one pair at a time."""
    width = sum(float((x - y).square().sum()) for x, y in itertools.permutations(b, 2)) / (len(b) * (len(b) - 1))

    def kernel(x: Tensor, y: Tensor) -> float:
        gap = float((x - y).square().sum())
        return sum(math.exp(-gap / (scale * width)) for scale in (0.25, 0.5, 1, 2, 4)) / 5

    def average(left: Tensor, right: Tensor) -> float:
        return sum(kernel(x, y) for x in left for y in right) / (len(left) * len(right))

    return average(a, a) + average(b, b) - 2 * average(a, b)


def test_gaussian_discrepancy_by_pairs() -> None:
    rng = generator("mmd")
    for size in (1, 4):
        a, b = (torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in (size, 6))
        assert float(gaussian_discrepancy(a, b)) == pytest.approx(by_pairs(a, b), rel=1e-9)
    assert float(gaussian_discrepancy(b, b.flip(0))) == pytest.approx(0, abs=1e-12)
    assert float(gaussian_discrepancy(a, torch.zeros(3, 3).double())) > 0  # equal points have no width of their own


def test_gaussian_discrepancy_sees_what_means_do_not() -> None:
    """Two sets of equal mean and unequal spread."""
    b = torch.tensor([[-1.0], [1.0], [-2.0], [2.0]])
    narrow = torch.tensor([[0.0], [0.0]]).requires_grad_()
    assert torch.equal(narrow.mean(0), b.mean(0))
    assert float(gaussian_discrepancy(narrow, b).detach()) > 0.1
    apart = torch.tensor([[-1.5], [1.5]]).requires_grad_()
    assert float(gaussian_discrepancy(apart, b).detach()) < float(gaussian_discrepancy(narrow, b).detach())


def test_gaussian_matching_is_its_sum_over_groups() -> None:
    summary = MODALITY.summary([2, 0, 3], rng=generator(0))
    objective = DistributionMatching(learner="linear", real_size=None, discrepancy="gaussian")
    objective.start(MODALITY, summary)
    real, points = MODALITY.real().inputs.double(), summary.points.detach().double()
    expected = by_pairs(points[:2], real[:7]) + by_pairs(points[2:], real[14:])
    assert float(objective.loss(generator(0)).detach()) == pytest.approx(expected, rel=1e-4)


def test_class_loss_is_weighed_by_the_accuracy_on_real_points() -> None:
    summary = MODALITY.summary([1, 3, 2], rng=generator(0))
    found = {}
    for weight in (0.0, 0.5):
        objective = DistributionMatching(real_size=None, class_loss=weight)
        objective.start(MODALITY, summary)
        found[weight] = float(objective.loss(generator(3)).detach())
    net, real = objective._net, MODALITY.real()
    assert net is not None
    accuracy = float((net(real.inputs).argmax(1) == real.targets).double().mean())
    loss = sum(  # each class counts the same, whatever it has of points
        float(F.cross_entropy(net(points), torch.full((len(points),), group)).detach())
        for group, points in enumerate(summary.points.split([1, 3, 2]))
    )
    assert 0 < accuracy < 1
    assert found[0.5] - found[0.0] == pytest.approx(0.5 * accuracy * loss, rel=1e-4)


def test_learners_of_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(*args: object, protocol: object, **rest: object) -> None:
        seen.append(protocol.steps)  # type: ignore[attr-defined]

    monkeypatch.setattr(distribution_matching, "train", noted)
    objective = DistributionMatching(real_size=2, warmup=3, spread_warmup=True)
    objective.start(MODALITY, MODALITY.summary([1, 1, 1], rng=generator(0)))
    for step in range(60):
        objective.loss(generator(step))
        objective.after_step(generator(step))
    assert set(seen) == {1, 2, 3}
    assert 60 - len(seen) > 5  # those that were not trained at all


@pytest.mark.parametrize(
    "settings",
    [{"weighting": "share"}, {"discrepancy": "gaussian"}, {"class_loss": 0.5}],
    ids=["mean", "gaussian", "class loss"],
)
def test_groups_in_parts_are_those_of_one_graph(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those with a loss of all points together."""
    labels = torch.tensor([0] * 6 + [1] * 9 + [2] * 7 + [3] * 5)
    pixels = torch.rand(len(labels), 1, 8, 8, generator=generator("parts"), dtype=torch.float64)
    modality, results = ImageModality(pixels, labels).to(dtype=torch.float64), []
    for room, parts in ((2**40, [[0, 1, 3]]), (1, [[0], [1], [3]])):
        monkeypatch.setattr(in_parts, "_ROOM", room)
        summary = modality.summary([1, 3, 0, 2], rng=generator("summary"))
        objective = DistributionMatching(learner="convnet-d2-w12", real_size=None, **settings)
        objective.start(modality, summary)
        together = "class_loss" in settings
        assert [list(part) for part in objective._parts] == ([[0, 1, 3]] if together else parts)
        loss = 3 * objective.loss(generator("loss"))
        parameters = [value for values in summary.parameter_groups().values() for value in values]
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for whole, cut in zip(*results):
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)


def test_the_estimate_does_not_grow_with_a_summary_in_parts() -> None:
    modality = ImageModality(torch.rand(60, 1, 16, 16, generator=generator("many")), torch.arange(60) % 20)
    found = []
    for count in (1, 2):
        objective, summary = DistributionMatching(), modality.summary([count] * 20, rng=generator("summary"))
        with memory.limit(2**22):
            found.append(objective.footprint(modality, summary))
            objective.start(modality, summary)
        assert len(objective._parts) > count
    assert found[1] < 1.2 * found[0]
    assert DistributionMatching().footprint(modality, summary) > 2 * found[1]
