"""Slopes of losses: how they depend on outputs, from which learners make gradients without autograd.

Any function of outputs and targets that gives a scalar is a loss. One that is marked by `sloped` has its slopes in closed form;
of others autograd finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from datastill.backbones.batch import take

Loss: TypeAlias = Callable[[Tensor, Any], Tensor]
"""Outputs (n, c) of n points and their targets to a scalar."""


Slopes: TypeAlias = Callable[[Tensor, Any, Sequence[int]], Tensor]
"""What `slopes_of` gives, from outputs, targets and sizes."""

_Function = TypeVar("_Function", bound=Callable[..., Tensor])


def sloped(slopes: Slopes) -> Callable[[_Function], _Function]:
    """Mark a loss, a function or a method, as one with these slopes. Whoever overrides the method has to mark it anew."""

    def mark(loss: _Function) -> _Function:
        loss.slopes = slopes  # type: ignore[attr-defined]
        return loss

    return mark


def cross_entropy_slopes(outputs: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of mean cross-entropy with class ids (n,) or distributions (n, c): (softmax(outputs) - targets) / points of the group."""
    found = outputs.T.softmax(0)  # a row for each class: a softmax over few numbers at a time is several times slower
    if targets.is_floating_point():
        found = found * targets.sum(1) - targets.T
    else:
        found = found.scatter_add(0, targets[None], found.new_full((1, len(targets)), -1.0))
    if min(sizes) == max(sizes):
        return (found / sizes[0]).T
    counts = torch.tensor(list(sizes), device=found.device)
    return (found / counts.repeat_interleave(counts).to(found.dtype)).T


def slopes_of(loss: Loss, outputs: Tensor, targets: Any, sizes: Sequence[int], *, differentiable: bool) -> Tensor:
    """d loss / d outputs (n, c) of points that stand group after group, every group with a loss of its own.

    Args:
        loss: of one group.
        outputs: (n, c).
        targets: of the same points.
        sizes: points of each group; they add up to n.
        differentiable: whether the slopes are to be differentiable in outputs and targets.
    """
    closed = getattr(loss, "slopes", None)
    if closed is not None:
        with torch.set_grad_enabled(differentiable):
            found: Tensor = closed(outputs, targets, sizes)
        return found
    with torch.enable_grad():
        if not differentiable or not outputs.requires_grad:
            outputs = outputs.detach().requires_grad_()
        rows = torch.arange(len(outputs), device=outputs.device).split(list(sizes))
        total = torch.stack([loss(outputs[mine], take(targets, mine)) for mine in rows]).sum()
        (found,) = torch.autograd.grad(total, outputs, create_graph=differentiable)
    return found
