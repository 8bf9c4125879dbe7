"""Differentiable siamese augmentation of images: DSA (Zhao & Bilen, ICML 2021, arXiv 2102.08259).

One operation is drawn for a whole batch. In siamese mode it also has one parameter for the whole batch, a function of
the seed alone, so that a real and a synthetic batch of any sizes are transformed alike; otherwise each image has its
own parameter. Images are normalised: zero, which fills what an operation uncovers, is the mean of the dataset. Every
operation is linear or affine in the images, so gradients pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.errors import InputError, require, unknown_name
from datastill.rng import generator

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
NATURAL = "color_crop_cutout_flip_scale_rotate"
"""All operations, for images whose mirror image means the same."""
NO_FLIP = "color_crop_cutout_scale_rotate"
"""All but mirroring, for digits and letters."""


@dataclass(frozen=True)
class Augmentation:
    """A set of operations and their strengths; the defaults are those of DSA.

    Attributes:
        operations: which of `OPERATIONS` may be drawn; none leaves images as they are.
        flip_probability: of mirroring left and right, when "flip" is drawn.
        scale_ratio: each axis is scaled by a factor between 1/ratio and ratio.
        rotation: largest angle in degrees.
        crop_ratio: largest shift of "crop", as a part of the side.
        cutout_ratio: side of the square that "cutout" blanks, as a part of the side.
        brightness: width of the interval of what is added.
        saturation: largest factor of the distance from the grey image (without effect on images of one channel).
        contrast: least factor of the distance from the image's mean; the largest is one more.
        always: operations of "flip", "color" and "cutout" that are applied at every time, beside one drawn from the rest, in
            the order flip, color, the drawn one, cutout (IDC).
        per_image: whether each image has an operation of its own where it has its own parameters (DC on MNIST).
    """

    operations: tuple[str, ...] = ()
    flip_probability: float = 0.5
    scale_ratio: float = 1.2
    rotation: float = 15.0
    crop_ratio: float = 0.125
    cutout_ratio: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    always: tuple[str, ...] = ()
    per_image: bool = False

    def __post_init__(self) -> None:
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise unknown_name("augmentation operation", operation, OPERATIONS)
        require(
            len(set(self.operations)) == len(self.operations),
            f"An augmentation operation may be named once only, got {'_'.join(self.operations)!r}.",
        )
        require(
            set(self.always) <= {"flip", "color", "cutout"} & set(self.operations),
            f"always may hold those of flip, color and cutout that are among the operations, got {self.always!r}.",
        )
        require(0 <= self.flip_probability <= 1, f"flip_probability must be in [0, 1], got {self.flip_probability!r}.")
        require(self.scale_ratio >= 1, f"scale_ratio must be at least 1, got {self.scale_ratio!r}.")
        for name in ("crop_ratio", "cutout_ratio"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)!r}.")
        for name in ("rotation", "brightness", "saturation", "contrast"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)!r}.")

    @classmethod
    def parse(cls, strategy: str) -> Augmentation:
        """An augmentation from a string such as "color_crop_flip": names of operations joined by "_", or "none"."""
        if not isinstance(strategy, str):
            raise InputError(
                f"An augmentation strategy must be a string such as {NO_FLIP!r} or 'none', got {strategy!r}."
            )
        names = strategy.lower().strip()
        return cls(() if names in ("", "none") else tuple(names.split("_")))

    def __call__(self, images: Tensor, seed: int, *, siamese: bool = True) -> Tensor:
        """Transform `images` (n, c, h, w); the result has the same shape and depends on `seed` only, apart from the
        images.

        Args:
            images: normalised images, on any device and of any floating dtype.
            seed: decides the operation and its parameters.
            siamese: one parameter for all images, whatever `n`; else one for each.
        """
        if not self.operations:
            return images
        rng = generator(seed, "augmentation")
        if self.per_image and not siamese:
            drawn = self._to_draw()
            picks = torch.randint(len(drawn), (len(images),), generator=rng).to(images.device)
            for number, operation in enumerate(drawn):
                rows = (picks == number).nonzero().squeeze(1)
                if len(rows):
                    changed = self._apply(operation, images[rows], _uniform(operation, rng, len(rows)))
                    images = images.index_copy(0, rows, changed)
            return images
        for operation, numbers in self._drawn(rng, 1 if siamese else len(images)):
            images = self._apply(operation, images, numbers)
        return images

    def by_group(self, images: Tensor, owners: Tensor, seeds: Sequence[int]) -> Tensor:
        """Transform the images of every group as a siamese call with its seed does, those of one operation in one go.

        Args:
            images: normalised images (n, c, h, w), as above.
            owners: the group of each, (n,), from 0 on.
            seeds: of each group.
        """
        if not self.operations or not len(images):
            return images
        plans = [self._drawn(generator(seed, "augmentation"), 1) for seed in seeds]
        for stage in zip(*plans):  # of every group the first operation, then of every group the second
            kinds = torch.tensor([OPERATIONS.index(operation) for operation, _ in stage]).to(owners.device)[owners]
            numbers = torch.zeros(len(stage), max(_NUMBERS.values()), dtype=torch.float64)
            for row, (_, drawn) in zip(numbers, stage):
                row[: len(drawn)] = drawn[:, 0]
            own = numbers.to(images.device, images.dtype)[owners]
            order, parts = [], []
            for kind in kinds.unique().tolist():
                rows, operation = (kinds == kind).nonzero().squeeze(1), OPERATIONS[kind]
                order.append(rows)
                parts.append(self._apply(operation, images[rows], own[rows, : _NUMBERS[operation]].T))
            images = torch.cat(parts)[torch.cat(order).argsort()]
        return images

    def _to_draw(self) -> list[str]:
        return [operation for operation in self.operations if operation not in self.always]

    def _drawn(self, rng: torch.Generator, count: int) -> list[tuple[str, Tensor]]:
        """The operations of one call, in order, with the numbers of each for so many images or for all (1)."""
        drawn = self._to_draw()
        chosen = [drawn[int(torch.randint(len(drawn), (), generator=rng))]] if drawn else []
        before = [one for one in ("flip", "color") if one in self.always]
        after = ["cutout"] if "cutout" in self.always else []
        return [(operation, _uniform(operation, rng, count)) for operation in (*before, *chosen, *after)]

    def _apply(self, operation: str, images: Tensor, numbers: Tensor) -> Tensor:
        """One operation, by numbers in [0, 1): (k, n), or (k, 1) for all images."""
        each = numbers.to(images.device, images.dtype).unbind()
        parameters = [number.view(-1, 1, 1, 1) for number in each]
        if operation == "flip":
            return torch.where(parameters[0] < self.flip_probability, images.flip(3), images)
        known: dict[str, Callable[..., Tensor]] = {
            "color": self._color,
            "crop": self._crop,
            "cutout": self._cutout,
            "scale": self._scale,
            "rotate": self._rotate,
        }
        return known[operation](images, *parameters)

    def _color(self, images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
        images = images + (brightness - 0.5) * self.brightness
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * (saturation * self.saturation) + grey
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (contrast + self.contrast) + mean

    def _crop(self, images: Tensor, down: Tensor, right: Tensor) -> Tensor:
        height, width = images.shape[2:]
        reach_y, reach_x = round(self.crop_ratio * height), round(self.crop_ratio * width)
        shift_y = (down * (2 * reach_y + 1)).floor().long() - reach_y
        shift_x = (right * (2 * reach_x + 1)).floor().long() - reach_x
        rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) + shift_y
        columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) + shift_x
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        if len(rows) == 1:
            moved = images[:, :, rows.flatten()][:, :, :, columns.flatten()]
        else:
            moved = images.gather(2, rows.expand_as(images)).gather(3, columns.expand_as(images))
        return moved * inside.to(images.dtype)

    def _cutout(self, images: Tensor, down: Tensor, right: Tensor) -> Tensor:
        def covered(side: int, place: Tensor, axis: int) -> Tensor:
            # The centre is uniform over the image and the square is clipped at the border, as in DSA.
            box = round(self.cutout_ratio * side)
            first = (place * (side + 1 - box % 2)).floor() - box // 2
            shape = [1, 1, 1, 1]
            shape[axis] = side
            position = torch.arange(side, device=images.device, dtype=images.dtype).view(shape)
            return (position >= first) & (position < first + box)

        hole = covered(images.shape[2], down, 2) & covered(images.shape[3], right, 3)
        return images * (~hole).to(images.dtype)

    def _scale(self, images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        least, most = 1 / self.scale_ratio, self.scale_ratio
        y, x = least + (most - least) * vertical, least + (most - least) * horizontal
        zero = torch.zeros_like(x)
        return _affine(images, torch.stack([x, zero, zero, zero, y, zero], 1))

    def _rotate(self, images: Tensor, turn: Tensor) -> Tensor:
        angle = (turn - 0.5) * 2 * math.radians(self.rotation)
        sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
        # Grid coordinates are relative to the sides; the ratio keeps a turn a turn on images that are not square.
        ratio = images.shape[2] / images.shape[3]
        return _affine(images, torch.stack([cosine, -sine * ratio, zero, sine / ratio, cosine, zero], 1))


_NUMBERS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}
"""How many numbers decide an operation."""


def _uniform(operation: str, rng: torch.Generator, count: int) -> Tensor:
    """(k, count)."""
    return torch.stack([torch.rand(count, generator=rng, dtype=torch.float64) for _ in range(_NUMBERS[operation])])


def _affine(images: Tensor, maps: Tensor) -> Tensor:
    """Resample bilinearly: pixel p (in relative coordinates) takes its value from where `maps` (1 or n, 6, ...) put p."""
    theta = maps.reshape(-1, 2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
