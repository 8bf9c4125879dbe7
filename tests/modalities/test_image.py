from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from datastill.backbones.infinite_conv import InfiniteConvNet
from datastill.backbones.simplex import nearest_distributions
from datastill.backbones.training import Protocol
from datastill.checks import check_modality
from datastill.errors import InputError
from datastill.modalities.augmentation import NATURAL, Augmentation
from datastill.modalities.image import INITS, ImageModality
from datastill.rng import generator


class Hasty(ImageModality):
    """With a short training, since these tests train often."""

    def protocol(self, learner: str) -> Protocol:
        return dataclasses.replace(super().protocol(learner), steps=20)


@pytest.fixture(scope="module")
def digits() -> ImageModality:
    data = load_digits()
    rows = torch.arange(0, 1200, 4).numpy()
    return Hasty(
        data.images[rows], data.target[rows], test=(data.images[rows + 1], data.target[rows + 1]), validation=0.2
    )


@pytest.fixture(scope="module")
def colour() -> ImageModality:
    """uint8, three classes that differ in colour, not square."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    images = torch.randint(0, 120, (48, 3, 6, 8), generator=rng)
    images[torch.arange(48), labels] += 120
    pixels = images.to(torch.uint8)
    return Hasty(pixels[:36], labels[:36], test=(pixels[36:], labels[36:]), augmentation=NATURAL)


@pytest.mark.parametrize("options", [{}, {"labels": "learned"}, {"init": "kmeans", "clamp": False}])
def test_conformance_on_digits(digits: ImageModality, options: dict[str, Any]) -> None:
    check_modality(digits, **options)


def test_conformance_on_colour(colour: ImageModality) -> None:
    check_modality(colour)


def test_kernels_by_name(digits: ImageModality, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits.real(1, rng=generator(0)).inputs
    expected = InfiniteConvNet(digits.shape, 3, "nngp", "avg")(images, images)
    torch.testing.assert_close(digits.kernel("cnngp-avgpool", depth=3)(images, images), expected)
    torch.testing.assert_close(digits.kernel("cnngp-avgpool-d3")(images, images), expected)
    assert digits.knows("cntk-d2-gap")
    assert not digits.knows("cntk-d0")
    with pytest.raises(InputError, match="Unknown image kernel 'cntkk'"):
        digits.kernel("cntkk")
    with pytest.raises(InputError, match="learner"):
        digits.learner("cntk", rng=generator(0))
    assert digits.compares_full("cntk")
    monkeypatch.setattr(Hasty, "kernel_numbers", 240**2 * 10)
    assert digits.compares_full("ntk")
    assert not digits.compares_full("cntk")


def test_real_batches_are_the_normalised_images(digits: ImageModality) -> None:
    batch = digits.real()
    restored = digits.scale.restore(batch.inputs)
    known = {tuple(image.flatten().tolist()) for image in torch.from_numpy(load_digits().images)}
    assert all(tuple(image.flatten().round().tolist()) in known for image in restored)
    assert abs(float(batch.inputs.mean())) < 1e-4
    assert float(batch.inputs.std()) == pytest.approx(1, abs=1e-3)


def test_no_image_is_in_two_splits(digits: ImageModality) -> None:
    def keys(batches: list) -> set:
        return {tuple(image.flatten().tolist()) for batch in batches for image in batch.inputs}

    train, validation = keys([digits.real()]), keys(list(digits.held_out("validation")))
    test = keys(list(digits.held_out("test")))
    assert len(train) + len(validation) == 300
    assert not train & validation
    assert not (train | validation) & test


def test_given_validation_set_is_used(digits: ImageModality) -> None:
    images, labels = digits.subset([2] * 10, rng=generator(0)).tensors
    modality = ImageModality(images, labels, validation=(images[:7], labels[:7]))
    assert modality.group_sizes == [2] * 10
    assert sum(len(batch) for batch in modality.held_out("validation")) == 7
    with pytest.raises(InputError, match="no test set"):
        modality.score(lambda inputs: inputs.flatten(1), "test")


def test_accuracy_is_the_share_of_right_answers(colour: ImageModality) -> None:
    images = torch.cat([batch.inputs for batch in colour.held_out("test")])
    labels = torch.cat([batch.targets for batch in colour.held_out("test")])
    brightest = images.mean((2, 3))
    share = float((brightest.argmax(1) == labels).float().mean())
    assert colour.score(lambda inputs: inputs.mean((2, 3)), "test")["accuracy"] == pytest.approx(share)
    assert share > 0.9


@pytest.mark.parametrize("init", INITS)
def test_initial_pixels_by_class(digits: ImageModality, init: str) -> None:
    counts = [2, 1] + [0] * 7 + [3]
    summary = digits.summary(counts, rng=generator(0), init=init)
    batch = summary().detach()
    assert batch.groups.tolist() == [0, 0, 1, 9, 9, 9]
    real = digits.real()
    gaps = (batch.inputs[:, None] - real.inputs[None]).square().flatten(2).sum(2).sqrt()
    if init == "real":
        assert float(gaps.amin(1).max()) < 1e-3
        assert torch.equal(real.groups[gaps.argmin(1)], batch.groups)
        assert len(set(gaps.argmin(1).tolist())) == 6
    else:
        assert float(gaps.amin(1).min()) > 0.5
    if init == "kmeans":  # the centre of one cluster is the mean image
        assert torch.allclose(batch.inputs[2], real.inputs[real.groups == 1].mean(0), atol=1e-5)


def test_pixels_stay_valid_unless_told_otherwise(digits: ImageModality) -> None:
    for clamp in (True, False):
        summary = digits.summary([1] * 10, rng=generator(0), clamp=clamp)
        with torch.no_grad():
            summary.parameter_groups()["points"][0].mul_(5)
        summary.project_()
        images = summary.export().tensors[0]
        assert (float(images.min()) >= 0 and float(images.max()) <= 16) == clamp


def test_soft_labels_are_projected_onto_the_simplex() -> None:
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
    got = nearest_distributions(rows)
    for row, projected in zip(rows, got):
        best = minimize(
            lambda p, row=row: ((p - row.numpy()) ** 2).sum(),
            [0.25] * 4,
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        assert torch.allclose(projected, torch.from_numpy(best.x), atol=1e-5)
    assert torch.allclose(nearest_distributions(got), got)


def test_learned_labels(digits: ImageModality) -> None:
    summary = digits.summary([1] * 10, rng=generator(0), labels="learned")
    assert sorted(summary.parameter_groups()) == ["labels", "points"]
    batch = summary()
    assert torch.equal(batch.targets.detach(), torch.eye(10))
    assert torch.allclose(digits.encode(batch.targets).detach(), torch.eye(10) - 0.1)
    images, labels = summary.export().tensors
    assert labels.dtype == torch.float32
    assert torch.allclose(digits.read((images, labels)).targets, labels)
    assert summary.nbytes == 10 * 64 * 4 + 10 * 10 * 4 + 10 * 8


def test_export_keeps_the_number_type_and_its_bytes(digits: ImageModality, colour: ImageModality) -> None:
    summary = colour.summary([2, 2, 2], rng=generator(0), init="noise")
    images, labels = summary.export().tensors
    assert images.dtype == torch.uint8
    assert torch.allclose(
        colour.read(summary.export()).inputs, summary().inputs, atol=0.5 / 255 / float(colour.scale.std.min())
    )
    assert colour.size(TensorDataset(images, labels)).nbytes == 6 * 3 * 6 * 8 + 6 * 8
    assert digits.size(digits.subset([1] * 10, rng=generator(0))).nbytes == 10 * 64 * 4 + 10 * 8
    assert digits.full_size().points == sum(digits.group_sizes)


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_folder_round_trip(digits: ImageModality, tmp_path: Path, labels: str) -> None:
    summary = digits.summary([2] * 10, rng=generator(0), labels=labels)
    summary.to_image_folder(tmp_path / "images")
    batch, expected = digits.read(tmp_path / "images"), summary().detach()
    assert torch.allclose(batch.inputs, expected.inputs, atol=0.5 / 255 / float(digits.scale.std) + 1e-5)
    assert torch.equal(batch.groups, expected.groups)
    assert torch.equal(digits.encode(batch.targets), digits.encode(expected.targets))
    summary.to_grid(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_augmentation_of_batches(digits: ImageModality) -> None:
    batch = digits.real(3, rng=generator(0))
    for seed in range(5):
        assert torch.equal(digits.augment(batch, seed).inputs, digits.augmentation(batch.inputs, seed))
        each = digits.augment_each(batch, seed)
        assert torch.equal(each.inputs, digits.augmentation(batch.inputs, seed, siamese=False))
        assert each.targets is batch.targets
    assert "flip" not in digits.augmentation.operations


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("convnet", 10 * 32 + 64 + 9248 + 64 + 1290),
        ("convnet-d1-w16", 160 + 32 + 16 * 16 * 10 + 10),
        ("convnet-w16-none", 160 + 2320 + 650),
        ("mlp", 65 * 128 + 129 * 128 + 1290),
        ("mlp-d1-w5", 65 * 5 + 60),
    ],
)
def test_names_with_options(digits: ImageModality, name: str, parameters: int) -> None:
    assert digits.knows(name)
    net = digits.learner(name, rng=generator(0))
    assert sum(value.numel() for value in net.parameters()) == parameters
    predictor = digits.fit(digits.real(1, rng=generator(0)), name, rng=generator(1), protocol=Protocol(steps=2))
    assert 0 <= digits.score(predictor, "validation")["accuracy"] <= 1


@pytest.mark.parametrize("name", ["resnet", "convnet-d", "convnet-x3", "mlp-d2-none", "convnet-d9", "ntk"])
def test_unknown_names(digits: ImageModality, name: str) -> None:
    with pytest.raises(InputError):
        digits.learner(name, rng=generator(0))


def test_training_beats_chance_by_far(digits: ImageModality) -> None:
    predictor = digits.fit(digits.real(), rng=generator(0), protocol=Protocol(steps=60, lr=3e-3, batch_size=64))
    assert digits.score(predictor, "test")["accuracy"] > 0.9


def test_equal_data_equal_fingerprint(colour: ImageModality) -> None:
    images, labels = colour.subset([4] * 3, rng=generator(0)).tensors

    def digest(images: torch.Tensor, labels: torch.Tensor) -> str:
        return ImageModality(images, labels).fingerprint()

    assert digest(images, labels) == digest(images.clone(), labels.int())
    changed = images.clone()
    changed[0, 0, 0, 0] += 1
    assert digest(changed, labels) != digest(images, labels)
    assert digest(images, labels.roll(1)) != digest(images, labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "centre"}, "Unknown initialisation 'centre'"),
        ({"labels": "soft"}, "Unknown kind of labels"),
        ({"inti": "real"}, "Did you mean 'init'"),
    ],
)
def test_bad_summary_options(digits: ImageModality, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        digits.summary([1] * 10, rng=generator(0), **options)


@pytest.mark.parametrize(
    ("counts", "words"),
    [([1] * 9, "each of the 10"), ([0] * 10, "at least one"), ([-1] * 10, "counts must"), ([99] * 10, "fewer")],
)
def test_bad_counts(digits: ImageModality, counts: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        digits.summary(counts, rng=generator(0))


def test_other_datasets_must_match(digits: ImageModality, colour: ImageModality) -> None:
    for data, words in (
        ((torch.zeros(2, 1, 9, 9), torch.tensor([0, 1])), "shape"),
        ((torch.zeros(2, 8, 8), torch.tensor([0, 10])), "below 10"),
        ((torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])), "scale is not known"),
        ((torch.zeros(2, 8, 8), torch.full((2, 4), 0.25)), "one weight for each of the 10"),
    ):
        with pytest.raises(InputError, match=words):
            digits.read(data)
    with pytest.raises(InputError, match="validation must be a fraction"):
        ImageModality(torch.rand(4, 1, 2, 2), [0, 1, 0, 1], validation=1)
    with pytest.raises(InputError, match="Unknown augmentation"):
        ImageModality(torch.rand(4, 1, 2, 2), [0, 1, 0, 1], augmentation="colour")
    images, labels = colour.subset([2] * 3, rng=generator(0)).tensors
    custom = ImageModality(images, labels, augmentation=Augmentation(("flip",), flip_probability=1))
    assert torch.equal(custom.augment(custom.real(), 0).inputs, custom.real().inputs.flip(3))


def test_importing_needs_no_extra() -> None:
    code = (
        "import sys, datastill.modalities.image, datastill.condense.images;"
        "print([name for name in ('torchvision', 'PIL', 'sklearn', 'pandas') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_held_out_floats_of_another_scale_than_bytes_are_refused() -> None:
    pixels = torch.randint(0, 256, (12, 1, 4, 4), generator=generator("bytes"), dtype=torch.uint8)
    labels = torch.arange(12) % 2
    for name in ("test", "validation"):
        with pytest.raises(InputError, match=f"images of {name} are floats of at most 0.9.*multiply them by 255"):
            ImageModality(pixels, labels, **{name: (pixels / 256, labels)})  # type: ignore[arg-type]
    modality = ImageModality(pixels, labels, test=(pixels.float(), labels))  # the same scale in another type
    (held,) = modality.held_out("test")
    torch.testing.assert_close(held.inputs, modality.scale.normalise(pixels))
    bits = pixels // 128  # 0 and 1 alone: nothing speaks against floats up to 1
    ImageModality(bits, labels, value_range=(0, 1), test=(bits.float(), labels))
