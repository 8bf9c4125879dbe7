"""Many Gumbel-softmax draws of each row, summed: fused passes over blocks that stay in cache, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datastill.rng import fork

BLOCK = 2**18
"""Numbers that are worked on at once: they stay in the cores' caches through all passes, and outweigh the calls."""
KEPT = 2**30
"""Bytes of noise that are kept for the backward pass. What is kept is rounded first, which changes the numbers: so it does not
depend on how much memory there is."""
_SCALE = 2.0**-32 * (1 - 1e-7)
_COLD = 1.0
"""Below this temperature noise and logits only fit the range of exp together, and with a draw's largest made 0."""


class KeptNoise:
    """A place for noise that goes from one step to the next: memory that is new costs as much time as what goes into it."""

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(self, shape: tuple[int, int, int]) -> Tensor:
        """A place (n, draws, items) in half precision."""
        place, self._free = self._free, None
        return place if place is not None and place.shape == shape else torch.empty(shape, dtype=torch.float16)

    def give_back(self, place: Tensor) -> None:
        """It is free for the next step."""
        self._free = place


def multi_draw(
    logits: Tensor, draws: int, temperature: float, rng: torch.Generator, kept: KeptNoise | None = None
) -> Tensor:
    """min(1, sum of `draws` Gumbel-softmax draws) of each row, in memory that does not grow with `draws` above 1 GiB.

    With E standard exponential, -log E is a standard Gumbel variable, so a draw softmax((logits + Gumbel) / temperature) is
    proportional to a = exp(logits / temperature), one factor for all draws, times N_j = E^(-1 / temperature), noise. With N the
    matrix (draws, items) of a row's noise, q_j = 1 / (N a)_j scales draw j to 1, and the sum of the draws is

        S = a * (N^T q),   and with D its gradient, that of the logits is   (D S - a * N^T (q^2 N (a D))) / temperature:

    two products of N and a vector in each direction, and nothing else that has the size of N. The backward pass needs N
    again. Up to `KEPT` bytes log N is kept, rounded to half precision before it is used; above, it is made again, from the
    seed that each row has.

    Args:
        logits: (n, items).
        draws: at least 1.
        temperature: of every softmax.
        rng: of the noise, which is the same on every device.
        kept: where the noise of the last step was, for that of this one.
    """
    total: Tensor = _MultiDraw.apply(logits, draws, temperature, fork(rng), kept or KeptNoise())
    return total.clamp(max=1)


class _MultiDraw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, draws: int, temperature: float, seed: int, store: KeptNoise) -> Tensor:
        scaled = (logits - logits.amax(1, keepdim=True)) / temperature
        total = torch.empty_like(scaled)
        fits = ctx.needs_input_grad[0] and 2 * draws * logits.numel() <= KEPT
        kept = store.take((len(logits), draws, logits.shape[1])) if fits else None
        for row, its in enumerate(scaled):
            noise = _noise(draws, len(its), temperature, (seed, row))
            if kept is not None:
                noise = _keep(noise, kept[row])
            factor, sums = _factor(its, temperature), torch.zeros_like(its)
            for weights in _weights(its, noise, temperature):
                sums.addmv_(weights.T, weights.mv(factor).reciprocal_())
            torch.mul(sums, factor, out=total[row])
        ctx.save_for_backward(scaled, total)
        ctx.options, ctx.store, ctx.kept, ctx.rounded = (draws, temperature, seed), store, kept, fits
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        scaled, total = ctx.saved_tensors
        draws, temperature, seed = ctx.options
        pulled = gradient * total
        for row, its in enumerate(scaled):
            if ctx.kept is None:
                noise = _noise(draws, len(its), temperature, (seed, row))
                if ctx.rounded:
                    noise = _keep(noise, torch.empty(draws, len(its), dtype=torch.float16))
            else:
                noise = _kept(ctx.kept[row])
            factor, sums = _factor(its, temperature), torch.zeros_like(its)
            slope = factor * gradient[row]
            for weights in _weights(its, noise, temperature):
                sums.addmv_(weights.T, weights.mv(slope).div_(weights.mv(factor).square_()))
            pulled[row].addcmul_(sums, factor, value=-1)
        if ctx.kept is not None:
            ctx.store.give_back(ctx.kept)
            ctx.kept = None  # a second backward pass makes it again
        return pulled / temperature, None, None, None, None


def _at_once(items: int) -> int:
    """Draws of a row that are worked on at once."""
    return max(1, BLOCK // items)


def _noise(draws: int, items: int, temperature: float, key: tuple[int, int]) -> Iterator[Tensor]:
    """log N of some draws at a time, (some, items), on the CPU, in one place that the next ones overwrite."""
    bits = np.random.SFC64(key)
    here = torch.empty(min(draws, _at_once(items)), items)
    for start in range(0, draws, len(here)):
        part = here[: draws - start]
        raw = bits.random_raw((part.numel() + 1) // 2).view(np.uint32)[: part.numel()]
        # Uniform in [0, 1): -log of it is E, above 0. Where it is 0, E is infinite and N is 0.
        part.copy_(torch.from_numpy(raw).view_as(part)).mul_(_SCALE).log_().neg_().log_()
        yield part.mul_(-1 / temperature)


def _keep(noise: Iterator[Tensor], place: Tensor) -> Iterator[Tensor]:
    """The noise as it is rounded and kept in `place` (draws, items)."""
    for kept, drawn in zip(place.split(_at_once(place.shape[1])), noise):
        kept.copy_(drawn)
        yield drawn.copy_(kept)


def _kept(place: Tensor) -> Iterator[Tensor]:
    """The noise that `_keep` kept, in one place that the next draws overwrite."""
    here: Tensor | None = None
    for kept in place.split(_at_once(place.shape[1])):
        here = torch.empty(kept.shape) if here is None else here
        yield here[: len(kept)].copy_(kept)


def _factor(scaled: Tensor, temperature: float) -> Tensor:
    """What all draws of a row have in common; 1 below `_COLD`, where `_weights` has it."""
    return torch.ones_like(scaled) if temperature < _COLD else scaled.exp()


def _weights(scaled: Tensor, noise: Iterator[Tensor], temperature: float) -> Iterator[Tensor]:
    """N of some draws at a time, each draw up to a factor that cancels out, in place of its logarithm."""
    for drawn in noise:
        here = drawn.to(scaled)
        if temperature < _COLD:
            here.add_(scaled).sub_(here.amax(1, keepdim=True))
        yield here.exp_()
