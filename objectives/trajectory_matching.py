"""Trajectory matching: training on the summary should follow the path of experts that trained on the target dataset.

MTT: Cazenavette et al. (CVPR 2022), arXiv 2203.11932, equation 2. The gradient through the inner steps is exact (see `unroll`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datastill.errors import check_count, require
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective
from datastill.objectives.experts import ExpertBuffer, ExpertPlan, split_parameters
from datastill.objectives.inner import PositiveRates, shuffled_picks, step_augmentation
from datastill.objectives.unroll import Descent, unroll


@dataclass
class TrajectoryMatching(Objective):
    """|| theta_N - expert_{t+M} ||^2 / || expert_t - expert_{t+M} ||^2, theta_N trained on the summary from expert_t.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        experts: how many experts are trained on the target dataset.
        expert_lr: learning rate of their SGD.
        expert_momentum: its momentum.
        expert_batch: real points a step of theirs; None takes all of them.
        expert_interval: their steps between two snapshots; None is one pass over the target dataset.
        max_start: T+, snapshots 0 .. max_start - 1 are starting points.
        span: M, snapshots between start and target.
        inner_steps: N, SGD steps on the summary.
        inner_lr: first value of their step size, above 0.
        learn_lr: whether it is learned (kept positive).
        inner_batch: synthetic points a step; None takes all of them.
        augment: whether experts and inner steps use the modality's augmentation.
    """

    learner: str | None = None
    experts: int = 10
    expert_lr: float = 0.01
    expert_momentum: float = 0.0
    expert_batch: int | None = 256
    expert_interval: int | None = None
    max_start: int = 5
    span: int = 2
    inner_steps: int = 20
    inner_lr: float = 0.01
    learn_lr: bool = True
    inner_batch: int | None = None
    augment: bool = False

    name: ClassVar[str] = "trajectory-matching"

    def __post_init__(self) -> None:
        for field in ("experts", "max_start", "span", "inner_steps"):
            check_count(field, getattr(self, field))
        for field in ("expert_batch", "expert_interval", "inner_batch"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        for field in ("expert_lr", "inner_lr"):
            require(getattr(self, field) > 0, f"{field} must be positive, got {getattr(self, field)!r}.")
        require(0 <= self.expert_momentum < 1, f"expert_momentum must be in [0, 1), got {self.expert_momentum!r}.")

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        # Only the snapshots that can be a start or a target are ever trained for.
        plan = ExpertPlan(
            self.learner,
            self.experts,
            self.max_start - 1 + self.span,
            self.expert_interval,
            self.expert_batch,
            self.expert_lr,
            self.expert_momentum,
            self.augment,
        )
        self._buffer = ExpertBuffer(modality, plan, seed, None if workdir is None else workdir / "experts")
        self._rates = PositiveRates(self.inner_lr, 1, self.learn_lr).to(modality.device, modality.dtype)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The normalised squared distance of final parameters."""
        number = int(torch.randint(self.experts, (), generator=rng))
        first = int(torch.randint(self.max_start, (), generator=rng))
        path = self._buffer[number]
        net = self.modality.learner(self.learner, rng=rng)
        start, goal = split_parameters(path[first], net), split_parameters(path[first + self.span], net)
        synthetic = self.summary(rng)
        descent = Descent(
            net,
            self.modality.loss,
            shuffled_picks(len(synthetic), self.inner_batch, self.inner_steps, rng),
            augment=step_augmentation(self.modality, self.inner_steps, rng) if self.augment else None,
        )
        final = unroll(descent, start, synthetic, self._rates().expand(self.inner_steps))
        distance = sum(((final[name] - goal[name]).square().sum() for name in goal), torch.zeros(()))
        length = sum(((start[name] - goal[name]).square().sum() for name in goal), torch.zeros(()))
        return distance / length

    def learnables(self) -> dict[str, nn.Parameter]:
        return {"inner_lr": self._rates.raw} if self.learn_lr else {}

    def learned(self) -> dict[str, Any]:
        return {"inner_lr": self._rates().tolist(), "inner_steps": self.inner_steps}
