"""Many Gumbel-softmax draws of each row, summed: fused passes over blocks that stay in cache, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datastill.rng import fork

BLOCK = 2**15
"""Numbers of a block: it stays in a core's cache, and no operation on it is worth a second thread."""
KEPT = 2**30
"""Bytes of noise that are kept for the backward pass."""
_SCALE, _SHIFT = 2.0**-32 * (1 - 4e-7), 0.4999999
_COLD = 0.2
"""Below this temperature the noise alone, up to 15 / temperature, leaves the range of exp; a draw's largest is then made 0."""


def multi_draw(logits: Tensor, draws: int, temperature: float, rng: torch.Generator) -> Tensor:
    """min(1, sum of `draws` Gumbel-softmax draws) of each row, in memory that does not grow with `draws` above 1 GiB.

    With E standard exponential, -log E is a standard Gumbel variable, so a draw softmax((logits + Gumbel) / temperature) is
    proportional to exp(logits / temperature) * E^(-1 / temperature): one factor for all draws, and noise. The backward pass needs
    the noise again. Up to `KEPT` bytes it is kept, log E rounded to half precision before it is used; above, it is made again,
    from the seed that each block of rows has.

    With S the sum of the draws P_j and D the gradient of S, that of the logits is (D S - sum_j <D, P_j> P_j) / temperature.

    Args:
        logits: (n, items).
        draws: at least 1.
        temperature: of every softmax.
        rng: of the noise, which is the same on every device and for any number of threads.
    """
    total: Tensor = _MultiDraw.apply(logits, draws, temperature, fork(rng))
    return total.clamp(max=1)


class _MultiDraw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, draws: int, temperature: float, seed: int) -> Tensor:
        scaled = (logits - logits.max(1, keepdim=True).values) / temperature
        total = torch.zeros_like(scaled)
        kept: dict[int, Tensor] | None = {} if 2 * draws * logits.numel() <= KEPT and ctx.needs_input_grad[0] else None

        def work(rows: slice, number: int) -> None:
            mine = total[rows]
            noise = _noise(mine.shape, draws, (seed, number))
            if kept is not None:
                kept[number] = torch.empty((draws, *mine.shape), dtype=torch.float16)
                noise = _keep(noise, kept[number])
            for weights in _weights(scaled[rows], noise, temperature):
                mine.addcdiv_(weights, weights.sum(1, keepdim=True))

        _over_blocks(scaled, work)
        ctx.save_for_backward(scaled, total)
        ctx.options, ctx.kept = (draws, temperature, seed), kept
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        scaled, total = ctx.saved_tensors
        draws, temperature, seed = ctx.options
        gradient = gradient.contiguous()
        pulled = gradient * total

        def work(rows: slice, number: int) -> None:
            mine, slope = pulled[rows], gradient[rows]
            noise = iter(ctx.kept[number]) if ctx.kept is not None else _noise(mine.shape, draws, (seed, number))
            for weights in _weights(scaled[rows], noise, temperature):
                sums = weights.sum(1, keepdim=True)
                along = torch.linalg.vecdot(weights, slope)[:, None] / sums.square()
                mine.addcmul_(weights, along, value=-1)

        _over_blocks(scaled, work)
        return pulled / temperature, None, None, None


def _noise(shape: tuple[int, ...], draws: int, key: tuple[int, int]) -> Iterator[Tensor]:
    """log E of each draw on the CPU, in one place that the next draw overwrites."""
    bits = np.random.SFC64(key)
    count = int(np.prod(shape))
    here = torch.empty(shape, dtype=torch.float32)
    for _ in range(draws):
        raw = bits.random_raw((count + 1) // 2).view(np.int32)[:count].reshape(shape)
        # Uniform in (1e-7, 1 - 3e-7), so that both logarithms are finite; -log of it is E.
        yield here.copy_(torch.from_numpy(raw)).mul_(_SCALE).add_(_SHIFT).log_().neg_().log_()


def _keep(noise: Iterator[Tensor], place: Tensor) -> Iterator[Tensor]:
    """The noise as it is rounded and kept in `place` (draws, rows, items)."""
    for kept, drawn in zip(place, noise):
        yield kept.copy_(drawn)


def _weights(scaled: Tensor, noise: Iterator[Tensor], temperature: float) -> Iterator[Tensor]:
    """exp(scaled) times the noise of each draw, in one place that the next draw overwrites."""
    here = torch.empty_like(scaled)
    for drawn in noise:
        torch.add(scaled, here.copy_(drawn), alpha=-1 / temperature, out=here)
        if temperature < _COLD:
            here.sub_(here.amax(1, keepdim=True))
        yield here.exp_()


def _over_blocks(rows: Tensor, work: Callable[[slice, int], None]) -> None:
    """Do the work on blocks of rows, in as many threads as PyTorch uses."""
    size = max(1, BLOCK // rows.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(rows), size)]
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1

    def run(number: int) -> None:
        with torch.no_grad():
            work(blocks[number], number)

    if threads == 1 or len(blocks) == 1:
        for number in range(len(blocks)):
            run(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(len(blocks))))
