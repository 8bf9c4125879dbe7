"""Images put together from the best crops of real ones.

RDED: Sun et al. (CVPR 2024), arXiv 2312.03526, section 4: the most realistic of several random
crops of each of some real images, and of these the most realistic ones, several of them side by side in each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.errors import check_count, require


def default_factor(shape: tuple[int, int, int]) -> int:
    """How many crops lie side by side along each side of an image: 2 from 128 pixels on, as published, else 1."""
    return 2 if min(shape[1:]) >= 128 else 1


def check_crops(crops: int, factor: int, area: tuple[float, float], shape: tuple[int, int, int]) -> None:
    """Refuse options that `best_crops` cannot take."""
    check_count("crops", crops)
    most = min(shape[1:])
    require(
        check_count("factor", factor) <= most,
        f"factor must be at most {most} for images of {shape[1]}x{shape[2]} pixels, got {factor}.",
    )
    require(
        len(area) == 2 and 0 < area[0] <= area[1] <= 1,
        f"area must be two shares of an image, 0 < least <= largest <= 1, got {area!r}.",
    )


def best_crops(
    images: Tensor,
    count: int,
    score: Callable[[Tensor], Tensor],
    *,
    rng: torch.Generator,
    crops: int = 5,
    factor: int = 1,
    area: tuple[float, float] = (0.08, 1.0),
) -> Tensor:
    """`count` images (count, c, h, w), each of factor x factor crops of different real images, best ones first.

    A crop has the proportions of the image and is resized to its 1/factor, sides rounded up; where tiles then reach beyond the
    image they are cut off.

    Args:
        images: real images (n, c, h, w), normalised, at least count * factor^2.
        count: images to make.
        score: of images (n, c, h, w), (n,), the lower the better; a crop is scored amid zeros, which are the mean pixel.
        rng: of the crops.
        crops: tried of each image, of which the best is kept.
        factor: crops along each side of an image.
        area: least and largest share of an image that a crop is.
    """
    height, width = images.shape[2:]
    tile = -(-height // factor), -(-width // factor)
    best, lowest = torch.empty(0), torch.empty(0)
    for attempt in range(crops):
        found = random_crops(images, tile, area, rng)
        scores = score(_amid_zeros(found, (height, width))).cpu()
        if attempt == 0:
            best, lowest = found, scores
        else:
            better = scores < lowest
            best, lowest = torch.where(better[:, None, None, None], found, best), torch.where(better, scores, lowest)
    chosen = best[lowest.argsort(stable=True)[: count * factor**2]]
    grid = chosen.view(count, factor, factor, images.shape[1], *tile).permute(0, 3, 1, 4, 2, 5)
    whole = grid.reshape(count, images.shape[1], factor * tile[0], factor * tile[1])
    return whole[:, :, :height, :width].contiguous()


def random_crops(images: Tensor, size: Sequence[int], area: tuple[float, float], rng: torch.Generator) -> Tensor:
    """A crop of each image, at a random place and of a random share of its area, resized to `size` (height, width)."""
    height, width = images.shape[2:]
    found = []
    for image in images:
        share, down, across = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
        side = math.sqrt(area[0] + share * (area[1] - area[0]))
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
        crop = image[None, :, top : top + rows, left : left + columns]
        found.append(F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True))
    return torch.cat(found)


def _amid_zeros(crops: Tensor, size: tuple[int, int]) -> Tensor:
    down, across = size[0] - crops.shape[2], size[1] - crops.shape[3]
    return F.pad(crops, (across // 2, across - across // 2, down // 2, down - down // 2))
