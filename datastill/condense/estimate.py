"""About how much memory a run takes, said before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datastill import memory
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, training_bytes
from datastill.objectives.coresets import VECTORS, asked, learner_of
from datastill.recipe import Recipe
from datastill.rng import generator
from datastill.validation import Validation

_COPIES = 7
"""Of a summary: its own numbers, gradients, two of an optimiser, the best so far, the last good ones, a spare."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run, from shapes alone; what a step takes is right to a factor of three or so.

    Attributes:
        data: of the target dataset.
        summary: of the summary, with what an optimiser keeps of it.
        step: of one step of the objective, or of a training beside it if that takes more.
        available: what there is on the device.
        device: where the run computes.
        elsewhere: bytes of these that are not on the device: the target dataset's, where batches alone go to a GPU.
    """

    data: int
    summary: int
    step: int
    available: int
    device: torch.device
    elsewhere: int = 0

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
        needed = self.total - self.elsewhere
        if needed > self.available:
            text = (
                f"This run takes about {memory.readable(needed)} of memory, and there are {memory.readable(self.available)} "
                f"on {self.device}: lower the budget, or the objective's real_size or inner_batch."
            )
            warnings.warn(text, stacklevel=3)


def estimate_memory(
    modality: Modality, summary: Summary, objective: Objective | None, *, trained: Sequence[str] = ()
) -> Estimate:
    """The memory that `distill` will take for these, on the modality's device; nothing is changed.

    Args:
        modality: the target dataset.
        summary: not yet optimised.
        objective: not yet started; None where nothing is optimised.
        trained: learners that are trained besides, to choose real points, to label them or to score the result.
    """
    place, kind = summary.parameters(), modality.device
    there = next(place).device
    own = sum(value.numel() * value.element_size() for value in summary.state_dict().values())
    steps = [training_bytes(modality, name) for name in trained]
    if objective is not None:
        steps.append(objective.footprint(modality, summary.to(kind)))
        summary.to(there)
    copies = 1 if objective is None else _COPIES
    data = modality.full_size().nbytes
    elsewhere = 0 if kind.type == "cpu" or modality.on_device else data
    return Estimate(data, copies * own, max(steps, default=0), memory.available(kind), kind, elsewhere)


def trained_before(
    modality: Modality,
    recipe: Recipe,
    validation: Validation,
    *,
    init: str = "real",
    space: str = VECTORS,
    labels: str = "own",
    **_: Any,
) -> list[str]:
    """The learners that a run trains before it optimises anything: to choose the points that it begins from, or that it is, to
    give them labels, and to score them where nothing is optimised.

    Args:
        modality: the target dataset.
        recipe: of the run.
        validation: that scores points which are taken as they are.
        init, space, labels: as the run's `choose_points` or `first_summary` takes them.
    """
    names = {asked(modality, init, space)}
    if recipe.objective is None:
        names.add(validation.trains)
    if labels == "teacher":
        names.add(learner_of(modality, space))
    return sorted(name for name in names if name is not None)


def stand_in(
    modality: Modality,
    counts: Sequence[int],
    *,
    init: str,
    space: str = VECTORS,
    parts: Mapping[str, Any] | None = None,
    labels: str = "own",
    **options: Any,
) -> Summary:
    """A summary of random real points in the form of the one that a run begins from, for when that takes a training.

    Args:
        modality: the target dataset.
        counts: points of each group.
        init, space, parts, labels, options: as the run has them; those that say how points are chosen make no difference.
    """
    form = {} if labels == "own" else {"labels": "learned" if labels == "teacher" else labels}
    return modality.summary(counts, rng=generator("stand-in"), **form, **options)
