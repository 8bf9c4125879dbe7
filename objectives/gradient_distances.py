"""How far the gradients of two sets of points are apart, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datastill.backbones.outer import Outer, dense
from datastill.errors import require

Distance = Literal["rows", "cosine", "squared", "relative", "hidden-squared", "hidden-absolute"]
DISTANCES: tuple[str, ...] = get_args(Distance)


def gradient_distances(ours: Sequence[Any], target: Sequence[Any], distance: Distance) -> Tensor:
    """How far two lists of parameter gradients, each (groups, *shape), are apart, (groups,); see `GradientMatching.distance`.

    For the "hidden" ones the lists hold the gradients of hidden weights alone; for "rows" gradients may be `Outer`.
    """
    if distance == "rows":
        rows = [_row_angles(a, b).sum(1) for a, b in zip(ours, target) if isinstance(a, Outer) or a.dim() > 2]
        require(bool(rows), "distance='rows' needs a learner with at least one weight matrix.")
        return torch.stack(rows).sum(0)
    if distance == "hidden-absolute":
        return torch.stack([(a - b).abs().flatten(1).sum(1) for a, b in zip(ours, target)]).sum(0)
    a = torch.cat([part.flatten(1) for part in ours], 1)
    b = torch.cat([part.flatten(1) for part in target], 1)
    if distance == "cosine":
        return _angles(a, b)
    gap = (a - b).square().sum(1)
    return gap if distance != "relative" else gap / b.square().sum(1).clamp(min=torch.finfo(b.dtype).tiny)


def _row_angles(a: Tensor | Outer, b: Tensor | Outer) -> Tensor:
    """1 - cosine of the rows of a and b (groups, rows, ...), (groups, rows)."""
    if not (isinstance(a, Outer) and isinstance(b, Outer) and a.uniform and b.uniform):
        return _angles(dense(a).flatten(2), dense(b).flatten(2))
    least = torch.finfo(a.slopes.dtype).tiny
    mine, other = (one.inner(one).clamp_min(least).sqrt() for one in (a, b))
    return 1 - a.inner(b) / (mine * other + _APART)


def _angles(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of the rows of a and b (..., d), with a small number added to the product of their lengths."""
    angles: Tensor = _Angles.apply(a, b)
    return angles


class _Angles(torch.autograd.Function):
    """It keeps a and b and a few numbers a row, of which the gradients are made. They can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        product, mine, other = _lengths(a, b)
        ctx.save_for_backward(a, b, product, mine, other)
        return 1 - product / (mine * other + _APART)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        a, b, product, mine, other = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            product, mine, other = _lengths(a, b)
        whole = mine * other + _APART
        along, across = slopes[0] / whole, slopes[0] * product / whole.square()
        pairs = (
            (ctx.needs_input_grad[0], a, b, across * other / mine),
            (ctx.needs_input_grad[1], b, a, across * mine / other),
        )
        return tuple(_combined(own, scale, facing, along) if needed else None for needed, own, facing, scale in pairs)


def _combined(own: Tensor, scale: Tensor, facing: Tensor, along: Tensor) -> Tensor:
    """own * scale - facing * along, with a factor for each row."""
    scaled = own * scale[..., None]
    if torch.is_grad_enabled():
        return torch.addcmul(scaled, facing, along[..., None], value=-1)
    return scaled.addcmul_(facing, along[..., None], value=-1)


_APART = 1e-6


def _lengths(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products and lengths of rows. A tiny floor gives a row of next to nothing a derivative of zero and not NaN."""
    norm, least = torch.linalg.vector_norm, torch.finfo(a.dtype).tiny ** 0.5
    return torch.linalg.vecdot(a, b), norm(a, dim=-1).clamp_min(least), norm(b, dim=-1).clamp_min(least)
