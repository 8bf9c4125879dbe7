"""Convolutional ReLU networks at infinite width: their NNGP and NTK, in closed form, for images of any size.

The covariances of pairs of pixels go through the network as the inner products of vectors go through a fully connected one
(Novak et al., ICLR 2019, arXiv 1810.05148; Garriga-Alonso et al., ICLR 2019, arXiv 1808.05587; Arora et al., NeurIPS 2019,
arXiv 1904.11955). A convolution takes the mean over its window of K(i + d, j + d), which leaves the offset j - i as it is, and
2 x 2 pooling halves it. So covariances are kept by offset, and only of the offsets that reach the output: one without pooling
(O(h w) numbers for a pair of images), those up to 2^depth - 1 pixels if pooled maps are flattened, all of them under global
pooling (O((h w)^2)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from datastill.backbones.base import Kernel
from datastill.backbones.convnet import default_depth
from datastill.backbones.infinite import KernelKind, relu_moments
from datastill.errors import check_count, require, unknown_name

Pool = Literal["none", "avg", "global"]
_POOLS = ("none", "avg", "global")
_BLOCK = {"cpu": 2**20, "cuda": 2**25}  # numbers; on a CPU a few such tensors stay in its cache
_MOST = 2**28  # numbers of one pair of images: 1 GiB in float32, and a dozen such tensors are at work at once


@dataclass(frozen=True)
class _Axis:
    """Pairs (i, j) of pixels along one side of the images, by their offset j - i modulo the side and by i.

    Attributes:
        size: pixels of the side.
        reach: the largest offset that is needed, either way. As many as all offsets are all of them.
    """

    size: int
    reach: int

    @property
    def offsets(self) -> range:
        if 2 * self.reach + 1 >= self.size:
            return range(self.size)
        return range(-self.reach, self.reach + 1)

    @property
    def numbers(self) -> int:
        """Pairs that are kept."""
        return len(self.offsets) * self.size


class InfiniteConvNet(Kernel):
    """The kernel of a convolutional network of infinitely many channels without normalisation.

    A block is a convolution with zero padding, a ReLU and, for pool "avg", 2x2 average pooling (sizes round up, as in `ConvNet`);
    a linear layer reads the last maps. In the NTK parametrisation, as `InfiniteReLU`.

    Args:
        shape: (channels, height, width) of the images, of any size.
        depth: blocks, at least 1; None takes `default_depth`, the published 3 at 32 pixels.
        kind: "ntk" (all layers trained by gradient descent) or "nngp" (only the last one).
        pool: "none" flattens the last maps (KIP's "Conv", CNTK-V); "avg" pools in every block and flattens; "global" averages
            each of the last maps, without pooling before (CNTK-GAP).
        stem: whether a further convolution with a ReLU comes first, as in KIP's ConvNet.
        weight_variance: sigma_w^2 > 0 of every layer.
        bias_variance: sigma_b^2 >= 0 of every layer.
        filter_size: side of the window of a convolution, odd.
        block: covariances of pixels, `numbers_per_pair` of each pair of images, that are worked on at once, in blocks of pairs of
            images, at least one pair; None is 2^20 on a CPU and 2^25 on a GPU. Memory is about 30 times as many numbers with
            gradients, which go through one block at a time and recompute it, and 8 times without. Values do not depend on it.

    Raises:
        InputError: for arguments that are not as said, and for global pooling of images for which a single pair needs more than
            2^28 numbers.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        depth: int | None = None,
        kind: KernelKind = "ntk",
        pool: Pool = "none",
        *,
        stem: bool = False,
        weight_variance: float = 2.0,
        bias_variance: float = 0.01,
        filter_size: int = 3,
        block: int | None = None,
    ) -> None:
        for name, value in zip(("channels", "height", "width of images"), shape):
            check_count(name, value)
        self.depth = default_depth(*shape[1:]) if depth is None else check_count("depth", depth)
        require(kind in ("ntk", "nngp"), f"kind must be 'ntk' or 'nngp', got {kind!r}.")
        if pool not in _POOLS:
            raise unknown_name("pool", pool, _POOLS)
        require(weight_variance > 0, f"weight_variance must be positive, got {weight_variance!r}.")
        require(bias_variance >= 0, f"bias_variance must be at least 0, got {bias_variance!r}.")
        check_count("filter_size", filter_size)
        require(filter_size % 2 == 1, f"filter_size must be odd, got {filter_size}.")
        self.shape = tuple(shape)
        self.kind = kind
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance
        self.filter_size = filter_size
        self.block = None if block is None else check_count("block", block)
        self._pooled = [pool == "avg"] * self.depth
        if stem:
            self._pooled = [False, *self._pooled]
        # One more than there are layers: the last is of the maps that the output reads.
        self._levels = list(zip(*(_axes(side, self._pooled, pool == "global") for side in shape[1:])))
        rows, columns = self._levels[0]
        self.numbers_per_pair = numbers = rows.numbers * columns.numbers
        require(
            numbers <= _MOST,
            f"For {shape[1]}x{shape[2]} pixels this kernel compares {numbers:.2g} pairs of pixels for each pair of images, "
            f"more than {_MOST:.2g}: ask for one without global pooling, or make the images smaller.",
        )

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Gram matrix (n_a, n_b) of images `a` (n_a, channels, height, width) and `b`; half the work if `a is b`."""
        for images in (a, b):
            require(
                images.shape[1:] == self.shape,
                f"This kernel compares images of shape {self.shape}, got {tuple(images.shape[1:])}.",
            )
        fitting = max(1, self._block(a.device) // self.numbers_per_pair)
        ours = self._variances(a, fitting)
        theirs = ours if a is b else self._variances(b, fitting)
        # Square blocks where the matrix is symmetric, else long rows: what is made of an image of b serves all of a's.
        high = max(1, math.isqrt(fitting)) if a is b else min(fitting, len(a))
        wide = high if a is b else max(1, fitting // high)
        lefts, rights = _parts([a, *ours], high), _parts([b, *theirs], wide)
        rows: list[list[Tensor]] = []
        for i, left in enumerate(lefts):
            row = [rows[j][i].T for j in range(i)] if a is b else []
            row += [_recomputed(self._pairs, *left, *right) for right in rights[len(row) :]]
            rows.append(row)
        return torch.cat([torch.cat(row, 1) for row in rows])

    def kept(self, pairs: int, device: torch.device) -> int:
        """Those of one block and of the Gram matrices themselves."""
        return 30 * max(self.numbers_per_pair, self._block(device)) + pairs

    def _block(self, device: torch.device) -> int:
        return self.block or _BLOCK["cpu" if device.type == "cpu" else "cuda"]

    def _variances(self, images: Tensor, fitting: int) -> list[Tensor]:
        """What goes into each ReLU has these variances: for each layer (n, height, width)."""
        parts = [_recomputed(self._own, part) for part in images.split(fitting)]
        return [torch.cat(layer) for layer in zip(*parts)]

    def _own(self, images: Tensor) -> tuple[Tensor, ...]:
        covariance = (images[:, :, None, :, None] * _shifted(images, *self._levels[0])).mean(1)
        found: list[Tensor] = []
        for layer, (level, pooled) in enumerate(zip(self._levels, self._pooled)):
            covariance = self._through(covariance, level)
            found.append(covariance[:, level[0].offsets.index(0), :, level[1].offsets.index(0)])
            if layer + 1 < len(self._pooled):
                ours = found[-1][:, None, :, None]
                covariance = relu_moments(covariance, ours, _shifted(found[-1], *level))[1]
                covariance = _pool(covariance, level, self._levels[layer + 1]) if pooled else covariance
        return tuple(found)

    def _pairs(self, *given: Tensor) -> Tensor:
        """The kernel of each pair, (n_a, n_b), from a's images and variances and b's."""
        half = len(given) // 2
        (a, *ours), (b, *theirs) = given[:half], given[half:]
        covariance = torch.einsum("nchw,mcdhew->nmdhew", a, _shifted(b, *self._levels[0])).contiguous() / a.shape[1]
        tangent = covariance = self._through(covariance, self._levels[0])
        for layer, pooled in enumerate(self._pooled):
            level, below = self._levels[layer], self._levels[layer + 1]
            step, covariance = relu_moments(
                covariance, ours[layer][:, None, None, :, None], _shifted(theirs[layer], *level)
            )
            tangent = step * tangent if self.kind == "ntk" else tangent
            if pooled:
                covariance = _pool(covariance, level, below)
                tangent = _pool(tangent, level, below) if self.kind == "ntk" else tangent
            if layer + 1 < len(self._pooled):
                covariance = self._through(covariance, below)
                if self.kind == "ntk":
                    tangent = covariance + self._through(tangent, below, bias=False)
        # Only pairs that the output reads are left: each pixel with itself, or all of them under global pooling.
        value = self.weight_variance * covariance.mean((2, 3, 4, 5)) + self.bias_variance
        return value + self.weight_variance * tangent.mean((2, 3, 4, 5)) if self.kind == "ntk" else value

    def _through(self, covariance: Tensor, level: tuple[_Axis, ...], *, bias: bool = True) -> Tensor:
        """What a convolution makes of it."""
        sums = _Windows.apply(covariance, *level, self.filter_size // 2)
        scaled: Tensor = self.weight_variance / self.filter_size**2 * sums
        return scaled.add_(self.bias_variance) if bias else scaled


def convolutional_kernel(name: str, shape: tuple[int, int, int], depth: int | None = None) -> InfiniteConvNet | None:
    """The kernel of a name such as "cntk", "cnngp-avgpool" or "cntk-d3-avgpool-stem" for images of `shape`; None if it is none.

    After "cntk" or "cnngp" come, in any order, "avgpool" or "gap" (`pool` "avg" or "global"), "stem", and the depth as "d3"; the
    last is in place of `depth`.
    """
    options = parse_kernel(name)
    return None if options is None else InfiniteConvNet(shape, **{"depth": depth, **options})


def parse_kernel(name: str) -> dict[str, Any] | None:
    """The options of `InfiniteConvNet` that a name means; None if it is no such name."""
    first, *words = name.split("-")
    if first not in ("cntk", "cnngp"):
        return None
    options: dict[str, Any] = {"kind": first[1:]}
    for word in words:
        number = word[1:]
        if word[:1] == "d" and number.isascii() and number.isdigit() and int(number) > 0:
            found: dict[str, Any] = {"depth": int(number)}
        elif word in _WORDS:
            found = _WORDS[word]
        else:
            return None
        if options.keys() & found.keys():
            return None  # said twice
        options |= found
    return options


_WORDS: dict[str, dict[str, Any]] = {"avgpool": {"pool": "avg"}, "gap": {"pool": "global"}, "stem": {"stem": True}}


def _axes(size: int, pooled: list[bool], everything: bool) -> list[_Axis]:
    """The pairs of pixels along a side before each layer and after the last one."""
    sizes = [size]
    for halved in pooled:
        sizes.append(-(-sizes[-1] // 2) if halved else sizes[-1])
    reaches = [sizes[-1] - 1 if everything else 0]
    for halved in reversed(pooled):
        reaches.append(2 * reaches[-1] + 1 if halved else reaches[-1])
    return [_Axis(side, min(reach, side)) for side, reach in zip(sizes, reversed(reaches))]


def _parts(tensors: list[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in tensors)))


def _recomputed(function: Callable[..., Any], *given: Tensor) -> Any:
    """`function` of tensors, of which nothing is kept for the backward pass but these."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return function(*given)


def _shifted(maps: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """maps(j) of each pair (i, j): from (..., height, width) to (..., row offsets, height, column offsets, width)."""
    moved = torch.stack([maps.roll(-offset, -2) for offset in rows.offsets], -3)
    return torch.stack([moved.roll(-offset, -1) for offset in columns.offsets], -2)


def _pool(covariance: Tensor, level: tuple[_Axis, ...], below: tuple[_Axis, ...]) -> Tensor:
    """Covariances of 2x2 means: along each side the mean over the pixels of i and those of j."""
    made = [_pooling(fine, coarse, covariance.dtype, covariance.device) for fine, coarse in zip(level, below)]
    flat = made[0].T @ covariance.flatten(-2).flatten(-3, -2) @ made[1]
    shape = [number for axis in below for number in (len(axis.offsets), axis.size)]
    return flat.reshape(*covariance.shape[:-4], *shape)


@lru_cache(maxsize=64)
def _pooling(fine: _Axis, coarse: _Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (fine pairs, coarse pairs) of the mean of two pixels on either side; the last one of an odd size is alone."""
    matrix = torch.zeros(len(fine.offsets), fine.size, len(coarse.offsets), coarse.size, dtype=dtype)
    for place, offset in enumerate(coarse.offsets):
        for i in range(coarse.size):
            j = (i + offset) % coarse.size
            for ours in _inside(i, fine.size):
                for theirs in _inside(j, fine.size):
                    matrix[_place(fine, theirs - ours), ours, place, i] += 0.25
    return matrix.reshape(fine.numbers, coarse.numbers).to(device)


def _inside(pixel: int, size: int) -> Iterator[int]:
    yield 2 * pixel
    yield min(2 * pixel + 1, size - 1)


def _place(axis: _Axis, offset: int) -> int:
    first = axis.offsets[0]
    return (offset - first) % axis.size


@lru_cache(maxsize=256)
def _together(axis: _Axis, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(offsets, size - shift): 1 where not only i + shift is inside the image, but j + shift too."""
    offsets = torch.tensor(list(axis.offsets))[:, None]
    other = (torch.arange(axis.size - shift) + offsets) % axis.size
    return (other + shift < axis.size).to(device, dtype)


class _Windows(torch.autograd.Function):
    """Sums over the window of K(i + d, j + d), zero outside the images. As a matrix it is symmetric, so its own adjoint."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, rows: _Axis, columns: _Axis, most: int) -> Tensor:
        ctx.window = rows, columns, most
        for dim, axis in ((-3, rows), (-1, columns)):
            sums = covariance.clone()
            for shift in range(1, min(most, axis.size - 1) + 1):
                inside = _together(axis, shift, covariance.dtype, covariance.device)
                inside = inside[:, :, None, None] if dim == -3 else inside
                length = axis.size - shift
                for there, here in ((shift, 0), (0, shift)):
                    sums.narrow(dim, here, length).addcmul_(covariance.narrow(dim, there, length), inside)
            covariance = sums
        return covariance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Windows.apply(gradients[0], *ctx.window), None, None, None
