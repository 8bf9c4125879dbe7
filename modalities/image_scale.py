"""The scale of pixels: how images are normalised for learners, and how a summary is turned back into images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.errors import require

_BLOCK = 2**22  # numbers, 32 MiB in float64, however large an image is


def blocks_of(images: Tensor) -> Sequence[Tensor]:
    """Images (n, channels, height, width) some at a time; always the same ones, so that sums of them are too."""
    return images.split(max(1, _BLOCK // max(1, math.prod(images.shape[1:]))))


@dataclass(frozen=True)
class PixelScale:
    """How pixels are normalised for learners, and back: z = ((x - low) / (high - low) - mean) / std, per channel.

    Attributes:
        low: the least valid pixel value in the input's scale.
        high: the largest one.
        mean: (channels,) mean of the training pixels on the scale from 0 (low) to 1 (high).
        std: (channels,) their standard deviation on that scale; 1 for a channel that is constant.
    """

    low: float
    high: float
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor, valid: tuple[float, float] | None) -> PixelScale:
        """The scale of training images (n, c, h, w); see `ImageModality` for how the valid range is found."""
        if valid is None:
            low, high = (0.0, 255.0) if images.dtype == torch.uint8 else (float(images.min()), float(images.max()))
            if images.dtype != torch.uint8 and low >= 0 and 0.5 < high <= 1:
                low, high = 0.0, 1.0
            high = high if high > low else low + 1
        else:
            low, high = (float(bound) for bound in valid)
            require(low < high, f"value_range must be (low, high) with low < high, got {valid!r}.")
            if images.dtype == torch.uint8:
                require(
                    low >= 0 and high <= 255, f"value_range of uint8 images must lie between 0 and 255, got {valid!r}."
                )
        sums, squares = torch.zeros(images.shape[1]).double(), torch.zeros(images.shape[1]).double()
        for chunk in blocks_of(images):  # so that a large uint8 dataset is never held in floating point
            unit = (chunk.double() - low) / (high - low)
            sums += unit.sum((0, 2, 3))
            squares += unit.square().sum((0, 2, 3))
        count = images.numel() / images.shape[1]
        mean = sums / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        require(bool((std > 1e-6).any()), "All pixels have one value: there is nothing to learn from.")
        return cls(low, high, mean.float(), torch.where(std > 1e-6, std, 1.0).float())

    def normalise(self, images: Tensor) -> Tensor:
        """Images in the input's scale to normalised float32."""
        mean, std = self._columns(images)
        return ((images.to(torch.float32) - self.low) / (self.high - self.low) - mean) / std

    def restore(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`, floating."""
        mean, std = self._columns(images)
        return (images * std + mean) * (self.high - self.low) + self.low

    def bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest valid normalised value, each (1, c, 1, 1)."""
        mean, std = self._columns(like)
        return -mean / std, (1 - mean) / std

    def clamp(self, images: Tensor) -> Tensor:
        """Normalised images with every value in the valid range."""
        low, high = self.bounds(images)
        return torch.minimum(torch.maximum(images, low), high)

    def eight_bit(self, images: Tensor) -> Tensor:
        """Images in the input's scale as uint8, 0 for `low` and 255 for `high`."""
        unit = (images.to(torch.float32) - self.low) / (self.high - self.low)
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8)

    def from_eight_bit(self, images: Tensor) -> Tensor:
        """The inverse of `eight_bit`, up to rounding, floating."""
        return images.to(torch.float32) / 255 * (self.high - self.low) + self.low

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1)
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return self.mean.view(shape).to(like.device, dtype), self.std.view(shape).to(like.device, dtype)
