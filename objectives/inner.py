"""Pieces that objectives share: mini-batch order, positive learning rates, augmentation, statistics of norms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import RealBatches, enough
from datastill.rng import fork


def shuffled_picks(points: int, size: int | None, steps: int, rng: torch.Generator) -> list[Tensor | None]:
    """Mini-batch positions for each step, by shuffled passes over `points`; None where a batch holds all of them."""
    if size is None or size >= points:
        return [None] * steps
    picks: list[Tensor | None] = []
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(points, generator=rng)
        picks.append(order[:size])
        order = order[size:]
    return picks


def version_picks(
    points: int, versions: int, size: int | None, steps: int, rng: torch.Generator
) -> list[Tensor | None]:
    """As `shuffled_picks`, of points of which so many are versions of one: each step has one version of all, drawn at random."""
    chosen = torch.randint(versions, (steps,), generator=rng).tolist()
    picks = shuffled_picks(points // versions, size, steps, rng)
    every = torch.arange(points // versions)
    return [(every if pick is None else pick) * versions + version for pick, version in zip(picks, chosen)]


class OncePerStep:
    """The batch of a summary, computed once between two steps though training needs it after one and the loss before the next.

    Only a summary that draws nothing at random is remembered, so that a run which is resumed in between computes the same.
    """

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self._kept: tuple[list[tuple[int, int, bool]], Batch] | None = None

    def ahead(self, rng: torch.Generator) -> Batch:
        """The batch after a step, which the next `take` gives again if the summary is then still the same."""
        before = rng.get_state()
        with torch.enable_grad():
            batch = self.summary(rng)
        self._kept = (self._state(), batch) if torch.equal(before, rng.get_state()) else None
        return batch

    def take(self, rng: torch.Generator) -> Batch:
        """The batch for a loss, whose backward pass uses it up."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] == self._state() else self.summary(rng)

    def _state(self) -> list[tuple[int, int, bool]]:
        """What changes whenever a parameter or buffer does, or is to get a gradient or not."""
        tensors = [*self.summary.parameters(), *self.summary.buffers()]
        return [(tensor.data_ptr(), tensor._version, tensor.requires_grad) for tensor in tensors]


def step_augmentation(modality: Modality, steps: int, rng: torch.Generator) -> Callable[[Batch, int], Batch]:
    """The modality's augmentation for training with one seed for each inner step, so that a reverse pass replays it."""
    seeds = [fork(rng) % 2**31 for _ in range(steps)]
    return lambda batch, step: modality.augment_each(batch, seeds[step])


class RealNorms:
    """Gives networks with batch norm the statistics of real points, as DC does before each match: without it a fresh network's
    norms do nothing, and a trained one's have the statistics of the few points that it trained on.

    Args:
        modality: whose real points.
        per_group: of each group.
    """

    def __init__(self, modality: Modality, per_group: int = 16) -> None:
        self._real = RealBatches(modality.real, enough(per_group, modality.group_sizes))

    @torch.no_grad()
    def settle(self, net: Learner, rng: torch.Generator) -> None:
        """Set the running statistics of `net`, in place, to those of a real batch of all groups; nothing without such norms."""
        norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # then the mean of all batches since, which is this one
        net.train()
        net.embed(self._real(rng).inputs)
        net.eval()
        for norm, momentum in zip(norms, kept):
            norm.momentum = momentum


class PositiveRates(nn.Module):
    """Learning rates kept positive by a softplus, so that they can be learned freely.

    Args:
        start: the initial rate, above 0.
        count: how many rates.
        learn: whether they require gradients.
    """

    def __init__(self, start: float, count: int, learn: bool) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((count,), math.log(math.expm1(start))), requires_grad=learn)

    def forward(self) -> Tensor:
        """The rates, (count,)."""
        return F.softplus(self.raw)
