"""Convolution of few channels and pooling for CPUs: the same numbers as PyTorch's own modules give, in less time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 32
"""Points that go through a convolutional network together on a CPU: their maps stay in the memory that the allocator keeps,
where those of hundreds are asked from the system and given back at every layer."""


class Conv3x3(nn.Conv2d):
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
