"""Gradients of each group's own loss from one pass over the points of all groups.

A layer passes points with parameters that autograd does not follow, and leaves on a `Tape` the tensors whose slopes make the
gradients of its parameters. These are sums over points, so only this last step goes group by group. With a graph, what is
differentiated again is differentiated in the points alone and never in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from datastill.backbones import winograd
from datastill.backbones.outer import by_block
from datastill.backbones.precision import Conv2d


class Tape:
    """What the layers of one pass leave behind, layer after layer.

    Args:
        sizes: points of each group; the points stand group after group.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._watched: list[Tensor] = []
        self._gradients: list[Callable[[Tensor], list[Tensor]]] = []

    def watch(self, tensor: Tensor, gradients: Callable[[Tensor], list[Tensor]]) -> None:
        """Note that the slopes of `tensor` give, by `gradients`, those of the next parameters, each (groups, *shape)."""
        self._watched.append(tensor)
        self._gradients.append(gradients)

    def for_each_point(self, parameter: nn.Parameter, points: int) -> Tensor:
        """A parameter of few numbers for each point, (points, *shape): a gradient for each point, then added up, is no loss."""
        own = parameter.detach().expand(points, *parameter.shape).requires_grad_()
        self.watch(own, lambda slopes: [by_block(slopes, None, self.sizes)])
        return own

    def gradients(self, outputs: Tensor, slopes: Tensor, *, create_graph: bool) -> list[Tensor]:
        """Those of all parameters in the order they were noted, for d loss / d `outputs`."""
        if not self._watched:
            return []
        found = torch.autograd.grad(outputs, self._watched, slopes, create_graph=create_graph, materialize_grads=True)
        return [gradient for make, mine in zip(self._gradients, found) for gradient in make(mine)]


def convolve(conv: Conv2d, inputs: Tensor, tape: Tape) -> Tensor:
    """What `conv`, of stride 1 and with a bias, makes of `inputs`."""
    constants = {name: value.detach() for name, value in conv.named_parameters()}
    outputs: Tensor = functional_call(conv, constants, (inputs,))
    if not outputs.requires_grad:
        outputs.requires_grad_()
    dtype, padding = conv.multiplies_in(inputs), conv.padding
    assert not isinstance(padding, str)

    def gradients(slopes: Tensor) -> list[Tensor]:
        weight = _WeightSlopes.apply(
            inputs.to(dtype), slopes.to(dtype), constants["weight"].to(dtype), tape.sizes, padding
        )
        return [weight.to(slopes.dtype), by_block(slopes.sum((2, 3)), None, tape.sizes)]

    tape.watch(outputs, gradients)
    return outputs


def normalise(norm: nn.GroupNorm | nn.BatchNorm2d, inputs: Tensor, tape: Tape) -> Tensor:
    """What `norm`, in eval mode, makes of `inputs`."""
    points, channels, *size = inputs.shape
    weight, bias = (tape.for_each_point(value, points) for value in (norm.weight, norm.bias))
    if isinstance(norm, nn.GroupNorm):  # that of one point with the channels of all
        together = inputs.reshape(1, points * channels, *size)
        affine = weight.reshape(-1), bias.reshape(-1)
        normalised = F.group_norm(together, points * norm.num_groups, *affine, norm.eps)
        # Not a view: an activation that writes into one costs four copies in the backward pass.
        whole: Tensor = torch.ops.aten._unsafe_view(normalised, inputs.shape)
        return whole
    plain = F.batch_norm(inputs, norm.running_mean, norm.running_var, eps=norm.eps)
    return torch.addcmul(bias[..., None, None], plain, weight[..., None, None])


def passes(sizes: Sequence[int], most: int) -> Iterator[tuple[slice, int]]:
    """Groups of these sizes in passes of at most so many points, in order: the positions of a pass's groups, and its points.

    Groups that are larger are cut into about equal parts, each a pass of its own.
    """
    first = points = 0
    for position, size in enumerate(sizes):
        if points and points + size > most:
            yield slice(first, position), points
            points = 0
        if size > most:
            cuts = -(-size // most)
            for number in range(cuts):
                yield slice(position, position + 1), (size + number) // cuts
        else:
            first = position if not points else first
            points += size
    if points:
        yield slice(first, len(sizes)), points


_CHANNELS = 128
"""Of so many and more, a grouped convolution is slower than one after the other; of fewer it is faster."""
_FEW_CHANNELS = 8
"""Inputs of fewer are convolved sooner one group after the other, unless groups are single points."""


class _WeightSlopes(torch.autograd.Function):
    """Gradients (groups, *shape) of a convolution's weight, from its inputs and the slopes of its outputs: bilinear in both.

    Where all groups have n points, these are n images with the channels of all groups one after the other, and their
    convolutions a grouped one: as many as there are groups, one by one, take most of their time to begin.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, slopes: Tensor, weight: Tensor, sizes: list[int], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(inputs, slopes)
        ctx.sizes, ctx.padding, ctx.grouped = sizes, padding, _goes_grouped(inputs, slopes, sizes)
        if ctx.grouped:
            count = len(sizes)
            shape = weight.new_empty(count * len(weight), *weight.shape[1:])
            together = _convolution_slopes(_beside(slopes, count), _beside(inputs, count), shape, padding, groups=count)
            return together[1].view(count, *weight.shape)
        parts = zip(slopes.split(sizes), inputs.split(sizes))
        return torch.stack([_weight_slopes(slope, mine, weight, padding) for slope, mine in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, slopes = ctx.saved_tensors
        sizes, padding = ctx.sizes, ctx.padding
        # Slopes, inputs and the derivative's weight of each convolution, and how many groups of channels it has.
        if ctx.grouped:
            groups = len(sizes)
            parts = [(_beside(slopes, groups), _beside(inputs, groups), grads[0].flatten(0, 1))]
        else:
            parts, groups = list(zip(slopes.split(sizes), inputs.split(sizes), grads[0])), 1
        to_inputs = to_slopes = None
        if ctx.needs_input_grad[0]:
            found = [
                _convolution_slopes(slope, mine, own, padding, groups=groups, of_inputs=True)[0]
                for slope, mine, own in parts
            ]
            to_inputs = _below(torch.cat(found), groups)
        if ctx.needs_input_grad[1]:
            made = [F.conv2d(mine, own, padding=padding, groups=groups) for _, mine, own in parts]
            to_slopes = _below(torch.cat(made), groups)
        return to_inputs, to_slopes, None, None, None


def _goes_grouped(inputs: Tensor, slopes: Tensor, sizes: Sequence[int]) -> bool:
    if slopes.shape[1] >= _CHANNELS or min(sizes) < max(sizes):
        return False
    if inputs.device.type != "cpu" and inputs.dtype == torch.bfloat16:
        return False  # GPUs' libraries need not have that one
    several = len(sizes) > 1 and inputs.device.type == "cpu" and inputs.shape[1] >= _FEW_CHANNELS
    return max(sizes) == 1 or several


def _beside(points: Tensor, groups: int) -> Tensor:
    """Points (groups * n, c, h, w), group after group, as (n, groups * c, h, w)."""
    return points.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _below(maps: Tensor, groups: int) -> Tensor:
    """What `_beside` makes of points, as those points."""
    return maps.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _weight_slopes(slopes: Tensor, inputs: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Of one group."""
    if padding == (1, 1) and winograd.pays_at(inputs, weight):
        return winograd.weight_slopes(slopes, inputs, weight)
    found: Tensor = _convolution_slopes(slopes, inputs, weight, padding)[1]
    return found


def _convolution_slopes(
    slopes: Tensor,
    inputs: Tensor,
    weight: Tensor,
    padding: tuple[int, ...],
    *,
    groups: int = 1,
    of_inputs: bool = False,
) -> Any:
    """PyTorch's own, of either the inputs or the weight."""
    wanted, ones = [of_inputs, not of_inputs, False], [1, 1]
    return torch.ops.aten.convolution_backward(
        slopes, inputs, weight, None, ones, list(padding), ones, False, [0, 0], groups, wanted
    )
