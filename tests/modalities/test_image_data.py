from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from datastill.errors import InputError
from datastill.modalities.image_data import LabelledImages, labelled_images, require_hard, split_off
from datastill.modalities.image_scale import PixelScale

MNIST = Path(__file__).resolve().parents[2] / "../shared/data/images"


def colour(n: int = 6) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (n, 3, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return pixels, torch.arange(n) % 3


class Pairs(Dataset):
    """Items by a function of the index."""

    def __init__(self, n: int, item: Any, classes: Any = None) -> None:
        self.n, self.item, self.classes = n, item, classes

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def test_every_source_gives_the_same_images() -> None:
    pixels, labels = colour()
    last = pixels.permute(0, 2, 3, 1).numpy()
    sources = [
        labelled_images(pixels, labels),
        labelled_images(pixels.numpy(), labels.tolist()),
        labelled_images((pixels, labels)),
        labelled_images(TensorDataset(pixels, labels)),
        labelled_images(Pairs(6, lambda i: (pixels[i], int(labels[i])))),
        labelled_images(Pairs(6, lambda i: (last[i], labels[i]))),
        labelled_images(Pairs(6, lambda i: (Image.fromarray(last[i]), np.int64(labels[i])), classes=["a", "b", "c"])),
    ]
    for source in sources:
        assert torch.equal(source.images, pixels)
        assert torch.equal(source.labels, labels)
    assert sources[-1].class_names == ("a", "b", "c")
    assert sources[0].class_names is None


def test_grey_and_palette_images() -> None:
    pixels = colour()[0][:, 0]
    assert labelled_images(pixels, torch.zeros(6, dtype=torch.int32)).images.shape == (6, 1, 5, 4)
    grey = labelled_images(Pairs(6, lambda i: (Image.fromarray(pixels[i].numpy()), 0)))
    assert torch.equal(grey.images[:, 0], pixels)
    palette = labelled_images(Pairs(2, lambda i: (Image.fromarray(pixels[i].numpy()).convert("P"), 0)))
    assert palette.images.shape == (2, 3, 5, 4)


def test_inputs_and_global_random_state_are_untouched() -> None:
    images = torch.rand(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, state = images.clone(), torch.get_rng_state()
    got = labelled_images(Pairs(4, lambda i: (images[i] + torch.rand(()), i % 2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert got.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (torch.zeros(3, 1, 2, 2), None, "give the class ids as labels"),
        (torch.zeros(3, 1, 2, 2), [0, 1], "3 images but 2 labels"),
        (torch.zeros(3, 2), [0, 1, 0], r"must have shape \(n, channels, height, width\)"),
        (torch.zeros(3, 8, 8, 3), [0, 1, 0], "channels last"),
        (torch.zeros(3, 1, 2, 2, dtype=torch.int64), [0, 1, 0], "must be uint8 or floating"),
        (torch.zeros(0, 1, 2, 2), [], "empty"),
        (torch.full((3, 1, 2, 2), torch.nan), [0, 1, 0], "NaN or infinite pixels in 3 images"),
        (torch.zeros(3, 1, 2, 2), [0, -1, 0], "from 0, got -1"),
        (torch.zeros(3, 1, 2, 2), [0.5, 1.0, 0.0], "class ids"),
        ("no-such-folder", None, "no image folder"),
        (42, None, "got int"),
        (Pairs(0, None), None, "empty"),
        (Pairs(2, lambda i: torch.zeros(1, 2, 2)), None, "must be a pair"),
        (Pairs(2, lambda i: (torch.zeros(1, 2 + i, 2), 0)), None, "one shape and type"),
        (Pairs(2, lambda i: ("x", 0)), None, "got str"),
        (Pairs(2, lambda i: (torch.zeros(1, 2, 2), [0] * (i + 1))), None, "differ in shape"),
        (TensorDataset(torch.zeros(2, 1, 2, 2)), None, "got 1 tensors"),
        ((torch.zeros(2, 1, 2, 2), torch.zeros(2).long()), [0, 1], "leave out the labels"),
    ],
)
def test_bad_sources(data: Any, labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        labelled_images(data, labels)


def test_labels_have_no_gaps() -> None:
    pixels = torch.zeros(3, 1, 2, 2)
    assert require_hard(labelled_images(pixels, [0, 2, 1]), "data") == 3
    with pytest.raises(InputError, match="no image has label 1"):
        require_hard(labelled_images(pixels, [0, 2, 2]), "data")
    with pytest.raises(InputError, match="single class"):
        require_hard(labelled_images(pixels, [0, 0, 0]), "data")
    with pytest.raises(InputError, match="below 2"):
        require_hard(labelled_images(pixels, [0, 2, 1]), "test", 2)
    with pytest.raises(InputError, match="not probabilities"):
        require_hard(labelled_images(pixels, torch.eye(3)), "data")


def test_split_is_stratified_and_seeded() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 2 + [3])
    data = LabelledImages(torch.arange(93.0).view(93, 1, 1, 1), labels)
    train, validation = split_off(data, 0.2, seed=0)
    assert torch.bincount(validation.labels).tolist() == [12, 6, 1]
    assert torch.bincount(train.labels).tolist() == [48, 24, 1, 1]
    together = torch.cat([train.images, validation.images]).flatten().sort().values
    assert torch.equal(together, torch.arange(93.0))
    assert torch.equal(split_off(data, 0.2, seed=0)[1].images, validation.images)
    assert not torch.equal(split_off(data, 0.2, seed=1)[1].images, validation.images)


def test_default_split_is_a_tenth_capped() -> None:
    def held(n: int) -> int:
        data = LabelledImages(torch.zeros(n, 1, 1, 1), torch.arange(n) % 10)
        return len(split_off(data, None, seed=0)[1])

    assert held(1000) == 100
    assert held(60_000) == 5000


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, True, float("nan")])
def test_bad_fractions(fraction: float) -> None:
    with pytest.raises(InputError, match="fraction"):
        split_off(LabelledImages(torch.zeros(4, 1, 1, 1), torch.arange(4) % 2), fraction, seed=0)


def test_nothing_to_hold_out() -> None:
    with pytest.raises(InputError, match="one image only"):
        split_off(LabelledImages(torch.zeros(2, 1, 1, 1), torch.arange(2)), 0.5, seed=0)


def test_scale_normalises_each_channel() -> None:
    pixels, _ = colour(50)
    scale = PixelScale.of(pixels, None)
    array = pixels.numpy().astype(np.float64) / 255
    assert np.allclose(scale.mean.numpy(), array.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(scale.std.numpy(), array.std((0, 2, 3)), atol=1e-6)
    normal = scale.normalise(pixels)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    assert torch.equal(scale.restore(normal).round().to(torch.uint8), pixels)
    low, high = scale.bounds(normal)
    assert torch.allclose(scale.restore(low), torch.zeros(1), atol=1e-4)
    assert torch.allclose(scale.restore(high), torch.tensor(255.0), atol=1e-4)


def test_valid_range_is_found() -> None:
    unit = torch.linspace(0.0, 0.9, 8).view(2, 1, 2, 2)
    assert (PixelScale.of(unit, None).low, PixelScale.of(unit, None).high) == (0.0, 1.0)
    assert PixelScale.of(16 * unit, None).high == pytest.approx(14.4)
    assert PixelScale.of(unit - 3, None).low == -3.0
    assert PixelScale.of(16 * unit, (0, 16)).high == 16.0
    constant = torch.stack([torch.zeros(4, 2, 2), torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0))], 1)
    assert PixelScale.of(constant, None).std[0] == 1.0
    for images, valid, words in (
        (unit, (1.0, 1.0), "low < high"),
        (torch.ones(2, 1, 2, 2), None, "nothing to learn"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), (0, 300), "between 0 and 255"),
    ):
        with pytest.raises(InputError, match=words):
            PixelScale.of(images, valid)


def test_eight_bits_and_back() -> None:
    images = torch.linspace(0, 16, 64).view(1, 1, 8, 8)
    scale = PixelScale.of(images, None)
    assert scale.eight_bit(images).flatten()[[0, -1]].tolist() == [0, 255]
    assert torch.allclose(scale.from_eight_bit(scale.eight_bit(images)), images, atol=16 / 510 + 1e-5)


@pytest.mark.skipif(not (MNIST / "MNIST/raw").is_dir(), reason="MNIST is not beside the repository")
def test_mnist_from_torchvision() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    got = labelled_images(datasets.MNIST(root=str(MNIST), train=False, download=False))
    assert got.images.shape == (10_000, 1, 28, 28)
    assert got.images.dtype == torch.uint8
    assert got.class_names is not None
    assert got.class_names[7] == "7 - seven"
    assert torch.bincount(got.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(PixelScale.of(got.images, None).mean) == pytest.approx(0.1325, abs=1e-4)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b", "c", "a", "b", "c"],
        np.array(list("abcabc")),
        [None] * 6,
        np.array([0, 1, 2, 0, 1, None], dtype=object),
    ],
    ids=["list", "array", "none", "objects"],
)
def test_labels_that_are_no_numbers_are_said_in_a_sentence(labels: Any) -> None:
    pixels, _ = colour()
    pairs = Pairs(6, lambda index: (pixels[index], labels[index]))
    with pytest.raises(InputError, match=r"The labels of data must be class ids 0, 1, \.\.\. \(number the names"):
        labelled_images(pixels, labels)
    if labels[0] != 0:  # of the objects the first ones are numbers
        with pytest.raises(InputError, match="must be class ids"):
            labelled_images(pairs)


def test_arrays_in_any_layout_and_byte_order() -> None:
    pixels, labels = colour()
    array = pixels.numpy().astype(np.float32)
    flipped = array[:, :, ::-1, ::-1]
    assert torch.equal(labelled_images(flipped, labels).images, torch.from_numpy(flipped.copy()))
    foreign = labelled_images(array.astype(">f4"), labels.numpy().astype(">i8"))
    assert torch.equal(foreign.images, torch.from_numpy(array))
    assert torch.equal(foreign.labels, labels)
    backwards = labelled_images(pixels, labels.numpy()[::-1])
    assert torch.equal(backwards.labels, labels.flip(0))


def test_what_is_no_dataset() -> None:
    for wrong in ({"x": 1}, b"bytes", 3):
        with pytest.raises(InputError, match="must be a tensor of images, a Dataset"):
            labelled_images(wrong)
    with pytest.raises(InputError, match="one class id for each image, got the single number"):
        labelled_images(colour()[0], torch.tensor(1))
