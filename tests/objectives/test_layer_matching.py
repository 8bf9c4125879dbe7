"""Layer matching against sums written out by hand, and its loops against scripted accuracies."""

from __future__ import annotations

import math

import pytest
import torch

from datastill.backbones.batch import Batch
from datastill.backbones.mlp import MLP
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.layer_matching import LayerMatching
from datastill.rng import generator

MODALITY = ToyModality(points=6)


def test_alignment_and_discrimination_by_hand() -> None:
    summary = MODALITY.summary([2, 0, 3], rng=generator(0))
    objective = LayerMatching(learner="mlp", real_size=None, shallow_weight=0.3, deep_weight=1.5, discrimination=0.2)
    objective.start(MODALITY, summary)
    net = MLP(5, 3, depth=3, width=4)
    objective._net = net
    found = float(objective.loss(generator(1)).detach())
    real, points = MODALITY.real(), summary.points.detach()
    ours = {0: points[:2], 2: points[2:]}
    expected = 0.0
    for depth, weight in ((0, 0.3), (1, 0.3), (2, 1.5)):
        for group in (0, 2):
            theirs = net.layers(real.inputs[real.groups == group])[depth]
            gap = theirs.mean(0) - net.layers(ours[group])[depth].mean(0)
            expected += weight * float(gap.square().sum())
    centres = {group: net.embed(ours[group]).mean(0) for group in (0, 2)}
    for group in (0, 2):  # group 1 has no synthetic points, so its real points have no right answer
        for feature in net.embed(real.inputs[real.groups == group]):
            logits = {other: float(feature @ centre) for other, centre in centres.items()}
            expected -= 0.2 * (logits[group] - math.log(sum(math.exp(value) for value in logits.values())))
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_summary_and_not_the_network() -> None:
    summary = MODALITY.summary([2, 2, 2], rng=generator(0))
    objective = LayerMatching(real_size=None)
    objective.start(MODALITY, summary)
    objective.loss(generator(1)).backward()
    assert objective._net is not None
    assert all(value.grad is None for value in objective._net.parameters())
    assert summary.points.grad is not None


class Scripted(LayerMatching):
    """Accuracies as they are written down."""

    script: list[float]

    def _accuracy(self, rng: torch.Generator) -> float:
        return self.script.pop(0)


def started(script: list[float], **settings: float) -> Scripted:
    objective = Scripted(learner="linear", real_size=None, **settings)  # type: ignore[arg-type]
    objective.script = script
    objective.start(MODALITY, MODALITY.summary([2, 2, 2], rng=generator(0)))
    objective.loss(generator(0))
    return objective


def test_training_stops_when_the_accuracy_has_moved() -> None:
    objective = started([0.1, 0.50, 0.51, 0.52, 0.56, 0.9], window=4)
    objective.after_step(generator(0))
    assert objective.script == [0.9]  # one after the step; then 0.50 ... 0.56 moved by more than 0.03
    assert objective._accuracies == [0.1]


def test_training_makes_a_window_of_epochs_at_least() -> None:
    objective = started([0.1, 0.2, 0.8, *[0.8] * 8, 0.9])
    objective.after_step(generator(0))
    assert objective.script == [0.9]  # moved at the second epoch, and looked at when there were ten


def test_training_looks_back_a_window_and_no_further() -> None:
    slow = [0.1, *(0.5 + 0.01 * epoch for epoch in range(9)), 0.99]
    objective = started(list(slow), window=3)
    objective.after_step(generator(0))
    assert objective.script == []  # 0.02 within any three epochs, until the jump


def test_training_that_never_moves_ends() -> None:
    objective = started([0.1, *[0.5] * 7, 0.9], max_epochs=7)
    objective.after_step(generator(0))
    assert objective.script == [0.9]


@pytest.mark.parametrize(
    ("accuracies", "settled"),
    [([0.5, 0.51, 0.53], True), ([0.5, 0.51, 0.55], False), ([0.1, 0.5, 0.51, 0.53], True), ([0.5, 0.5], False)],
)
def test_a_network_is_replaced_when_its_accuracy_settles(accuracies: list[float], settled: bool) -> None:
    objective = started([accuracies[-1], 0.0, 1.0, 1.0], window=3)
    objective._accuracies = accuracies[:-1]
    objective.after_step(generator(0))
    assert (objective._net is None) == settled


def test_a_network_is_replaced_in_the_end() -> None:
    objective = started([0.1, 0.9, 0.1, 0.9], max_matches=2, window=2)
    objective.after_step(generator(0))
    assert objective._net is not None
    objective.after_step(generator(1))
    assert objective._net is None


def test_each_group_has_an_augmentation_of_its_own_and_the_statistics_of_real_points() -> None:
    images = ImageModality(torch.rand(24, 1, 8, 8, generator=generator("images")), torch.arange(24) % 2)
    drawn: list[dict[int, int]] = []
    objective = LayerMatching(learner="convnet-w4-bn", real_size=4, query_size=4, max_epochs=1, augment=True)
    objective.start(images, images.summary([2, 2], rng=generator(0)))
    match = objective._match

    def noted(batch: Batch, seeds: dict[int, int]) -> Batch:
        drawn.append(dict(seeds))
        return match(batch, seeds)

    objective._match = noted  # type: ignore[assignment]
    objective.loss(generator(1))
    assert drawn[0] == drawn[1]  # siamese: real and synthetic points of a class by the same parameters
    assert drawn[0][0] != drawn[0][1]
    assert objective._net is not None
    norm = next(part for part in objective._net.modules() if isinstance(part, torch.nn.BatchNorm2d))
    assert float(norm.running_mean.abs().sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window must be an integer of at least 2"),
        ({"match_tolerance": 1.5}, r"match_tolerance must be a number in \[0, 1\]"),
        ({"discrimination": -1.0}, "discrimination must be a number of at least 0"),
    ],
)
def test_refusals(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerMatching(**settings)  # type: ignore[arg-type]
