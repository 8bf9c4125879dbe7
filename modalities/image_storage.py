"""How the pixels of synthetic images are stored: freely, or factorised, as fewer numbers that decode to more images.

Survey, section 2.5. Every storage is differentiable, so any objective optimises any of them. It is made for a shape, which costs
nothing, and then either begins from given images, as near to them as it can be, or takes numbers that were stored.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.errors import check_count, check_positive, check_ratio, require
from datastill.modalities.image_scale import PixelScale


class Storage(nn.Module, ABC):
    """Parameters that decode to images, normalised. The order of images is that of the images it begins from.

    Args:
        shape: (n, c, h, w) of the images.
        options: those of the kind of storage.

    All numbers are zero at first.
    """

    compact: ClassVar[bool] = True
    """Whether it takes fewer bytes than the images, so that bytes are reported for both."""
    folds: ClassVar[bool] = False
    """Whether it has parameters that are there for optimisation alone and are folded into the images that are exported."""
    factorised: ClassVar[bool] = False
    """Whether images are products of several of its parameters, so that no rate for pixels suits these."""
    versions: int = 1
    """How many images that follow each other are versions of one."""

    @abstractmethod
    def __init__(self, shape: Sequence[int], **options: float) -> None:
        super().__init__()

    @classmethod
    def of(cls, images: Tensor, **options: float) -> Self:
        """A storage that begins from `images` (n, c, h, w); whatever is random comes from the global generator."""
        storage = cls(images.shape, **options).to(images.device, images.dtype)
        storage.begin_(images)
        return storage

    @abstractmethod
    def begin_(self, images: Tensor) -> None:
        """Set the numbers to those that decode as near to `images` as they can."""

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
        shape: (n, c, h, w) of the images.
    """

    compact = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.pixels = zeros(*shape)

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        self.pixels.copy_(images)

    def forward(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        self.pixels.copy_(scale.clamp(self.pixels))


_MOST_VALUES = 64 * 64 * 3


class Preconditioned(FreePixels):
    """Free pixels times a matrix that all images share and that is learned with them (RFAD, arXiv 2210.12067, appendix).

    The matrix is I + mixing M, with M learned from zero, so that by Adam it moves `mixing` times as fast as pixels do. It
    changes how pixels move together, not what can be reached: the export has the products, and no matrix.

    Args:
        shape: (n, c, h, w) of the images, of at most 12,288 numbers each, as the matrix has their square.
        mixing: rate of the matrix relative to that of pixels, above 0; 0.05 as published.
    """

    folds = True

    def __init__(self, shape: Sequence[int], mixing: float = 0.05) -> None:
        super().__init__(shape)
        size = math.prod(shape[1:])
        require(
            size <= _MOST_VALUES,
            f"storage='preconditioned' learns a matrix of the square of an image's numbers: images may have {_MOST_VALUES:,} at "
            f"most, got {size:,}. Ask for storage='pixels'.",
        )
        check_positive("mixing", mixing)
        self.rate = mixing
        self.mixing = zeros(size, size)

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
        inside = scale.clamp(images)
        if not torch.equal(inside, images):
            self.pixels.copy_(inside)
            self.mixing.zero_()


class MultiFormation(Storage):
    """Each stored image is a mosaic of factor x factor tiles, every one of which is enlarged to an image (IDC, arXiv 2205.14959).

    It takes 1/factor^2 of the bytes of the images.

    Args:
        shape: (n, c, h, w) of the images; factor^2 neighbours share a mosaic.
        factor: at least 2, at most the height and the width.
    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        super().__init__(shape)
        count, channels, height, width = shape
        check_count("factor", factor, least=2)
        require(factor <= min(height, width), f"factor must be at most {min(height, width)}, got {factor}.")
        self.shape = height, width
        self.factor = factor
        # Tiles of one size, rounded up; where the factor does not divide the side a stored image is a little larger.
        self.mosaics = zeros(
            count // factor**2, channels, factor * math.ceil(height / factor), factor * math.ceil(width / factor)
        )

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        channels, height, width = self.mosaics.shape[1:]
        tile = height // self.factor, width // self.factor
        small = _resized(images, tile, antialias=True)
        grid = small.view(-1, self.factor, self.factor, channels, *tile).permute(0, 3, 1, 4, 2, 5)
        self.mosaics.copy_(grid.reshape(self.mosaics.shape))

    def forward(self) -> Tensor:
        count, channels, height, width = self.mosaics.shape
        tile = height // self.factor, width // self.factor
        grid = self.mosaics.view(count, channels, self.factor, tile[0], self.factor, tile[1])
        tiles = grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, *tile)
        return _resized(tiles, self.shape)

    @property
    def options(self) -> dict[str, float]:
        return {"factor": self.factor}

    @classmethod
    def share(cls, **options: float) -> int:
        return int(check_count("factor", options.get("factor", 2), least=2)) ** 2

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        self.mosaics.copy_(scale.clamp(self.mosaics))


class LowResolution(Storage):
    """Small images, each enlarged to the size of the images (survey, section 2.5): without a mosaic, for any number of them.

    It takes 1/downscale^2 of the bytes of the images, sides rounded up.

    Args:
        shape: (n, c, h, w) of the images.
        downscale: how many times smaller a stored side is, at least 2 and at most the height and the width.
    """

    def __init__(self, shape: Sequence[int], downscale: int = 2) -> None:
        super().__init__(shape)
        count, channels, height, width = shape
        check_count("downscale", downscale, least=2)
        require(downscale <= min(height, width), f"downscale must be at most {min(height, width)}, got {downscale}.")
        self.shape = height, width
        self.downscale = downscale
        self.small = zeros(count, channels, math.ceil(height / downscale), math.ceil(width / downscale))

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        self.small.copy_(_resized(images, self.small.shape[2:], antialias=True))

    def forward(self) -> Tensor:
        return _resized(self.small, self.shape)

    @property
    def options(self) -> dict[str, float]:
        return {"downscale": self.downscale}

    @torch.no_grad()
    def clamp_(self, scale: PixelScale) -> None:
        self.small.copy_(scale.clamp(self.small))


class LinearBases(Storage):
    """Images are linear combinations of bases that all classes share (LinBa, arXiv 2206.02916), enlarged if they are small.

    It takes bases * c * h * w / downscale^2 + n * bases numbers. The bases begin as the leading singular vectors of the images,
    so that decoding begins as near to the images as that many bases allow.

    Args:
        shape: (n, c, h, w) of the images.
        bases: how many, at least 1 and at most n and the numbers of a small image.
        downscale: side of a base relative to that of an image, inverted.
    """

    factorised = True

    def __init__(self, shape: Sequence[int], bases: int = 16, downscale: int = 1) -> None:
        super().__init__(shape)
        count, channels, height, width = shape
        check_count("bases", bases)
        check_count("downscale", downscale)
        side = max(1, height // downscale), max(1, width // downscale)
        most = min(count, channels * side[0] * side[1])
        require(
            bases <= most,
            f"bases must be at most {most} for {count} images of this size, got {bases}: ask for more images, or for fewer bases "
            f"(storage_options={{'bases': {most}}}).",
        )
        self.shape = height, width
        self.downscale = downscale
        # Both lie column by column in memory, as a decomposition gives them, so that products round as those of its factors.
        self.bases = nn.Parameter(torch.zeros(channels * side[0] * side[1], bases).T.unflatten(1, (channels, *side)))
        self.coefficients = nn.Parameter(torch.zeros(bases, count).T)

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        bases, small = len(self.bases), images
        if self.downscale > 1:
            small = _resized(images, self.bases.shape[2:], antialias=True)
        left, values, right = torch.linalg.svd(small.flatten(1).double(), full_matrices=False)
        # Both factors get the root of the singular values, so that one learning rate suits them.
        roots = values[:bases].sqrt()
        self.bases.copy_((roots[:, None] * right[:bases]).view(self.bases.shape))
        self.coefficients.copy_(left[:, :bases] * roots)

    @classmethod
    def least(cls, **options: float) -> int:
        return int(check_count("bases", options.get("bases", 16)))

    def forward(self) -> Tensor:
        small = torch.einsum("nb,bchw->nchw", self.coefficients, self.bases)
        return small if small.shape[2:] == self.shape else _resized(small, self.shape)

    @property
    def options(self) -> dict[str, float]:
        return {"bases": len(self.bases), "downscale": self.downscale}


class Frequencies(Storage):
    """The lowest frequencies of each image's discrete cosine transform; the others are zero (as in FreD, arXiv 2311.08819).

    It takes keep^2 of the bytes of the images.

    Args:
        shape: (n, c, h, w) of the images.
        keep: share of the frequencies that is kept along each side, in (0, 1].
    """

    def __init__(self, shape: Sequence[int], keep: float = 0.5) -> None:
        super().__init__(shape)
        check_ratio("keep", keep)
        self.keep = keep
        count, channels, height, width = shape
        rows, columns = max(1, round(keep * height)), max(1, round(keep * width))
        self.down: Tensor
        self.across: Tensor
        self.coefficients = zeros(count, channels, rows, columns)
        self.register_buffer("down", cosines(height)[:rows].to(self.coefficients.dtype), persistent=False)
        self.register_buffer("across", cosines(width)[:columns].to(self.coefficients.dtype), persistent=False)

    @torch.no_grad()
    def begin_(self, images: Tensor) -> None:
        self.coefficients.copy_(self.down @ images @ self.across.T)

    def forward(self) -> Tensor:
        return self.down.T @ self.coefficients @ self.across

    @property
    def options(self) -> dict[str, float]:
        return {"keep": self.keep}


def _resized(images: Tensor, size: Sequence[int], *, antialias: bool = False) -> Tensor:
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def zeros(*shape: int) -> nn.Parameter:
    """A parameter of that shape."""
    return nn.Parameter(torch.zeros(shape))


def cosines(size: int) -> Tensor:
    """The orthonormal matrix (size, size) of the discrete cosine transform (DCT-II), in float64; rows are frequencies."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64)[None] + 0.5
    matrix = torch.cos(math.pi / size * frequency * place) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
