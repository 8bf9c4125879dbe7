"""Feature regression against formulas written out by hand, and its pool of learners."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datastill.backbones.batch import Batch
from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.feature_regression import FeatureRegression, label_margin
from datastill.rng import generator

MODALITY = ToyModality(points=8)


def small() -> ToySummary:
    return MODALITY.summary([2, 2, 2], rng=generator("small"))


def test_feature_regression_by_hand() -> None:
    """With an almost vanishing ridge, and fewer points than features, it is the pseudo-inverse that interpolates."""
    objective = FeatureRegression(pool=1, max_age=1, real_size=None, ridge=1e-12, learner="mlp")
    summary = small()
    objective.start(MODALITY, summary)
    loss = float(objective.loss(generator(0)).detach())
    net = objective._pool.pick(generator(0))
    real, synthetic = MODALITY.real(), summary()
    with torch.no_grad():
        theirs, ours = net.embed(real.inputs).double(), net.embed(synthetic.inputs).double()
        weights = torch.linalg.pinv(ours) @ MODALITY.encode(synthetic.targets).double()
        expected = 0.5 * (theirs @ weights - MODALITY.encode(real.targets)).square().mean()
    assert loss == pytest.approx(float(expected), rel=1e-3)


def test_feature_regression_with_mirror_images_and_scaled_targets() -> None:
    """On a summary that holds the mirror images itself, and with targets a factor larger, the loss is that factor squared."""
    rng = generator("colours")
    images = ImageModality(torch.rand(12, 3, 8, 8, generator=rng), torch.arange(12) % 3, augmentation="flip")

    def loss(pixels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        objective = FeatureRegression(pool=1, real_size=None, ridge=1e-3, learner="mlp", **options)
        summary = images.summary([len(pixels) // 3] * 3, rng=generator(0), clamp=False)
        (parameter,) = summary.parameters()
        parameter.data.copy_(pixels)
        objective.start(images, summary)
        found = objective.loss(generator(0))
        (gradient,) = torch.autograd.grad(found, parameter)
        return found, gradient

    half = torch.randn(3, 3, 8, 8, generator=rng)
    whole = torch.stack([half, half.flip(3)], 1).flatten(0, 1)  # in order of classes
    expected, by_whole = loss(whole)
    found, by_half = loss(half, mirror=True, unit_outputs=12)
    assert torch.allclose(found, 4 * expected, rtol=1e-4)
    folded = by_whole[::2] + by_whole[1::2].flip(3)
    assert torch.allclose(by_half, 4 * folded, rtol=1e-3, atol=1e-3 * float(folded.abs().max()))
    assert not torch.allclose(found, loss(half, unit_outputs=12)[0])


def test_the_pool_trains_on_scaled_targets_and_augmented_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the squared error of outputs and scaled targets, on images as the named augmentation leaves them."""
    rng = generator("digits")
    images = ImageModality(torch.rand(12, 1, 8, 8, generator=rng), torch.arange(12) % 3, augmentation="crop")
    objective = FeatureRegression(
        pool=1, max_age=9, real_size=None, learner="mlp", inner_augment="frepo", unit_outputs=27
    )
    summary = images.summary([2] * 3, rng=generator(0))
    objective.start(images, summary)
    seen: list[Tensor] = []

    def train(batch: Batch, rng: torch.Generator) -> None:
        seen.append(batch.inputs)

    monkeypatch.setattr(objective._pool, "train", train)
    objective._pool.pick(generator(0))
    for number in range(8):
        objective.after_step(generator(number))
    assert sum(not torch.equal(inputs, summary().inputs) for inputs in seen) >= 4
    outputs = torch.randn(6, 3, generator=rng)
    expected = 0.5 * (outputs - 3 * images.encode(summary().targets)).square().sum(1).mean()
    assert torch.allclose(objective._pool._error(outputs, summary().targets), expected)


def test_label_margin_by_hand() -> None:
    labels = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25]], requires_grad=True)
    margin = label_margin(labels)
    assert float(margin.detach()) == pytest.approx(-(1 / 3 + 0.05) / 2)
    margin.backward()
    assert labels.grad is not None
    assert labels.grad.tolist() == [[0, 0, 0], [-0.5, 0.5, 0]]  # a label that is clear enough is left alone


def test_the_pool_has_all_ages_and_replaces_the_old() -> None:
    objective = FeatureRegression(pool=4, max_age=8, inner_lr=0.1, real_size=4)
    objective.start(MODALITY, small())
    pool = objective._pool
    assert pool.ages == [0, 2, 4, 6]
    net = pool.pick(generator(1))
    now, before = pool._now, [value.clone() for value in net.parameters()]
    pool.ages[now] = 7
    objective.after_step(generator(2))
    assert pool.ages[now] == 8
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    objective.after_step(generator(3))
    assert pool.ages[now] == 0
    assert pool._learners[now] is not net


def test_learners_grow_older_by_several_steps_at_a_visit() -> None:
    objective = FeatureRegression(pool=2, max_age=6, inner_steps=4, real_size=4)
    objective.start(MODALITY, small())
    pool = objective._pool
    pool.pick(generator(1))
    now = pool._now
    pool.ages[now] = 0
    for expected in (4, 0, 4):  # 4; 5, 6, replaced, so that the next loss meets a fresh one; 4
        objective.after_step(generator(2))
        assert pool.ages[now] == expected
    assert pool.ages[1 - now] == [0, 3][1 - now]


@pytest.mark.parametrize("classes", [3, 6])
def test_the_margin_stands_beside_the_error_summed_over_outputs(classes: int) -> None:
    """As published: 1/2 sum over outputs, and the margin times one. Here both are divided by the number of outputs."""
    rng = generator("labels")
    images = ImageModality(torch.rand(24, 1, 8, 8, generator=rng), torch.arange(24) % classes)

    def loss(margin: float) -> float:
        objective = FeatureRegression(pool=1, real_size=None, ridge=1e-3, learner="mlp", margin=margin)
        summary = images.summary([2] * classes, rng=generator(0), labels="signed")
        objective.start(images, summary)
        found = float(objective.loss(generator(0)).detach())
        labels.append(summary().targets.detach())
        return found

    labels: list[Tensor] = []
    gap = loss(1.0) - loss(0.0)
    assert gap == pytest.approx(float(label_margin(labels[0])) / classes, rel=1e-4)
    assert gap != 0


def test_a_step_has_at_most_so_many_real_points() -> None:
    modality = ToyModality(points=9)
    summary = modality.summary([2, 2, 2], rng=generator("limit"))
    estimates = []
    for size, limit, points in ((None, 12, 12), (7, 12, 12), (7, None, 21), (4, 12, 12), (3, 12, 9)):
        objective = FeatureRegression(learner="mlp", pool=1, real_size=size, real_limit=limit)
        objective.start(modality, summary)
        batch = objective._real(generator(1))
        assert torch.bincount(batch.groups).tolist() == [points // 3] * 3
        assert torch.isfinite(objective.loss(generator(2)))
        estimates.append(objective.footprint(modality, summary))
    assert estimates[0] == estimates[1] == estimates[3] < estimates[2]
    assert estimates[4] < estimates[3]
    with pytest.raises(InputError, match="real_limit must be an integer of at least 1"):
        FeatureRegression(real_limit=0)
