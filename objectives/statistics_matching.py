"""Statistics matching: points whose features have the mean and variance, in every layer, that those of the target dataset have.

SRe2L: Yin, Xing & Shen (NeurIPS 2023), arXiv 2306.13092. It is decoupled: teachers are trained on the target dataset once, the
summary is recovered from what they remember of it (equations 5 and 6), and they label it in the end. Real points are not looked
at again after the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch, map_tensors
from datastill.backbones.chunks import parts_of
from datastill.errors import check_count, check_nonnegative, check_positive
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, sample
from datastill.objectives.teachers import Teachers
from datastill.rng import fork

Moments: TypeAlias = tuple[Tensor, Tensor]


@dataclass
class StatisticsMatching(Objective):
    """teacher's loss on the summary + weight * sum_l w_l (|| mean_l - mean_l(real) || + || variance_l - variance_l(real) ||).

    A layer is what a batch normalisation reads, and the real statistics are those that it follows in training. Networks without
    have the features of `layers` in its place, whose statistics over all real points are taken once. They are those of each
    channel (the second dimension) over points and places.

    Where the summary learns labels, they are not optimised: the teachers set them whenever it is used, to what they say of the
    points as they are then. The loss keeps the labels that the summary began with.

    Attributes:
        learner: name of the teachers; None takes the modality's default.
        teachers: how many are trained; each step draws one, labels are their mean.
        teacher_steps: optimiser steps of each; None takes those of evaluation, and at least ten passes over the target dataset.
        weight: of the statistics, at least 0.
        first_weight: w_1, of the first layer; the others have 1.
        synthetic_limit: synthetic points of a step, at most: of more, each step takes a stratified sample. None takes all.
        augment: whether the points get random augmentation, one for all at a step.
        temperature: by which outputs are divided for labels.
    """

    learner: str | None = None
    teachers: int = 1
    teacher_steps: int | None = None
    weight: float = 0.01
    first_weight: float = 10.0
    synthetic_limit: int | None = 1000
    augment: bool = True
    temperature: float = 1.0

    name: ClassVar[str] = "statistics-matching"

    def __post_init__(self) -> None:
        check_count("teachers", self.teachers)
        for field in ("teacher_steps", "synthetic_limit"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        for field in ("weight", "first_weight"):
            check_nonnegative(field, getattr(self, field))
        check_positive("temperature", self.temperature)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._teachers = Teachers(
            modality,
            self.learner,
            count=self.teachers,
            steps=self.teacher_steps,
            seed=seed,
            folder=None if workdir is None else workdir / "teachers",
        )
        self._real = [real_moments(net, modality.full()) for net in self._teachers.networks]
        self._labelled = "labels" in summary.parameter_groups()
        with torch.no_grad():
            self._targets = map_tensors(Tensor.clone, summary().targets) if self._labelled else None

    def loss(self, rng: torch.Generator) -> Tensor:
        """The teacher's loss and the gaps of statistics."""
        number = int(torch.randint(self.teachers, (), generator=rng))
        net, real = self._teachers.networks[number], self._real[number]
        batch = self.summary(rng)
        if self._targets is not None:
            batch = Batch(batch.inputs, self._targets, batch.groups)
        batch = sample(batch, self.synthetic_limit, rng)
        if self.augment:
            batch = self.modality.augment(batch, fork(rng) % 2**31)
        features, outputs = watched(net, batch.inputs)
        gaps = [
            torch.linalg.vector_norm(mean - wanted_mean) + torch.linalg.vector_norm(variance - wanted_variance)
            for (mean, variance), (wanted_mean, wanted_variance) in zip(map(moments, features), real, strict=True)
        ]
        gaps[0] = self.first_weight * gaps[0]
        return self.modality.loss(outputs, batch.targets) + self.weight * torch.stack(gaps).sum()

    def settle(self) -> None:
        """Label the points."""
        if self._labelled:
            with torch.no_grad():
                self.summary.relabel_(self._teachers.labels(self.summary().detach(), self.temperature))

    def learned(self) -> dict[str, Any]:
        return {"teacher": self._teachers.name}


def moments(features: Tensor) -> Moments:
    """Mean and variance (over n, not n - 1) of each channel, the second dimension, over points and places."""
    variance, mean = torch.var_mean(features, [0, *range(2, features.dim())], correction=0)
    return mean, variance


def watched(net: Learner, inputs: Any) -> tuple[list[Tensor], Tensor]:
    """The features whose statistics are matched, first layer to last, and the outputs."""
    with _inputs_of_norms(net) as seen:
        outputs = net(inputs)
    return seen or net.layers(inputs), outputs


@contextmanager
def _inputs_of_norms(net: Learner) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handles = [
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for norm in _norms_with_statistics(net)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _norms_with_statistics(net: Learner) -> list[_BatchNorm]:
    return [part for part in net.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


@torch.no_grad()
def real_moments(net: Learner, full: Batch) -> list[Moments]:
    """The statistics of each layer over real points: those that batch normalisation keeps, or those of the points `full`."""
    if _norms_with_statistics(net):
        order: list[Moments] = []  # of the forward pass, which need not be that of the modules
        handles = [
            norm.register_forward_pre_hook(
                lambda norm, _: order.append((norm.running_mean.clone(), norm.running_var.clone()))
            )
            for norm in _norms_with_statistics(net)
        ]
        try:
            net(full.take(torch.arange(1, device=full.groups.device)).inputs)
        finally:
            for handle in handles:
                handle.remove()
        return order
    counts: list[int] = []
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    for part in parts_of(net, full):
        for depth, layer in enumerate(net.layers(part.inputs)):
            # Channels first, and in float64, so that little is lost in the difference of squares.
            values = layer.transpose(0, 1).flatten(1).double()
            if depth == len(sums):
                counts.append(0)
                sums.append(torch.zeros_like(values[:, 0]))
                squares.append(torch.zeros_like(values[:, 0]))
            counts[depth] += values.shape[1]
            sums[depth] += values.sum(1)
            squares[depth] += values.square().sum(1)
    found = []
    for count, total, square in zip(counts, sums, squares):
        mean = total / count
        variance = (square / count - mean.square()).clamp(min=0)
        found.append((mean.to(layer.dtype), variance.to(layer.dtype)))
    return found
