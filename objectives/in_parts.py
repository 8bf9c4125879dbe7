"""A loss that is a sum over parts of a summary, whose graphs are never in memory together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datastill import memory
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.chunks import activations
from datastill.modalities.base import Modality, Summary
from datastill.rng import generator

FIRST, SECOND = 2, 4
"""How often what layers give is in memory for a derivative, and for one of gradients; and then those gradients."""
_ROOM = 128 * 2**20
"""Bytes of graphs that a CPU keeps together, by this estimate: with more a step is hardly quicker."""


Parts: TypeAlias = list[dict[int, int]]
"""Groups, each with its points, of every part."""


def parts_of_summary(
    modality: Modality,
    summary: Summary,
    learner: str | None,
    *,
    most: int | None = None,
    derivative: int = SECOND,
    together: bool = False,
) -> Parts:
    """`parts_of_groups` of a summary for the learner of that name; one part of all groups if they are needed `together`."""
    with torch.no_grad():
        batch = summary().detach().to(modality.device)
    parts = parts_of_groups(modality.learner(learner, rng=generator("parts")), batch, most, derivative=derivative)
    return [dict(pair for part in parts for pair in part.items())] if together else parts


def parts_of_groups(net: Learner, batch: Batch, most: int | None = None, *, derivative: int = SECOND) -> Parts:
    """The groups of a summary with their points, cut into parts whose graphs fit into memory together.

    Groups are whole. A learner that couples points, and points that are not plain tensors, have one part of all groups.

    Args:
        net: the learner that is differentiated.
        batch: all points of the summary.
        most: points of a group that count, at most; None is all.
        derivative: `SECOND` where gradients of each group are differentiated again, or `FIRST`.
    """
    counts = enumerate(torch.bincount(batch.groups.cpu()).tolist())
    groups = {group: min(count, most or count) for group, count in counts if count}
    if net.couples_points or not batch.plain:
        return [groups]
    device = batch.groups.device
    room = memory.chunk(1, device, most=_ROOM if device.type == "cpu" else sys.maxsize)
    of_point = derivative * activations(net, batch.take(torch.zeros_like(batch.groups[:1])).inputs)[0]
    weights = sum(value.numel() * value.element_size() for value in net.parameters())
    of_group = derivative * weights if derivative == SECOND else 0
    parts: Parts = []
    left = 0
    for group, points in groups.items():
        needed = points * of_point + of_group
        if not parts or needed > left:
            parts.append({})
            left = room
        parts[-1][group] = points
        left -= needed
    return parts


def sum_of_parts(batch: Batch, parts: Iterable[Callable[[Batch], Tensor]]) -> Tensor:
    """The sum of all `part(batch)`, scalars, each differentiated before the next is computed.

    So memory is that of the largest part, and the backward pass only multiplies. The sum can be differentiated once, in the
    inputs and targets of `batch`, which has to be `plain`.
    """
    whole = [nest for nest in (batch.inputs, batch.targets) if nest.requires_grad]
    inputs, targets = (nest.detach().requires_grad_(nest.requires_grad) for nest in (batch.inputs, batch.targets))
    own, leaves = Batch(inputs, targets, batch.groups), [nest for nest in (inputs, targets) if nest.requires_grad]
    values: list[Tensor] = []
    slopes: list[Tensor | None] = [None] * len(leaves)
    for part in parts:
        with torch.enable_grad():
            value = part(own)
        values.append(value.detach())
        if leaves:
            found = torch.autograd.grad(value, leaves, allow_unused=True)
            slopes = [new if old is None else old if new is None else old + new for old, new in zip(slopes, found)]
    total = torch.stack(values).sum()
    if not leaves:
        return total
    known: Tensor = _Known.apply(total, slopes, *whole)
    return known


class _Known(torch.autograd.Function):
    """A value whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *(None if slope is None else grads[0] * slope for slope in ctx.slopes)
