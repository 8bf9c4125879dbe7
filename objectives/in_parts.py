"""A loss that is a sum over parts of a summary, whose graphs are never in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from datastill.backbones.batch import Batch


def sum_of_parts(batch: Batch, parts: Iterable[Callable[[Batch], Tensor]]) -> Tensor:
    """The sum of all `part(batch)`, scalars, each differentiated before the next is computed.

    So memory is that of the largest part, and the backward pass only multiplies. The sum can be differentiated once, in the
    inputs and targets of `batch`, which has to be `plain`.
    """
    whole = [nest for nest in (batch.inputs, batch.targets) if nest.requires_grad]
    own = Batch(
        *(nest.detach().requires_grad_(nest.requires_grad) for nest in (batch.inputs, batch.targets)), batch.groups
    )
    leaves = [nest for nest in (own.inputs, own.targets) if nest.requires_grad]
    total, slopes = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
    for part in parts:
        with torch.enable_grad():
            value = part(own)
        total = total + value.detach().to(total.device)
        if leaves:
            for slope, found in zip(slopes, torch.autograd.grad(value, leaves, materialize_grads=True)):
                slope += found
    if not leaves:
        return total
    known: Tensor = _Known.apply(total, slopes, *whole)
    return known


class _Known(torch.autograd.Function):
    """A value whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: list[Tensor], *_: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, *(grads[0] * slope for slope in ctx.slopes)
