"""Published protocols of images: their augmentations and the numbers they state."""

from __future__ import annotations

import pytest
import torch

from datastill.backbones.batch import Batch
from datastill.backbones.infinite_conv import parse_kernel
from datastill.backbones.training import Protocol
from datastill.backbones.vision import parse_name
from datastill.errors import InputError
from datastill.evaluation import evaluate
from datastill.modalities.augmentation import Augmentation
from datastill.modalities.base import Published
from datastill.modalities.image import ImageModality
from datastill.modalities.image_protocols import PUBLISHED, STRATEGIES, cut_mix, strategy
from datastill.rng import generator
from datastill.validation import Validation

LABELS = torch.arange(6) % 3


def batch() -> Batch:
    return Batch(torch.randn(6, 2, 10, 12, generator=generator("images")), LABELS, LABELS)


def test_each_names_a_learner_that_images_have() -> None:
    for name, published in PUBLISHED.items():
        assert published.learner == "ntk" or parse_kernel(published.learner) or parse_name(published.learner), name
        if published.training is None:
            assert name.startswith("krr")
            assert published.learner == "ntk" or parse_kernel(published.learner)
            with pytest.raises(InputError, match="fits a kernel, which has no training"):
                published.on(10, 10)
            continue
        assert parse_name(published.learner)
        assert published.training.augment in (False, *STRATEGIES)
        assert published.on(10, 10).total_steps(10) > 0


@pytest.mark.parametrize(
    ("protocol", "learner", "said"),
    [
        (
            "krr",
            "convnet",
            "protocol 'krr' fits a kernel and says nothing of how 'convnet' is trained: .* such as 'ntk'",
        ),
        ("krr-rfad", "mlp", "fits a kernel and says nothing of how 'mlp' is trained: .* such as 'cnngp-avgpool'"),
        ("dsa", "ntk", "protocol 'dsa' trains a network and says nothing of how 'ntk' is fitted: .* 'convnet-w128'"),
        ("frepo", "cntk-d1", "trains a network and says nothing of how 'cntk-d1' is fitted"),
    ],
)
def test_a_protocol_says_nothing_of_the_other_kind(
    protocol: str, learner: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(12, 8, 8, generator=generator(0))
    labels = torch.arange(12) % 3
    modality = ImageModality(pixels, labels, validation=(pixels, labels), test=(pixels, labels))
    monkeypatch.setattr(modality, "fit", lambda *_, **__: pytest.fail("trained before it was refused"))
    with pytest.raises(InputError, match=said):
        evaluate((pixels, labels), modality, protocol=protocol, learners=[learner], progress=False)
    with pytest.raises(InputError, match=said):
        Validation(modality, learner, protocol).check()
    Validation(modality, None, protocol).check()
    Validation(modality, PUBLISHED[protocol].learner, protocol).check()


def test_a_published_protocol_is_of_a_network_or_of_a_kernel() -> None:
    with pytest.raises(InputError, match="must have either training, of a network, or what a kernel is fitted by"):
        Published(paper="", learner="ntk", rates=(0.1,))
    with pytest.raises(InputError, match="must have either training, of a network, or what a kernel is fitted by"):
        Published(paper="", learner="mlp", training=Protocol(), ridges=(0.1,))


def test_lengths_of_training() -> None:
    assert PUBLISHED["dc"].on(10, 10).total_steps(10) == 301
    assert PUBLISHED["datm"].on(500, 10, lr=0.02).total_steps(500) == 4 * 1001
    assert PUBLISHED["dsa"].on(500, 10).total_steps(500) == 2 * 1001
    assert PUBLISHED["idc"].on(100, 10).total_steps(100) == 2000
    assert PUBLISHED["dsa"].on(50_000, 10, full=True).epochs == 30
    frepo = PUBLISHED["frepo"]
    assert [frepo.on(points, 10).steps for points in (10, 100, 500, 1000)] == [1000, 2000, 5000, 10_000]
    assert [frepo.on(points, 10).steps for points in (1, 25, 120, 10**6)] == [1000, 1000, 2000, 40_000]
    assert frepo.on(100, 100).target_scale == pytest.approx(10**-0.5)
    assert PUBLISHED["mtt"].on(10, 10, lr=0.03).lr == 0.03


def test_cut_mix_moves_a_box_and_its_share_of_the_label() -> None:
    given = batch()
    mixed = 0
    for seed in range(60):
        found = cut_mix(given, seed, 0.5, 3)
        if found is given:
            continue
        mixed += 1
        changed = (found.inputs != given.inputs).any(1)
        rows, columns = changed.any(0).any(1).nonzero(), changed.any(0).any(0).nonzero()
        box = (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1) if len(rows) else 0
        assert set(changed.flatten(1).sum(1).tolist()) <= {0, box}  # an image may be its own partner
        assert torch.allclose(found.targets.sum(1), torch.ones(6))
        for label, targets in zip(LABELS.tolist(), found.targets):
            assert float(targets[label]) in (pytest.approx(1), pytest.approx(1 - box / 120))
    assert 15 < mixed < 45
    assert cut_mix(given, 0, 0.0, 3) is given
    soft = Batch(given.inputs, torch.nn.functional.one_hot(LABELS, 3).float(), LABELS)
    for seed in range(5):
        assert torch.equal(cut_mix(soft, seed, 1.0, 3).targets, cut_mix(given, seed, 1.0, 3).targets)


def test_operations_that_are_always_applied() -> None:
    images = batch().inputs
    always = Augmentation(("flip", "crop"), always=("flip",), flip_probability=1, crop_ratio=0)
    assert torch.equal(always(images, 3, siamese=False), images.flip(3))
    everything = Augmentation(("color", "cutout"), always=("color", "cutout"), cutout_ratio=1.0)
    assert (everything(images, 1) == 0).float().mean() > 0.2  # cut after the colour, so that the hole is zero
    with pytest.raises(InputError, match="always may hold those of flip, color and cutout"):
        Augmentation(("crop",), always=("crop",))


def test_operations_by_image() -> None:
    images = torch.ones(200, 1, 8, 8)
    each = Augmentation(("crop", "color"), per_image=True, contrast=1.0, brightness=1e-3, crop_ratio=0.5)
    found = each(images, 0, siamese=False)
    cropped = (found == 0).flatten(1).any(1)
    assert 40 < int(cropped.sum()) < 160
    together = each(images, 0, siamese=True)
    assert torch.equal(together[0], together[199])


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_are_functions_of_the_seed(name: str) -> None:
    given = batch()
    for seed in range(8):
        found, again = (strategy(name, given, seed, flip=False, classes=3) for _ in range(2))
        assert found.inputs.shape == given.inputs.shape
        assert torch.equal(found.inputs, again.inputs)
        assert torch.equal(found.targets, again.targets)


def test_the_plain_strategy_of_idc_neither_cuts_nor_mixes() -> None:
    given = Batch(torch.ones(6, 1, 12, 10), LABELS, LABELS)
    for seed in range(20):
        found = strategy("idc-plain", given, seed, flip=True, classes=3)
        assert torch.equal(found.targets, given.targets)
        for image in found.inputs[:, 0]:
            shown = (image - image.mode().values.mode().values).abs() < 1e-6  # of one colour but where crop uncovers
            rows, columns = shown.any(1).sum(), shown.any(0).sum()
            assert int(shown.sum()) == int(rows * columns) >= 10 * 9


@pytest.mark.parametrize("name", ["dsa", "frepo"])
def test_digits_are_never_mirrored(name: str) -> None:
    given = batch()

    def mirrored(flip: bool) -> int:
        found = [strategy(name, given, seed, flip=flip, classes=3).inputs for seed in range(40)]
        return sum(bool((images == given.inputs.flip(3)).flatten(1).all(1).any()) for images in found)

    assert mirrored(flip=True) > 0
    assert mirrored(flip=False) == 0


def test_modality_has_them_by_name() -> None:
    modality = ImageModality(torch.rand(9, 8, 8, generator=generator(0)), LABELS.repeat(2)[:9], augmentation="flip")
    given = modality.real()
    assert modality.augmenter("idc")(given, 3).targets.shape in ((len(given),), (len(given), 3))
    assert modality.augmenter(True) == modality.augment_each
    with pytest.raises(InputError, match="Did you mean 'frepo'"):
        modality.augmenter("frepos")
