"""Batches in parts of as many points as a predictor can read in the memory that there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from datastill import memory
from datastill.backbones.base import KernelMachine, Learner, Predictor
from datastill.backbones.batch import Batch, tensors_of

MOST = 1024  # points at a time, at most
_GRAMS = 8  # matrices of the size of the Gram matrix on the way to an infinite-width kernel


def parts_of(predictor: Predictor | Any, batch: Batch, *, most: int = MOST) -> Iterator[Batch]:
    """The points of `batch` in order, as many at a time as `predictor` can read; all where it has to see them together."""
    if isinstance(predictor, Learner) and predictor.couples_points:
        yield batch
        return
    device = batch.groups.device
    size = most if len(batch) == 0 else memory.chunk(_bytes_of_a_point(predictor, batch), device, most=most)
    if size >= len(batch):
        yield batch
        return
    for index in torch.arange(len(batch), device=device).split(size):
        yield batch.take(index)


def _bytes_of_a_point(predictor: Any, batch: Batch) -> int:
    if isinstance(predictor, nn.Module):
        one = batch.take(torch.zeros(1, dtype=torch.int64, device=batch.groups.device))
        return 2 * activations(predictor, one.inputs)[1]
    if isinstance(predictor, KernelMachine):
        return _GRAMS * len(predictor.coefficients) * predictor.coefficients.element_size()
    return 1


@torch.no_grad()
def activations(module: nn.Module, inputs: Any) -> tuple[int, int]:
    """Bytes that all parts of a network give for these inputs together, and the largest of them (with the inputs)."""
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(inputs))]

    def note(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    handles = [part.register_forward_hook(note) for part in leaves]
    try:
        module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes), max(sizes)
