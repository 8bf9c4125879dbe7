"""Real points in bfloat16: how near it comes, on every kind of data, and that nothing else is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill.backbones.convnet import ConvNet
from datastill.backbones.fast import Block
from datastill.backbones.precision import Conv2d, convolved_in, native_bfloat16
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.feature_regression import FeatureRegression
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.meta_model import UnrolledTraining
from datastill.rng import generator, isolated
from tests.test_every_pair import MODALITIES

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "distribution-matching": lambda **kind: DistributionMatching(real_size=4, **kind),
    "gradient-matching": lambda **kind: GradientMatching(real_size=4, **kind),
    "feature-regression": lambda **kind: FeatureRegression(pool=2, real_size=4, ridge=1e-2, **kind),
    "kernel-ridge": lambda **kind: KernelRidge(kernel="features", learners=2, real_size=4, ridge=1e-1, **kind),
    "unrolled": lambda **kind: UnrolledTraining(inner_steps=2, inner_lr=0.1, real_size=4, **kind),
    "unrolled, inner": lambda *, real_precision: UnrolledTraining(
        inner_steps=2, inner_lr=0.1, real_size=4, inner_precision=real_precision
    ),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODALITIES)
def test_it_is_near_full_precision_on_every_kind_of_data(kind: str, objective: str) -> None:
    found = []
    for precision in ("full", "bfloat16"):
        modality = MODALITIES[kind]()
        summary = modality.summary([2] * modality.num_groups, rng=generator("near"))
        one = OBJECTIVES[objective](real_precision=precision)
        one.start(modality, summary)
        loss = one.loss(generator("loss"))
        points = [value for values in summary.parameter_groups().values() for value in values]
        gradients = torch.autograd.grad(loss, points, allow_unused=True)
        assert loss.dtype == modality.dtype
        assert all(gradient is None or gradient.dtype == modality.dtype for gradient in gradients)
        found.append((float(loss.detach()), torch.cat([part.flatten() for part in gradients if part is not None])))
    (full, slope), (rounded, other) = found
    assert rounded == pytest.approx(full, rel=0.1, abs=1e-3)
    assert F.cosine_similarity(slope, other, 0) > 0.98
    assert (rounded != full) == (kind == "image")  # the one whose learner has convolutions


def images() -> ImageModality:
    labels = torch.arange(2).repeat_interleave(60)
    pixels = torch.rand(120, 1, 16, 16, generator=generator("precision"))
    pixels[:60, :, :8] += 0.5
    return ImageModality(pixels, labels)


def test_rounding_is_far_below_what_another_batch_changes() -> None:
    modality = images()
    with isolated(0):
        net = ConvNet((1, 16, 16), 2, width=32).eval()
    drawn = [modality.real(30, rng=generator("batch", number)) for number in range(2)]

    def gradients(number: int, precision: Any) -> torch.Tensor:
        with convolved_in(precision):
            parts = net.group_gradients(drawn[number], [0, 1], F.cross_entropy, create_graph=False)
        return torch.cat([part.flatten(1) for part in parts], 1)

    full, rounded, other = gradients(0, "full"), gradients(0, "bfloat16"), gradients(1, "full")
    assert not torch.equal(full, rounded)
    # A tenth: processors that have no bfloat16 of their own round more often than those that do.
    assert ((full - rounded).norm(dim=1) < 0.1 * (full - other).norm(dim=1)).all()


def test_rounding_an_unrolled_training_is_far_below_what_another_network_changes() -> None:
    def gradient(number: int, precision: Any) -> torch.Tensor:
        modality = images()
        summary = modality.summary([3, 3], rng=generator("summary"))
        one = UnrolledTraining(
            learner="convnet-w32", inner_steps=8, inner_lr=0.03, momentum=0.9, inner_precision=precision
        )
        one.start(modality, summary)
        (slope,) = torch.autograd.grad(one.loss(generator("loss", number)), list(summary.parameters()))
        return slope

    full, rounded, other = gradient(0, "full"), gradient(0, "bfloat16"), gradient(1, "full")
    assert not torch.equal(full, rounded)
    assert (full - rounded).norm() < 0.1 * (full - other).norm()


def test_convolutions_of_many_channels_alone_are_rounded() -> None:
    """Against a convolution in float64 of inputs and weights that are rounded here."""
    with isolated(0):
        net = ConvNet((1, 16, 16), 2, width=32).eval()
    pixels = torch.rand(6, 1, 16, 16, generator=generator("block"), requires_grad=True)
    first, block = net.blocks
    assert isinstance(block, Block)
    second = block[0]
    assert isinstance(second, Conv2d)
    assert second.bias is not None
    with convolved_in("bfloat16"):
        maps = first(pixels)
        found = second(maps)
    assert torch.equal(first(pixels), maps)
    assert found.dtype == torch.float32
    image, weight, bias = (value.bfloat16().double() for value in (maps, second.weight, second.bias))
    expected = F.conv2d(image, weight, bias, padding=1)
    assert torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-2)
    assert not torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(second(maps), F.conv2d(maps, second.weight, second.bias, padding=1))


@pytest.mark.parametrize("name", ["lenet", "alexnet", "vgg11", "resnet18"])
def test_every_network_of_convolutions_takes_it(name: str) -> None:
    pixels = torch.rand(12, 1, 32, 32, generator=generator("network"))
    modality = ImageModality(pixels, torch.arange(12) % 2)
    net = modality.learner(name, rng=generator("net"))
    with torch.no_grad():
        full = net.embed(pixels)
        with convolved_in("bfloat16"):
            rounded = net.embed(pixels)
    assert not torch.equal(full, rounded)
    assert (full - rounded).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_unknown_precision_is_refused(make: Callable[..., Objective]) -> None:
    with pytest.raises(InputError, match=r"(real|inner)_precision.*'half'.*full"):
        make(real_precision="half")


def test_learners_train_nearly_alike_in_either_precision() -> None:
    """After a few steps rounding has moved the weights by less than a tenth of what training has."""
    found = []
    for precision in ("full", "bfloat16"):
        modality = images()
        summary = modality.summary([4, 4], rng=generator("summary"))
        objective = FeatureRegression(
            learner="convnet-w32-none", pool=1, inner_lr=1e-2, real_size=4, ridge=1e-2, inner_precision=precision
        )
        objective.start(modality, summary, seed=0)
        stages = []
        for number in range(5):
            before = objective.loss(generator("loss", number))  # before a step the pool has not been touched
            stages.append(float(before.detach()))
            objective.after_step(generator("step", number))
        weights = objective.state_dict()["learners"][0]
        found.append((stages, torch.cat([value.flatten() for value in weights.values()])))
    (full, ours), (rounded, theirs) = found
    assert full[0] == rounded[0]  # points and real ones are in full
    assert full[1:] != rounded[1:]
    with isolated(0):
        fresh = FeatureRegression(learner="convnet-w32-none", pool=1)
        fresh.start(images(), images().summary([4, 4], rng=generator("summary")), seed=0)
    start = torch.cat([value.flatten() for value in fresh.state_dict()["learners"][0].values()])
    assert (ours - theirs).norm() < 0.1 * (ours - start).norm()


def test_a_kernel_without_networks_refuses_it() -> None:
    with pytest.raises(InputError, match=r"real_precision.*leave it out.*'features'"):
        KernelRidge(kernel="ntk", real_precision="bfloat16")


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auto_rounds_float32_where_the_device_does_so_natively(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastill.backbones.precision.native_bfloat16", lambda device: native and device == "cpu")
    conv = Conv2d(8, 8, 3).to(dtype)
    inputs = torch.randn(2, 8, 6, 6, dtype=dtype, generator=generator("auto"))
    full = conv(inputs)
    with convolved_in("bfloat16"):
        rounded = conv(inputs)
    with convolved_in("auto"):
        found = conv(inputs)
    assert not torch.equal(full, rounded)
    assert torch.equal(found, rounded if native and dtype == torch.float32 else full)


def test_devices_without_matrix_units_are_not_native() -> None:
    assert not native_bfloat16("mps")
    if not torch.cuda.is_available():
        assert not native_bfloat16("cuda")
