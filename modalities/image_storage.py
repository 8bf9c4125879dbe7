"""How the pixels of synthetic images are stored: freely, or factorised, as fewer numbers that decode to more images.

Survey, section 2.5. Every storage is differentiable, so any objective optimises any of them. It begins from given images, as near
to them as it can be.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.errors import check_count, require
from datastill.modalities.image_scale import PixelScale


class Storage(nn.Module, ABC):
    """Parameters that decode to images (n, c, h, w), normalised. The order of images is that of the images it begins from."""

    compact: ClassVar[bool] = True
    """Whether it takes fewer bytes than the images, so that bytes are reported for both."""
    folds: ClassVar[bool] = False
    """Whether it has parameters that are there for optimisation alone and are folded into the images that are exported."""
    versions: int = 1
    """How many images that follow each other are versions of one."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The images, differentiable in the parameters."""

    def clamp_(self, scale: PixelScale) -> None:
        """Keep what is stored in the valid range, where it is in the scale of pixels at all."""

    @property
    def options(self) -> dict[str, float]:
        """The options from which a storage of the same shapes is built."""
        return {}

    @classmethod
    def share(cls, **options: float) -> int:
        """How many images come from one stored unit, and so are of one class."""
        return 1

    @classmethod
    def least(cls, **options: float) -> int:
        """The fewest images, of all classes together, that can be stored so."""
        return 1


class FreePixels(Storage):
    """Every pixel is a parameter.

    Args:
        images: first values (n, c, h, w).
    """

    compact = False

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Parameter(images.clone())

    def forward(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        low, high = scale.bounds(self.pixels)
        self.pixels.copy_(torch.minimum(torch.maximum(self.pixels, low), high))


_MOST_VALUES = 64 * 64 * 3


class Preconditioned(FreePixels):
    """Free pixels times a matrix that all images share and that is learned with them (RFAD, arXiv 2210.12067, appendix).

    The matrix is I + mixing M, with M learned from zero, so that by Adam it moves `mixing` times as fast as pixels do. It
    changes how pixels move together, not what can be reached: the export has the products, and no matrix.

    Args:
        images: first values (n, c, h, w) of at most 12,288 numbers each, as the matrix has their square.
        mixing: rate of the matrix relative to that of pixels, above 0; 0.05 as published.
    """

    folds = True

    def __init__(self, images: Tensor, mixing: float = 0.05) -> None:
        super().__init__(images)
        size = images[0].numel()
        require(
            size <= _MOST_VALUES,
            f"storage='preconditioned' learns a matrix of the square of an image's numbers: images may have {_MOST_VALUES:,} at "
            f"most, got {size:,}. Ask for storage='pixels'.",
        )
        require(
            isinstance(mixing, int | float) and not isinstance(mixing, bool) and 0 < mixing < math.inf,
            f"mixing must be a positive number, got {mixing!r}.",
        )
        self.rate = mixing
        self.mixing = nn.Parameter(images.new_zeros(size, size))

    def forward(self) -> Tensor:
        flat = self.pixels.flatten(1)
        return torch.addmm(flat, flat, self.mixing, alpha=self.rate).view_as(self.pixels)

    @property
    def options(self) -> dict[str, float]:
        return {"mixing": self.rate}

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        """Clamp the images themselves: if any is out of range, the clamped products become the pixels, and the matrix is the
        identity again. As that often starts it anew, the matrix is meant for summaries that are not clamped."""
        images = self()
        low, high = scale.bounds(images)
        inside = torch.minimum(torch.maximum(images, low), high)
        if not torch.equal(inside, images):
            self.pixels.copy_(inside)
            self.mixing.zero_()


class MultiFormation(Storage):
    """Each stored image is a mosaic of factor x factor tiles, every one of which is enlarged to an image (IDC, arXiv 2205.14959).

    It takes 1/factor^2 of the bytes of the images.

    Args:
        images: first values (n, c, h, w); factor^2 neighbours share a mosaic.
        factor: at least 2, at most the height and the width.
    """

    def __init__(self, images: Tensor, factor: int = 2) -> None:
        super().__init__()
        channels, height, width = images.shape[1:]
        check_count("factor", factor, least=2)
        require(factor <= min(height, width), f"factor must be at most {min(height, width)}, got {factor}.")
        self.shape = height, width
        self.factor = factor
        # Tiles of one size, rounded up; where the factor does not divide the side a stored image is a little larger.
        tile = math.ceil(height / factor), math.ceil(width / factor)
        small = F.interpolate(images, tile, mode="bilinear", align_corners=False, antialias=True)
        grid = small.view(-1, factor, factor, channels, *tile).permute(0, 3, 1, 4, 2, 5)
        self.mosaics = nn.Parameter(grid.reshape(-1, channels, factor * tile[0], factor * tile[1]).contiguous())

    def forward(self) -> Tensor:
        count, channels, height, width = self.mosaics.shape
        tile = height // self.factor, width // self.factor
        grid = self.mosaics.view(count, channels, self.factor, tile[0], self.factor, tile[1])
        tiles = grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, *tile)
        return F.interpolate(tiles, self.shape, mode="bilinear", align_corners=False)

    @property
    def options(self) -> dict[str, float]:
        return {"factor": self.factor}

    @classmethod
    def share(cls, **options: float) -> int:
        return int(check_count("factor", options.get("factor", 2), least=2)) ** 2

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        low, high = scale.bounds(self.mosaics)
        self.mosaics.copy_(torch.minimum(torch.maximum(self.mosaics, low), high))


class LinearBases(Storage):
    """Images are linear combinations of bases that all classes share (LinBa, arXiv 2206.02916), enlarged if they are small.

    It takes bases * c * h * w / downscale^2 + n * bases numbers. The bases begin as the leading singular vectors of the images,
    so that decoding begins as near to the images as that many bases allow.

    Args:
        images: first values (n, c, h, w).
        bases: how many, at least 1 and at most n and the numbers of a small image.
        downscale: side of a base relative to that of an image, inverted.
    """

    def __init__(self, images: Tensor, bases: int = 16, downscale: int = 1) -> None:
        super().__init__()
        count, _, height, width = images.shape
        check_count("bases", bases)
        check_count("downscale", downscale)
        small = images
        if downscale > 1:
            side = max(1, height // downscale), max(1, width // downscale)
            small = F.interpolate(images, side, mode="bilinear", align_corners=False, antialias=True)
        most = min(count, small[0].numel())
        require(
            bases <= most,
            f"bases must be at most {most} for {count} images of this size, got {bases}: ask for more images, or for fewer bases "
            f"(storage_options={{'bases': {most}}}).",
        )
        self.shape = height, width
        self.downscale = downscale
        left, values, right = torch.linalg.svd(small.flatten(1).double(), full_matrices=False)
        # Both factors get the root of the singular values, so that one learning rate suits them.
        roots = values[:bases].sqrt()
        self.bases = nn.Parameter((roots[:, None] * right[:bases]).view(bases, *small.shape[1:]).to(images.dtype))
        self.coefficients = nn.Parameter((left[:, :bases] * roots).to(images.dtype))

    @classmethod
    def least(cls, **options: float) -> int:
        return int(check_count("bases", options.get("bases", 16)))

    def forward(self) -> Tensor:
        small = torch.einsum("nb,bchw->nchw", self.coefficients, self.bases)
        if small.shape[2:] == self.shape:
            return small
        return F.interpolate(small, self.shape, mode="bilinear", align_corners=False)

    @property
    def options(self) -> dict[str, float]:
        return {"bases": len(self.bases), "downscale": self.downscale}


class Frequencies(Storage):
    """The lowest frequencies of each image's discrete cosine transform; the others are zero (as in FreD, arXiv 2311.08819).

    It takes keep^2 of the bytes of the images.

    Args:
        images: first values (n, c, h, w).
        keep: share of the frequencies that is kept along each side, in (0, 1].
    """

    def __init__(self, images: Tensor, keep: float = 0.5) -> None:
        super().__init__()
        require(
            isinstance(keep, int | float) and not isinstance(keep, bool) and 0 < keep <= 1,
            f"keep must be in (0, 1], got {keep!r}.",
        )
        self.keep = keep
        height, width = images.shape[2:]
        rows, columns = max(1, round(keep * height)), max(1, round(keep * width))
        self.down: Tensor
        self.across: Tensor
        self.register_buffer("down", cosines(height)[:rows].to(images.dtype), persistent=False)
        self.register_buffer("across", cosines(width)[:columns].to(images.dtype), persistent=False)
        self.coefficients = nn.Parameter(self.down @ images @ self.across.T)

    def forward(self) -> Tensor:
        return self.down.T @ self.coefficients @ self.across

    @property
    def options(self) -> dict[str, float]:
        return {"keep": self.keep}


def cosines(size: int) -> Tensor:
    """The orthonormal matrix (size, size) of the discrete cosine transform (DCT-II), in float64; rows are frequencies."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64)[None] + 0.5
    matrix = torch.cos(math.pi / size * frequency * place) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
