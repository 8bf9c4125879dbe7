"""Stored images that small shared networks decode: bases through hallucinators (HaBa), latent codes through decoders (KFS).

Every network decodes every base or code, so that few of both make many images. The weights of the networks are stored with
the rest and count in its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.errors import check_count, check_nonnegative, require
from datastill.modalities.image_storage import Storage, zeros


class Hallucinators(Storage):
    """Each basis image is drawn in several styles (HaBa: Liu et al., NeurIPS 2022, arXiv 2210.16774).

    A style is a 3x3 convolution to the inside of the image, a scale and a shift for each pixel, and a transposed convolution
    back: for 32x32 colour images 5,568 numbers. Bases begin as one of the images that they stand for, styles near the identity.

    Args:
        shape: (n, c, h, w) of the images, at least 3 pixels a side; the styles of a base follow each other.
        styles: how many, at least 1.
        diversity: at least 0, weight of the penalty on styles that an adversary finds alike (`StyleAdversary`).
        fit: steps of Adam that bring the decoded images nearer to those that it begins from.
    """

    factorised = True

    def __init__(self, shape: Sequence[int], styles: int = 5, diversity: float = 0.1, fit: int = 100) -> None:
        super().__init__(shape)
        count, channels, height, width = shape
        check_count("styles", styles)
        check_nonnegative("diversity", diversity)
        require(
            min(height, width) >= 3,
            f"storage='hallucinators' needs images of at least 3 pixels a side, got {height}x{width}.",
        )
        self.styles = self.versions = styles
        self.diversity = diversity
        self.fit = check_count("fit", fit, least=0)
        self.bases = zeros(-(-count // styles), channels, height, width)
        self.encoders = zeros(styles, channels, channels, 3, 3)
        self.encoder_biases = zeros(styles, channels)
        self.scales = zeros(styles, channels, height - 2, width - 2)
        self.shifts = zeros(styles, channels, height - 2, width - 2)
        self.decoders = zeros(styles, channels, channels, 3, 3)
        self.decoder_biases = zeros(styles, channels)

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        self.bases.copy_(images[:: self.styles])
        self.encoders.copy_(_identity(self.styles, images.shape[1]))
        self.scales.fill_(1.0)
        self.decoders.copy_(_identity(self.styles, images.shape[1]))
        _fit(self, images, self.fit)

    def forward(self) -> Tensor:
        count, channels, height, width = self.bases.shape
        inside = F.conv2d(self.bases, self.encoders.flatten(0, 1), self.encoder_biases.flatten())
        inside = inside * self.scales.flatten(0, 1) + self.shifts.flatten(0, 1)
        images = F.conv_transpose2d(
            inside, self.decoders.flatten(0, 1), self.decoder_biases.flatten(), groups=self.styles
        )
        return images.view(count * self.styles, channels, height, width)

    @property
    def options(self) -> dict[str, float]:
        return {"styles": self.styles}

    @classmethod
    def share(cls, **options: float) -> int:
        return check_count("styles", options.get("styles", 5))


class LatentCodes(Storage):
    """Each latent code is decoded by several small decoders (after KFS: Lee et al., 2022, arXiv 2208.10494).

    A code has `channels` maps of a quarter of the image's sides; a decoder is two transposed convolutions (4x4, stride 2) with a
    ReLU between. Both begin as what `fit` steps of Adam find for the images.

    Args:
        shape: (n, c, h, w) of the images; the images of a code follow each other.
        decoders: how many, at least 1.
        channels: maps of a code.
        width: maps between the two convolutions of a decoder.
        fit: steps that bring the decoded images near to those that it begins from.
    """

    factorised = True

    def __init__(
        self, shape: Sequence[int], decoders: int = 2, channels: int = 4, width: int = 16, fit: int = 300
    ) -> None:
        super().__init__(shape)
        for name, value in (("decoders", decoders), ("channels", channels), ("width", width)):
            check_count(name, value)
        count, depth, *sides = shape
        self.shape = tuple(sides)
        self.number = decoders
        self.fit = check_count("fit", fit, least=0)
        self.codes = zeros(-(-count // decoders), channels, *(math.ceil(side / 4) for side in sides))
        self.first = zeros(decoders, channels, width, 4, 4)
        self.first_biases = zeros(decoders, width)
        self.second = zeros(decoders, width, depth, 4, 4)
        self.second_biases = zeros(decoders, depth)

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        grey = F.interpolate(images[:: self.number].mean(1, keepdim=True), tuple(self.codes.shape[2:]), mode="area")
        channels, width = self.first.shape[1:3]
        self.codes.copy_(grey + 0.1 * torch.randn(self.codes.shape))
        self.first.copy_(torch.randn(self.first.shape) / math.sqrt(4 * channels))
        self.second.copy_(torch.randn(self.second.shape) / math.sqrt(4 * width))
        _fit(self, images, self.fit)

    def forward(self) -> Tensor:
        hidden = F.conv_transpose2d(
            self.codes, self.first.transpose(0, 1).flatten(1, 2), self.first_biases.flatten(), stride=2, padding=1
        ).relu()
        images = F.conv_transpose2d(
            hidden, self.second.flatten(0, 1), self.second_biases.flatten(), stride=2, padding=1, groups=self.number
        )
        images = images[:, :, : self.shape[0], : self.shape[1]]
        return images.reshape(-1, self.second.shape[2], *self.shape)

    @property
    def options(self) -> dict[str, float]:
        return {"decoders": self.number, "channels": self.codes.shape[1], "width": self.first.shape[2]}

    @classmethod
    def share(cls, **options: float) -> int:
        return check_count("decoders", options.get("decoders", 2))


def _identity(styles: int, channels: int) -> Tensor:
    """Convolutions (styles, channels, channels, 3, 3) near the identity, each a little different."""
    kernels = 0.02 * torch.randn(styles, channels, channels, 3, 3)
    kernels[:, range(channels), range(channels), 1, 1] += 1
    return kernels


def _fit(storage: Storage, images: Tensor, steps: int) -> None:
    """Bring decoded images nearer to `images` in mean squared error."""
    optimizer = torch.optim.Adam(storage.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            F.mse_loss(storage(), images).backward()
        optimizer.step()
    for parameter in storage.parameters():
        parameter.grad = None
