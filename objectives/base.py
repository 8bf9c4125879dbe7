"""The contract of objectives: an outer loss that measures how far a summary is from its target dataset.

An objective names no modality. It sees data through `Modality` and `Summary` only, and learners through `Learner` and `Kernel`.
A new one is one new file beside this that passes `datastill.checks.check_objective`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datastill import processes
from datastill.backbones.batch import tensors_of
from datastill.backbones.chunks import activations
from datastill.modalities.base import Batch, Modality, Summary
from datastill.rng import generator


class Objective(ABC):
    """How far is the summary from its target dataset?

    A subclass is a dataclass of hyper-parameters, which its constructor only stores; `start` creates what a run needs. All its
    randomness comes from the generators it is given, and all that it carries from one step to the next is in `state_dict`.
    """

    name: ClassVar[str]
    counted_in_steps: ClassVar[tuple[str, ...]] = ()
    """Which hyper-parameters are numbers of outer steps: a recipe that is run for more or fewer steps has them in proportion."""
    learns_rate: ClassVar[bool] = False
    """Whether `learned` has an "inner_lr", the rate that learners of the summary are to train with, as some protocols ask for."""

    modality: Modality
    summary: Summary

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        """Bind the objective to its data, once, before the first step.

        Args:
            modality: the target dataset.
            summary: what is optimised, on the modality's device.
            seed: of whatever is prepared before the first step.
            workdir: where large things may be kept between the steps and over a restart; None keeps them in memory.
        """
        self.modality = modality
        self.summary = summary

    @abstractmethod
    def loss(self, rng: torch.Generator) -> Tensor:
        """The outer loss at this step, a scalar, differentiable in the summary's parameters and in `learnables`."""

    def after_step(self, rng: torch.Generator) -> None:
        """Called when the summary has been stepped and projected. Default: nothing."""

    def settle(self) -> None:
        """Called before the summary is validated, and at the end: an objective that labels its points does so here."""

    def footprint(self, modality: Modality, summary: Summary) -> int:
        """About how many bytes a step takes, from the shapes of points and learners and, where a step is cut into parts, the
        memory there is; may be asked before `start`.

        By default those of a learner's pass over the summary, kept for the gradient, and of one over real points without.
        """
        return network_bytes(modality, summary, getattr(self, "learner", None), real_size=getattr(self, "real_size", 0))

    def learnables(self) -> dict[str, nn.Parameter]:
        """Parameters of the objective itself that are optimised along with the summary, such as an inner learning rate."""
        return {}

    def learned(self) -> dict[str, Any]:
        """What a user of the summary should know of `learnables`, as JSON-able values. Default: nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that must be restored to go on as if never stopped: nested dicts and lists of tensors, numbers, strings, None."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave; called after `start`."""

    def config(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}


class RealBatches:
    """Real batches of fixed size, or all points drawn just once when the size is None.

    Args:
        draw: `Modality.real`.
        size: points of each group.
        limit: most points of a batch, all groups together: of more points, each batch is another stratified sample.
    """

    def __init__(self, draw: Callable[..., Any], size: int | None, limit: int | None = None) -> None:
        self.draw = draw
        self.size = size
        self.limit = limit
        self._all: Any = None
        self._share: Any = None

    def __call__(self, rng: torch.Generator) -> Any:
        if self.size is not None:
            return sample(self.draw(self.size, rng=rng), self.limit, rng)
        if self._all is None:
            self._all = self.draw()
        return sample(self._all, self.limit, rng)

    def share(self, rng: torch.Generator, groups: Sequence[int] | None = None) -> Any:
        """This process's share of the batch that a call would give; all of it, if there is one process.

        Args:
            rng: of the draw.
            groups: which groups are drawn, if the size is given; None is all of them.
        """
        if groups is not None and self.size is not None:
            return self.draw(self.size, groups=groups, rng=rng, share=True)
        if processes.size() == 1:
            return self(rng)
        if self.size is not None and self.limit is None:
            return self.draw(self.size, rng=rng, share=True)
        if self._share is not None:
            return self._share
        batch = self(rng)
        if batch is not self._all:
            return _shared(batch)
        self._share, self._all = _shared(batch), None
        return self._share


def enough(size: int | None, available: Sequence[int]) -> int | None:
    """`size`, or None where no group has more points than that, so that all of them are drawn just once."""
    return None if size is not None and size >= max(available) else size


def limit_of(limit: int | None, size: int | None, groups: int) -> int | None:
    """`limit`, or None where a batch of `size` points of so many groups never has more points than that."""
    met = limit is None or size is None or size * groups > limit
    return limit if met else None


def _shared(batch: Any) -> Any:
    return batch.take(processes.share(len(batch)).to(batch.groups.device))


def sample(batch: Batch, limit: int | None, rng: torch.Generator) -> Batch:
    """A stratified sample of `limit` points of a batch, or the batch itself if it has no more.

    The points, in order of groups, are cut into `limit` equal stretches, and one of each is drawn: every group has its share
    (to within one point), and every point the same probability.
    """
    if limit is None or len(batch) <= limit:
        return batch
    jitter = torch.rand(limit, generator=rng, dtype=torch.float64)
    places = ((torch.arange(limit) + jitter) * (len(batch) / limit)).long().clamp_(max=len(batch) - 1)
    groups = batch.groups
    places = places.to(groups.device)
    in_order = bool((groups[1:] >= groups[:-1]).all())
    return batch.take(places if in_order else groups.argsort(stable=True)[places])


def network_bytes(
    modality: Modality,
    summary: Summary,
    learner: str | None,
    *,
    real_size: int | None = 0,
    real_limit: int | None = None,
    kept: int = 2,
    real: Literal["embed", "layers", "gradients"] = "embed",
    points: int | None = None,
) -> int:
    """About how many bytes passes of a learner over synthetic and real points take.

    Args:
        modality: whose learner.
        summary: the synthetic points.
        learner: its name; None takes the modality's default.
        real_size: real points a group; None is all of them.
        real_limit: of all groups together, at most; None sets no limit.
        kept: how often what the layers give for synthetic points is in memory: for the pass and its gradient 2, for a second
            derivative 4.
        real: what is wanted of real points: their last features, those of all layers, or gradients of each group.
        points: synthetic points of a pass; None is all of them.
    """
    rng = generator("footprint")
    net = modality.learner(learner, rng=rng)
    with torch.no_grad():
        batch = summary().detach().to(modality.device)
    total, _ = activations(net, batch.inputs)
    if points is not None and not net.couples_points:
        total = total * min(points, len(batch)) // len(batch)
    nbytes = kept * total
    sizes = real_sizes(modality, real_size)
    drawn = sum(sizes) if real_limit is None else min(sum(sizes), real_limit)
    if drawn:
        one = modality.real(1, rng=rng)
        whole, largest = activations(net, one.inputs)
        together = drawn
        if real != "layers":  # gradients take a group at a time, or as many of several as the learner looks at together
            together = min(together, net.points_at_a_time() or (max(sizes) if real == "gradients" else together))
        of_pass = 2 * largest if real == "embed" else (2 if real == "gradients" else 1) * whole
        nbytes += of_pass if net.couples_points else of_pass * together // len(one)
    return nbytes + input_bytes(modality, drawn)


def training_bytes(modality: Modality, learner: str) -> int:
    """About how many bytes it takes to train a network on the target dataset as evaluation does; 0 for a kernel, which is none.

    That is what its layers give for a batch, its weights, and what an optimiser keeps of them.
    """
    if learner in modality.fitted or modality.is_kernel(learner):
        return 0
    one = modality.real(1, rng=generator("footprint"))
    net = modality.learner(learner, rng=generator("footprint"))
    whole, _ = activations(net, one.inputs)
    points = min(modality.protocol(learner).batch_size or sum(modality.full_sizes), sum(modality.full_sizes))
    layers = 2 * whole if net.couples_points else 2 * whole * points // len(one)
    return layers + 4 * weight_bytes(modality, learner) + input_bytes(modality, points)


def real_sizes(modality: Modality, real_size: int | None) -> list[int]:
    """Real points of each group in a batch of `real_size` a group; None is all of them."""
    return [size if real_size is None else min(size, real_size) for size in modality.group_sizes]


def input_bytes(modality: Modality, points: int) -> int:
    """About how many bytes a batch of so many real points takes while it is drawn and augmented."""
    one = modality.real(1, rng=generator("footprint"))
    if hasattr(one.inputs, "take") and not isinstance(one.inputs, Tensor):  # rows of something that is there once
        return 0
    return 2 * points * sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(one.inputs)) // len(one)


def weight_bytes(modality: Modality, learner: str | None) -> int:
    """Bytes of a learner's parameters."""
    net = modality.learner(learner, rng=generator("footprint"))
    return sum(value.numel() * value.element_size() for value in net.parameters())
