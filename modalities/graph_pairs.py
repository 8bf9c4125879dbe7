"""The costly part of GCond's perceptron on pairs of nodes, forwards and backwards, in blocks that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS = {"cpu": 3 * 2**15, "cuda": 2**24}
"""In a block of pairs: on a CPU all that is done to a block happens in its cache."""
EPSILON = 1e-5
"""Of batch norms."""


def pair_scores(left: Tensor, right: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, last: Tensor) -> Tensor:
    """s_ij = last . relu(gain * norm(weight relu(left_i + right_j)) + shift), where norm is batch norm over all n * n pairs.

    Differentiable once. Kept for that are the n * n * h normalised units alone.

    Args:
        left: (n, h), of the first node of a pair.
        right: (n, h), of the second one.
        weight: (h, h), rows are outputs. A bias would change nothing, since batch norm takes it out again.
        gain: (h,).
        shift: (h,).
        last: (h,).

    Returns:
        (n, n).
    """
    scores: Tensor = _PairScores.apply(left, right, weight, gain, shift, last)
    return scores


class _Blocks:
    """Pairs by rows of their first nodes, and memory for the units of one block."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left[:, None], right.contiguous()
        self.count, self.width = left.shape
        most = _NUMBERS.get(left.device.type, _NUMBERS["cuda"])
        self.rows = min(self.count, max(1, most // (self.count * self.width)))
        self.spare = [left.new_empty(self.rows * self.count, self.width) for _ in range(3)]

    def cut(self, *of_pairs: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """left_i of the first nodes (rows, 1, h) of each block, and its part of each of `of_pairs` (n * n, ...)."""
        size = self.rows * self.count
        return zip(self.left.split(self.rows), *(values.split(size) for values in of_pairs))

    def room(self, pairs: int) -> list[Tensor]:
        """Three matrices (pairs, h) to write to; they are the same for all blocks."""
        return self.spare if pairs == len(self.spare[0]) else [part[:pairs] for part in self.spare]

    def sums(self, left: Tensor, out: Tensor) -> Tensor:
        """left_i + right_j of a block, in `out` (pairs, h)."""
        torch.add(left, self.right, out=out.view(-1, self.count, self.width))
        return out


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, last: Tensor
    ) -> Tensor:
        blocks = _Blocks(left, right)
        pairs = blocks.count**2
        units, scores = left.new_empty(pairs, blocks.width), left.new_empty(pairs)
        total, squares = left.new_zeros(2, blocks.width)
        origin = None  # about the mean of the units; without it the sum of their squares would lose digits
        for first, mine in blocks.cut(units):
            hidden, apart, _ = blocks.room(len(mine))
            torch.mm(blocks.sums(first, hidden).clamp_(min=0), weight.T, out=mine)
            if origin is None:
                origin = mine.mean(0)
            torch.sub(mine, origin, out=apart)
            total += apart.sum(0)
            squares += apart.square_().sum(0)
        assert origin is not None
        mean = total / pairs
        scale = (squares / pairs - mean.square()).clamp_(min=0).add_(EPSILON).rsqrt_()
        mean += origin
        slope, offset = gain * scale, shift - gain * scale * mean
        for _, mine, out in blocks.cut(units, scores):
            active = blocks.room(len(mine))[0]
            torch.mv(torch.addcmul(offset, mine, slope, out=active).clamp_(min=0), last, out=out)
        ctx.save_for_backward(left, right, weight, gain, shift, last, units, mean, scale)
        return scores.view(blocks.count, blocks.count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        left, right, weight, gain, shift, last, units, mean, scale = ctx.saved_tensors
        blocks, slopes = _Blocks(left, right), slopes.reshape(-1)
        slope, offset = gain * scale, shift - gain * scale * mean
        # First what batch norm takes out: sums over the active pairs of slopes, and of slopes times normalised units.
        plain, along = left.new_zeros(2, blocks.width)
        for _, mine, received in blocks.cut(units, slopes):
            active = blocks.room(len(mine))[0]
            torch.addcmul(offset, mine, slope, out=active).gt_(0)
            plain += received @ active
            along += received @ active.mul_(mine)
        along = scale * (along - mean * plain)
        # d loss / d (weight hidden) = factor * (slope if active, + constant + turned * unit)
        factor, turned = gain * scale * last, -scale * along / len(slopes)
        constant = -plain / len(slopes) - turned * mean
        back = factor[:, None] * weight
        to_left, to_right = torch.empty_like(left), torch.zeros_like(right)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        for (first, mine, received), to_first in zip(blocks.cut(units, slopes[:, None]), to_left.split(blocks.rows)):
            active, hidden, spare = blocks.room(len(mine))
            torch.addcmul(offset, mine, slope, out=active).gt_(0)
            torch.addcmul(constant, mine, turned, out=spare).addcmul_(active, received)
            blocks.sums(first, hidden)
            if to_weight is not None:
                to_weight.addmm_(spare.T, torch.clamp(hidden, min=0, out=active))
            sent = torch.mm(spare, back, out=active).mul_(hidden.gt_(0)).view(-1, blocks.count, blocks.width)
            torch.sum(sent, 1, out=to_first)
            to_right += sent.sum(0)
        if to_weight is not None:
            to_weight.mul_(factor[:, None])
        return to_left, to_right, to_weight, last * along, last * plain, gain * along + shift * plain
