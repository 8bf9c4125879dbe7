from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datastill.errors import InputError
from datastill.modalities.augmentation import NATURAL, OPERATIONS, Augmentation

SEEDS = range(24)


def images(
    n: int = 4, channels: int = 3, height: int = 8, width: int = 10, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def at(value: float, n: int = 1) -> Tensor:
    return torch.full((n, 1, 1, 1), value)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_siamese_batches_get_the_same_transformation_whatever_their_size(operation: str) -> None:
    augment, batch = Augmentation((operation,)), images()
    for seed in SEEDS:
        whole = augment(batch, seed)
        assert torch.allclose(augment(batch[:1], seed), whole[:1], atol=1e-6)
        assert torch.allclose(augment(batch.repeat(3, 1, 1, 1), seed)[4:8], whole, atol=1e-6)
        twins = augment(batch[:1].repeat(5, 1, 1, 1), seed)
        assert torch.allclose(twins, twins[:1].expand_as(twins), atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_image_has_its_own_parameter_otherwise(operation: str) -> None:
    augment, twins = Augmentation((operation,)), images(1).repeat(12, 1, 1, 1)
    result = augment(twins, 3, siamese=False)
    assert result.shape == twins.shape
    assert not torch.allclose(result, result[:1].expand_as(result))


def test_every_operation_is_drawn_about_equally_often() -> None:
    batch = torch.ones(1, 3, 8, 8) + torch.arange(3.0).view(1, 3, 1, 1)
    alone = {name: Augmentation((name,)) for name in OPERATIONS}
    del alone["flip"]  # the images are symmetric, so that flip is what changes nothing
    augment = Augmentation.parse(NATURAL)
    unchanged = sum(torch.equal(augment(batch, seed), batch) for seed in range(600))
    coloured = sum(bool((augment(batch, seed) > 3.2).any()) for seed in range(600))
    assert 90 <= unchanged <= 600 / 6 + 100  # flip, and crops by nothing
    assert 20 <= coloured <= 130


def test_color_by_its_formula() -> None:
    batch = images()
    got = Augmentation(("color",))._color(batch, at(0.9), at(0.25), at(0.7))
    bright = batch + 0.4
    grey = bright.mean(1, keepdim=True)
    saturated = 0.5 * (bright - grey) + grey
    mean = saturated.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(got, 1.2 * (saturated - mean) + mean, atol=1e-6)


def test_saturation_leaves_grey_images() -> None:
    grey = images(channels=1)
    assert torch.allclose(Augmentation()._color(grey, at(0.5), at(0.1), at(0.5)), grey, atol=1e-6)


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (0.999, 0.3), (0.4, 0.999), (0.5, 0.5)])
def test_crop_is_a_shift_with_zero_filling(down: float, right: float) -> None:
    batch = images(2, 3, 16, 24)
    reach_y, reach_x = 2, 3
    shift_y, shift_x = math.floor(down * 5) - reach_y, math.floor(right * 7) - reach_x
    padded = torch.nn.functional.pad(batch, (reach_x, reach_x, reach_y, reach_y))
    expected = padded[:, :, reach_y + shift_y : reach_y + shift_y + 16, reach_x + shift_x : reach_x + shift_x + 24]
    crop = Augmentation(("crop",))
    assert torch.equal(crop._crop(batch, at(down), at(right)), expected)
    assert torch.equal(crop._crop(batch, at(down, 2), at(right, 2)), expected)


def test_cutout_blanks_a_clipped_square_that_reaches_every_pixel() -> None:
    augment, ones = Augmentation(("cutout",)), torch.ones(1, 2, 8, 12)
    blanked = torch.zeros(8, 12)
    for seed in range(300):
        hole = augment(ones, seed)[0] == 0
        assert torch.equal(hole[0], hole[1])
        rows, columns = hole[0].any(1).nonzero().flatten(), hole[0].any(0).nonzero().flatten()
        assert hole[0].sum() == len(rows) * len(columns)  # a rectangle
        assert rows[-1] - rows[0] + 1 == len(rows)
        assert len(rows) == 4 or rows[0] == 0 or rows[-1] == 7  # smaller at the border only
        assert len(columns) == 6 or columns[0] == 0 or columns[-1] == 11
        blanked += hole[0]
    assert bool((blanked > 0).all())


def test_flip_mirrors_half_of_the_images() -> None:
    batch = images(400, 1, 3, 5)
    result = Augmentation(("flip",))(batch, 0, siamese=False)
    mirrored = (result == batch.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (result == batch).flatten(1).all(1)).all())
    assert 160 <= int(mirrored.sum()) <= 240


def test_rotation_by_right_angles() -> None:
    square = images(2, 3, 7, 7)
    quarter = Augmentation(("rotate",), rotation=90)._rotate(square, at(1.0))
    assert torch.allclose(quarter, square.rot90(1, (2, 3)), atol=1e-4)
    wide = images(2, 3, 6, 9)
    half = Augmentation(("rotate",), rotation=180)._rotate(wide, at(1.0))
    assert torch.allclose(half, wide.flip(2, 3), atol=1e-4)
    # On a wide image a quarter turn moves its central square as it would alone.
    wide = images(1, 1, 6, 12)
    quarter = Augmentation(("rotate",), rotation=90)._rotate(wide, at(1.0))
    assert torch.allclose(quarter[..., 3:9], wide[..., 3:9].rot90(1, (2, 3)), atol=1e-4)


def test_scale_resamples_a_ramp_exactly() -> None:
    place = (torch.arange(16) + 0.5) / 8 - 1  # relative coordinates of pixel centres
    ramp = (place.view(16, 1) + 10 * place.view(1, 16)).view(1, 1, 16, 16)
    vertical, horizontal = 0.0, 1 / 3  # factors 0.5 and 1 for a ratio of 2
    got = Augmentation(("scale",), scale_ratio=2)._scale(ramp, at(vertical), at(horizontal))
    expected = 0.5 * place.view(16, 1) + 10 * place.view(1, 16)
    assert torch.allclose(got[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_match_finite_differences(operation: str, siamese: bool) -> None:
    augment, batch = Augmentation((operation,)), images(2, 2, 4, 5, torch.float64).requires_grad_()
    for seed in range(3):
        assert torch.autograd.gradcheck(lambda x, seed=seed: augment(x, seed, siamese=siamese), batch)


def test_seeds_and_global_state() -> None:
    augment, batch = Augmentation.parse("color_crop_rotate"), images()
    state, before = torch.get_rng_state(), batch.clone()
    results = [augment(batch, seed) for seed in SEEDS]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch, before)
    assert all(torch.equal(result, augment(batch, seed)) for result, seed in zip(results, SEEDS))
    assert len({float(result.double().sum()) for result in results}) > len(SEEDS) // 2


def test_strategies() -> None:
    assert Augmentation.parse("color_crop").operations == ("color", "crop")
    assert Augmentation.parse(NATURAL).operations == OPERATIONS
    batch = images()
    for empty in ("none", "", " None "):
        assert Augmentation.parse(empty)(batch, 0) is batch


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("color_crpo", "Did you mean 'crop'"),
        ("crop_crop", "once only"),
        ("color-crop", "Unknown augmentation operation"),
        (3, "must be a string"),
    ],
)
def test_bad_strategies(strategy: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Augmentation.parse(strategy)


@pytest.mark.parametrize(
    "strength",
    [{"flip_probability": 2}, {"scale_ratio": 0.5}, {"cutout_ratio": 1.5}, {"rotation": -1}, {"contrast": -0.1}],
)
def test_bad_strengths(strength: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(strength))):
        Augmentation(OPERATIONS, **strength)  # type: ignore[arg-type]


ALWAYS = Augmentation(OPERATIONS, always=("flip", "color", "cutout"))


@pytest.mark.parametrize(
    "augment", [Augmentation.parse(NATURAL), ALWAYS, Augmentation(("crop",)), Augmentation()], ids=str
)
def test_all_groups_at_once_are_one_after_the_other(augment: Augmentation) -> None:
    batch, owners = images(40), torch.randint(9, (40,), generator=torch.Generator().manual_seed(1))
    owners[owners == 4] = 5  # a group without images
    batch.requires_grad_()
    seeds = list(range(9))
    found = augment.by_group(batch, owners, seeds)
    expected = torch.empty_like(batch)
    for group, seed in enumerate(seeds):
        if group == 4:
            continue
        expected = expected.index_put((owners == group,), augment(batch[owners == group], seed))
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    slopes = [torch.autograd.grad((one * weights).sum(), batch)[0] for one in (found, expected)]
    torch.testing.assert_close(*slopes)
    assert augment.by_group(batch[:0], owners[:0], seeds).shape == (0, *batch.shape[1:])
