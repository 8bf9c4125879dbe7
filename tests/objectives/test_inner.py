"""What networks see: which points share an augmentation, and of which points batch norms have the statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from datastill.backbones.batch import Batch, map_tensors
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.inner import RealNorms, step_augmentation
from datastill.objectives.layer_matching import LayerMatching
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator


def modality(augmentation: str = "crop") -> ImageModality:
    pixels = torch.rand(60, 1, 16, 16, generator=generator("pixels"))
    return ImageModality(pixels, torch.arange(60) % 3, augmentation=augmentation)


def alike(count: int = 12) -> Batch:
    """One image many times, of three classes in turn."""
    image = torch.rand(1, 1, 16, 16, generator=generator("one"))
    groups = torch.arange(count) % 3
    return Batch(image.repeat(count, 1, 1, 1), groups, groups)


def kinds(images: torch.Tensor) -> int:
    return len(images.flatten(1).unique(dim=0))


def test_each_group_has_an_augmentation_of_its_own() -> None:
    images, seeds = modality(), {0: 3, 1: 1, 2: 4}
    found = images.group_augmenter(True)(alike(), seeds)
    assert found.groups.tolist() == sorted(alike().groups.tolist())
    for group, seed in seeds.items():
        expected = images.augment(alike().of_group(group), seed)
        assert torch.equal(found.of_group(group).inputs, expected.inputs)
        assert torch.equal(found.of_group(group).targets, expected.targets)
        assert kinds(found.of_group(group).inputs) == 1
    assert kinds(found.inputs) > 1
    some = images.group_augmenter(True)(alike(), {2: 4, 0: 3})
    assert some.groups.tolist() == [2] * 4 + [0] * 4  # those groups alone
    assert torch.equal(some.of_group(0).inputs, found.of_group(0).inputs)


class Turned(ToyModality):
    """Whose points are multiplied by a number that the seed decides. There have to be some."""

    def augment(self, batch: Batch, seed: int) -> Batch:
        assert len(batch)
        return dataclasses.replace(batch, inputs=map_tensors(lambda points: (1 + seed) * points, batch.inputs))


def test_so_it_has_of_any_modality() -> None:
    augment, batch = Turned().group_augmenter(True), Turned().real()
    found = augment(batch, {2: 7, 0: 5})
    assert torch.equal(found.of_group(0).inputs, 6 * batch.of_group(0).inputs)
    assert torch.equal(found.of_group(2).inputs, 8 * batch.of_group(2).inputs)
    assert not len(found.of_group(1))
    some = batch.take((batch.groups == 1).nonzero().squeeze(1))
    assert torch.equal(augment(some, {0: 4, 1: 1}).inputs, 2 * some.inputs)  # groups may be without points
    assert not len(augment(some, {0: 4}))
    nested = augment(dataclasses.replace(batch, inputs=(batch.inputs,)), {2: 7, 0: 5})
    assert torch.equal(nested.inputs[0], 8 * batch.inputs)  # cannot be cut and joined: all by the first seed
    with pytest.raises(InputError, match="have no augmentation 'idc'"):
        Turned().group_augmenter("idc")


def test_inner_steps_augment_each_point_by_itself() -> None:
    augment = step_augmentation(modality(), 3, generator(0))
    first, second = augment(alike(), 0).inputs, augment(alike(), 1).inputs
    assert kinds(first) > 3
    assert not torch.equal(first, second)
    assert torch.equal(first, augment(alike(), 0).inputs)  # so that a reverse pass meets the same


@pytest.mark.parametrize(
    "objective",
    [
        lambda: GradientMatching(learner="mlp", outer_loops=2, inner_epochs=1, real_size=4, augment=True),
        lambda: LayerMatching(learner="mlp", real_size=4, query_size=4, augment=True),
        lambda: UnrolledTraining(learner="mlp", inner_steps=2, real_size=4, augment=True),
        lambda: TrajectoryMatching(
            learner="mlp", experts=1, expert_interval=2, max_start=1, inner_steps=2, augment=True
        ),
    ],
    ids=["gradient-matching", "layer-matching", "unrolled", "trajectory-matching"],
)
def test_training_never_shares_an_augmentation(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points that are trained on go through `augment_each`."""
    images, trained = modality(), []
    ordinary = ImageModality.augment_each

    def noted(self: ImageModality, batch: Batch, seed: int) -> Batch:
        trained.append(len(batch))
        return ordinary(self, batch, seed)

    monkeypatch.setattr(ImageModality, "augment_each", noted)
    one: Objective = objective()
    summary = images.summary([2, 2, 2], rng=generator(0))
    one.start(images, summary, seed=0)
    one.loss(generator(1)).backward()
    one.after_step(generator(2))
    assert trained
    if isinstance(one, UnrolledTraining):
        assert trained[:3] == [6, 6, 12]  # two inner steps, and the real points, which nothing is matched with


def test_idc_matches_under_colour_and_cutout_and_one_more() -> None:
    given, images = alike(), modality("flip")
    mixed = []
    for seed in range(8):
        seeds = dict.fromkeys(range(3), seed)
        found = images.group_augmenter("idc-match")(given, seeds)
        assert kinds(found.inputs) == 1  # the same of all
        assert bool((found.inputs == 0).any())  # always a cutout
        assert torch.equal(found.targets, given.targets.sort().values)
        whole = found.inputs != 0
        assert not torch.equal(found.inputs[whole], given.inputs[whole])  # always another colour
        assert (
            images.group_augmenter("idc")(given, seeds).targets.tolist() == found.targets.tolist()
        )  # nothing is mixed
        mixed.append(images.augmenter("idc")(given, seed).targets.is_floating_point())
    assert any(mixed)  # as it is for training


def test_a_named_augmentation_of_matching_is_used_and_an_unknown_one_refused() -> None:
    images, losses = modality("none"), []
    for augment in (False, True, "idc-match"):
        summary = images.summary([2, 2, 2], rng=generator(0))
        objective = GradientMatching(learner="mlp", outer_loops=1, real_size=4, augment=augment)
        objective.start(images, summary, seed=0)
        losses.append(float(objective.loss(generator(1)).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # this modality's own augmentation is none
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    with pytest.raises(InputError, match="Did you mean 'idc-match'"):
        GradientMatching(augment="idc-mtach").start(images, images.summary([2, 2, 2], rng=generator(0)))


@pytest.mark.parametrize("kind", [GradientMatching, DistributionMatching])
def test_batch_norms_have_the_statistics_of_real_points_when_matched(kind: Any) -> None:
    """Against the mean and variance of the first convolution's maps of all real images."""
    images = modality()
    summary = images.summary([1, 1, 1], rng=generator(0))
    objective = kind(learner="convnet-w8-d2-bn", real_size=4)
    objective.start(images, summary, seed=0)
    objective.loss(generator(1))
    net = objective._net
    convolution, norm = net.blocks[0][0], net.blocks[0][1]
    assert not net.training
    assert norm.momentum == 0.1
    with torch.no_grad():
        maps = convolution(images.real().inputs)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), atol=0.02, rtol=0.1)
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)), atol=0.02, rtol=0.2)


def test_other_networks_are_left_as_they_are() -> None:
    images, rng = modality(), generator(5)
    net = images.learner("convnet-w8-d2", rng=generator(6))
    before, state = [value.clone() for value in net.state_dict().values()], rng.get_state()
    RealNorms(images).settle(net, rng)
    assert all(torch.equal(one, other) for one, other in zip(before, net.state_dict().values()))
    assert torch.equal(rng.get_state(), state)
