"""About how much memory a run takes, said before it starts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from datastill import memory
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective

_COPIES = 7
"""Of a summary: its own numbers, gradients, two of an optimiser, the best so far, the last good ones, a spare."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run, from shapes alone; what a step takes is right to a factor of three or so.

    Attributes:
        data: of the target dataset.
        summary: of the summary, with what an optimiser keeps of it.
        step: of one step of the objective.
        available: what there is on the device.
        device: where the run computes.
    """

    data: int
    summary: int
    step: int
    available: int
    device: torch.device

    @property
    def total(self) -> int:
        """All together."""
        return self.data + self.summary + self.step

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {memory.readable(getattr(self, name))}" for name in ("data", "summary", "step"))
        there = memory.readable(self.available)
        return f"memory: about {memory.readable(self.total)} ({parts}) of {there} on {self.device}"

    def warn(self) -> None:
        """Say so if the run is likely not to fit."""
        if self.total > self.available:
            text = (
                f"This run takes about {memory.readable(self.total)} of memory, and there are {memory.readable(self.available)} "
                f"on {self.device}: lower the budget, or the objective's real_size or inner_batch."
            )
            warnings.warn(text, stacklevel=3)


def estimate_memory(modality: Modality, summary: Summary, objective: Objective) -> Estimate:
    """The memory that `distill` will take for these, on the modality's device; nothing is changed.

    Args:
        modality: the target dataset.
        summary: not yet optimised.
        objective: not yet started.
    """
    place, kind = summary.parameters(), modality.device
    there = next(place).device
    own = sum(value.numel() * value.element_size() for value in summary.state_dict().values())
    step = objective.footprint(modality, summary.to(kind))
    summary.to(there)
    return Estimate(modality.full_size().nbytes, _COPIES * own, step, memory.available(kind), kind)
