"""Convolution of few channels, its instance norm in closed form, and pooling: PyTorch's numbers in less time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.by_group import Tape, convolve, normalise
from datastill.backbones.precision import Conv2d

CHUNK = 32
"""Points that go through a convolutional network together on a CPU: their maps stay in the memory that the allocator keeps,
where those of hundreds are asked from the system and given back at every layer."""
_FEW = 4
"""Points whose maps of full size fit into a core's own cache."""


class Conv3x3(Conv2d):
    """A 3x3 convolution with padding 1.

    Without gradients, one channel on a CPU is convolved as a matrix product, since PyTorch's kernels are made for many channels.

    Args:
        channels: of the input.
        width: of the output.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.in_channels > 1 or inputs.device.type != "cpu" or self.bias is None:
            return super().forward(inputs)
        weights = self.weight.flatten(1).expand(len(inputs), -1, -1)
        return torch.baddbmm(self.bias[:, None], weights, F.unfold(inputs, 3, padding=1)).unflatten(2, inputs.shape[2:])


class HalvingMean(nn.Module):
    """2x2 average pooling; the last row and column of odd sizes count alone, so that sizes round up."""

    def forward(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[2:]
        if height % 2 or width % 2 or inputs.device.type != "cpu":
            return F.avg_pool2d(inputs, 2, ceil_mode=True)
        halved: Tensor = _Halve.apply(inputs)
        return halved


class _Halve(torch.autograd.Function):
    """The mean of 2x2 squares. It is linear, and the adjoint of `_Spread`, so that the two differentiate each other."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        rows = maps[:, :, ::2] + maps[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Spread.apply(grads[0])


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        count, channels, height, width = maps.shape
        wide = (0.25 * maps).unsqueeze(4).expand(-1, -1, -1, -1, 2).reshape(count, channels, height, 1, 2 * width)
        return wide.expand(-1, -1, -1, 2, -1).reshape(count, channels, 2 * height, 2 * width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Halve.apply(grads[0])


class Block(nn.Sequential):
    """A convolution (`Conv3x3`), a normalisation, an activation and a pooling, one after the other.

    Where few channels go in, instance norm needs no pass over the maps. A map is w . p, with p the 3x3 patches of the image and w
    the filter; so its mean and variance are w . E[p] and w . Cov[p] w, and the normalised map is one product of centred patches
    and scaled filters. The patches are put in the order of the four corners of pooling's squares, so that pooling is a sum
    of four stretches. No graph keeps maps of full size (`_PooledProduct`).
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if self._goes_as_product(inputs):
            return self._product(inputs, *self.parameters())
        outputs: Tensor = super().forward(inputs)
        return outputs

    def by_group(self, inputs: Tensor, tape: Tape) -> Tensor:
        """What `forward` makes of `inputs`, in eval mode, for gradients by groups of points."""
        if self._goes_as_product(inputs):
            return self._product(inputs, *(tape.for_each_point(value, len(inputs)) for value in self.parameters()))
        watched = False
        for part in self:
            if isinstance(part, Conv3x3):
                inputs, watched = convolve(part, inputs, tape), True
            elif isinstance(part, nn.GroupNorm | nn.BatchNorm2d):
                inputs, watched = normalise(part, inputs, tape), False
            elif not isinstance(part, nn.Identity):
                # An activation may write into what it reads, and the tape watches the maps as they are.
                inputs, watched = part(inputs.clone() if watched else inputs), False
        return inputs

    def _goes_as_product(self, inputs: Tensor) -> bool:
        return self._is_product() and inputs.shape[2] % 2 == 0 and inputs.shape[3] % 2 == 0

    def _is_product(self) -> bool:
        conv, norm, activation, pool = self
        return (
            isinstance(conv, Conv3x3)
            and 9 * conv.in_channels <= conv.out_channels
            and isinstance(norm, nn.GroupNorm)
            and norm.num_groups == norm.num_channels
            and type(activation) is nn.ReLU  # which a quarter can be taken out of
            and isinstance(pool, HalvingMean)
        )

    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        """With weight and bias of the convolution and of the norm, one for all points or for each its own."""
        _, norm, activation, _ = self
        assert isinstance(norm, nn.GroupNorm)
        filters, patches = weight.flatten(-3), _corner_patches(inputs)
        patches = patches - patches.mean(2, keepdim=True)
        covariance = patches @ patches.mT / patches.shape[2]
        variance = ((filters @ covariance) * filters).sum(2)
        scale = gain * (variance + norm.eps).rsqrt()
        # Norm takes the convolution's bias out, whose gradient is zero and not none.
        shift = (offset + 0 * bias).expand_as(scale)
        weights = torch.cat([scale[..., None] * filters, shift[..., None]], 2)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        height, width = inputs.shape[2:]
        if torch.is_grad_enabled():
            pooled: Tensor = _PooledProduct.apply(0.25 * weights, patches)
        else:
            pooled = _pooled(activation(torch.bmm(0.25 * weights, patches)))
        return pooled.unflatten(2, (height // 2, width // 2))


class _PooledProduct(torch.autograd.Function):
    """The sum over four stretches of columns of relu(a b), for a (n, k, d) and b (n, d, 4 m), with d small.

    It keeps no product: to multiply again, a few points at a time, takes less time than to write what the cache can't hold.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.cat([_pooled(torch.bmm(x, y).relu_()) for x, y in zip(*_parts(a, b))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.saved_tensors
        found: list[tuple[Tensor | None, Tensor | None]] = []
        for x, y, grad in zip(*_parts(a, b, grads[0])):
            maps = torch.bmm(x, y).detach().unflatten(2, (4, -1))  # whose sign alone is needed
            slopes = torch.ops.aten.threshold_backward(grad.unsqueeze(2).expand_as(maps), maps, 0).flatten(2)
            found.append(
                (
                    torch.bmm(slopes, y.mT) if ctx.needs_input_grad[0] else None,
                    torch.bmm(x.mT, slopes) if ctx.needs_input_grad[1] else None,
                )
            )
        return tuple(torch.cat(parts) if parts[0] is not None else None for parts in zip(*found))


def _pooled(maps: Tensor) -> Tensor:
    return maps.unflatten(2, (4, -1)).sum(2)


def _parts(*tensors: Tensor) -> tuple[Any, ...]:
    """Points at a time: a few on a CPU, all on other devices."""
    few = _FEW if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return tuple(tensor.split(few) for tensor in tensors)


def _corner_patches(images: Tensor) -> Tensor:
    """3x3 patches of images (n, c, h, w) padded by zeros, (n, 9 c, h w), pixels by corner of their 2x2 squares."""
    windows = F.unfold(images, 4, padding=1, stride=2).unflatten(1, (-1, 4, 4))
    corners = [windows[:, :, down : down + 3, right : right + 3].flatten(1, 3) for down in (0, 1) for right in (0, 1)]
    return torch.cat(corners, 2)
