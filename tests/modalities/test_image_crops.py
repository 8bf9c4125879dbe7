"""Images from the best crops of real ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datastill import coreset
from datastill.condense.common import find_recipe, run_recipe
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.modalities.image_crops import best_crops, default_factor, random_crops
from datastill.objectives.teachers import Teachers
from datastill.rng import derive_seed, generator


def plain(values: Tensor, side: int = 8) -> Tensor:
    """Images of one value each."""
    return values.float().view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()


def data() -> ImageModality:
    labels = torch.arange(2).repeat_interleave(30)
    pixels = torch.rand(60, 1, 8, 8, generator=generator("crops"))
    pixels[:, 0, :2] = labels[:, None, None].float()
    return ImageModality(pixels, labels)


def test_the_lowest_scores_are_taken_best_first() -> None:
    found = best_crops(plain(torch.tensor([5, 3, 9, 1, 7])), 3, lambda images: images.mean((1, 2, 3)), rng=generator(0))
    torch.testing.assert_close(found, plain(torch.tensor([1, 3, 5])))


def test_tiles_lie_side_by_side_row_by_row() -> None:
    images = plain(torch.arange(8))
    found = best_crops(images, 2, lambda images: images.amax((1, 2, 3)), rng=generator(0), factor=2)
    for image, first in zip(found, (0, 4)):
        tiles = image[0].unfold(0, 4, 4).unfold(1, 4, 4).reshape(4, 16)
        torch.testing.assert_close(tiles, torch.arange(first, first + 4.0)[:, None].expand(4, 16))


@pytest.mark.parametrize("size", [(7, 10), (9, 9)])
def test_sides_that_the_factor_does_not_divide(size: tuple[int, int]) -> None:
    images = torch.ones(8, 3, *size) * torch.arange(8)[:, None, None, None]
    found = best_crops(images, 2, lambda images: images.amax((1, 2, 3)), rng=generator(0), factor=2)
    assert found.shape == (2, 3, *size)
    corners = found[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.arange(4.0))


def test_of_the_crops_of_an_image_the_best_is_kept() -> None:
    image = torch.linspace(0, 1, 16).view(1, 1, 1, 16).expand(1, 1, 16, 16).contiguous()
    rng, again = generator(1), generator(1)
    best = best_crops(image, 1, lambda images: images.mean((1, 2, 3)), rng=rng, crops=6, area=(0.1, 0.1))
    tried = [random_crops(image, (16, 16), (0.1, 0.1), again) for _ in range(6)]
    assert torch.equal(best, min(tried, key=lambda crop: float(crop.mean())))


def test_a_crop_is_what_pillow_makes_of_the_same_box() -> None:
    image = torch.rand(1, 1, 24, 24, generator=generator("image"))
    rng = generator(2)
    found = random_crops(image, (6, 6), (0.25, 0.25), rng)
    _, down, across = torch.rand(3, generator=generator(2), dtype=torch.float64).tolist()
    top, left = int(down * 13), int(across * 13)
    box = image[0, 0, top : top + 12, left : left + 12].numpy()
    resized = np.asarray(Image.fromarray(box).resize((6, 6), Image.Resampling.BILINEAR))
    torch.testing.assert_close(found[0, 0], torch.from_numpy(resized.copy()), atol=1e-5, rtol=1e-4)


def test_small_crops_are_scored_amid_zeros() -> None:
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images)
        return images.sum((1, 2, 3))

    best_crops(plain(torch.ones(4)), 1, score, rng=generator(0), crops=1, factor=2)
    assert seen[0].shape == (4, 1, 8, 8)
    assert torch.equal(seen[0][0, 0, 2:6, 2:6], torch.ones(4, 4))
    assert float(seen[0].sum()) == pytest.approx(4 * 16, rel=1e-5)


def test_two_crops_a_side_from_128_pixels_on() -> None:
    assert [default_factor((3, side, side)) for side in (28, 64, 127, 128, 224)] == [1, 1, 1, 2, 2]


def test_rded_has_lower_losses_than_random_and_soft_labels_in_its_bytes() -> None:
    modality = data()
    found = run_recipe(modality, [3, 3], find_recipe("rded", "image"), seed=5, progress=False)
    random = run_recipe(modality, [3, 3], find_recipe("soft-random", "image"), seed=5, progress=False)
    teachers = Teachers(modality, seed=derive_seed(5, "teacher"))
    hard = [modality.read(one.export()) for one in (found, random)]
    typical, usual = (teachers.losses(type(batch)(batch.inputs, batch.groups, batch.groups)).mean() for batch in hard)
    assert typical <= usual
    _, labels = found.export().tensors
    torch.testing.assert_close(labels, teachers.labels(modality.read(found.export())), atol=1e-5, rtol=1e-4)
    assert modality.size(found.export()).nbytes == 6 * 8 * 8 * 4 + 6 * 2 * 4
    assert found.best_score is not None


def test_as_a_coreset_with_options() -> None:
    modality = data()
    images, labels = coreset(modality, [2, 2], method="rded", factor=2, crops=2, area=(1.0, 1.0), pool=9).tensors
    assert images.shape == (4, 1, 8, 8)
    assert labels.tolist() == [0, 0, 1, 1]
    # A whole image, halved: its two bright or dark rows are one.
    tiles = images.view(4, 2, 4, 2, 4).permute(0, 1, 3, 2, 4).reshape(16, 4, 4)
    wanted = torch.tensor([0.0] * 8 + [1.0] * 8)
    torch.testing.assert_close(tiles[:, 0].mean(1).round(), wanted)


def test_refusals() -> None:
    modality = data()
    with pytest.raises(InputError, match=r"counts\[0\] is 28|only 27|fewer than the 28"):
        coreset(modality, [7, 7], method="rded", factor=2)
    with pytest.raises(InputError, match="factor must be at most 8"):
        coreset(modality, [1, 1], method="rded", factor=9)
    with pytest.raises(InputError, match="area must be two shares"):
        coreset(modality, [1, 1], method="rded", area=(0.5, 0.2))
    with pytest.raises(InputError, match="Did you mean 'crops'"):
        coreset(modality, [1, 1], method="rded", crop=2)
    with pytest.raises(InputError, match="has no options, got factor"):
        coreset(modality, [1, 1], method="herding", factor=2)
    with pytest.raises(InputError, match="init must be images of shape"):
        modality.summary([1, 1], rng=generator(0), init=torch.zeros(3, 1, 8, 8))
