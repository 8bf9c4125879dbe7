"""Trajectory matching: training on the summary should follow the path of experts that trained on the target dataset.

MTT: Cazenavette et al. (CVPR 2022), arXiv 2203.11932, equation 2. The gradient through the inner steps is exact, or TESLA's
approximation (see `unroll`). A window of starting points that moves and soft labels that begin from the experts are DATM's
(Guo et al., ICLR 2024, arXiv 2310.05773).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datastill.backbones.base import call_with
from datastill.backbones.batch import Batch
from datastill.errors import check_count, check_momentum, check_nonnegative, check_positive, require, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, network_bytes, weight_bytes
from datastill.objectives.experts import ExpertBuffer, ExpertPlan, split_parameters
from datastill.objectives.inner import PositiveRates, shuffled_picks, step_augmentation, version_picks
from datastill.objectives.unroll import Descent, check_unrolls, unroll
from datastill.rng import generator


@dataclass
class TrajectoryMatching(Objective):
    """|| theta_N - expert_{t+M} ||^2 / || expert_t - expert_{t+M} ||^2, theta_N trained on the summary from expert_t.

    Learners must be without batch norm, which `start` refuses: an expert's snapshots are its parameters alone.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        experts: how many experts are trained on the target dataset.
        expert_optimizer: "sgd" or "adam".
        expert_lr: its learning rate.
        expert_momentum: of "sgd".
        expert_weight_decay: L2 penalty of the experts' training.
        expert_batch: real points a step of theirs; None takes all of them.
        expert_interval: their steps between two snapshots; None is one pass over the target dataset.
        expert_folder: where experts are kept; runs that name the same folder and `expert_seed` share them. None: with the run.
        expert_seed: of the experts; None derives it from the run's seed.
        max_start: T+, snapshots before this one are starting points.
        min_start: the first starting point.
        first_max_start: T+ at the first step, which grows linearly to `max_start` (DATM); None is `max_start` throughout.
        expand_steps: outer steps over which it grows.
        span: M, snapshots between start and target.
        inner_steps: N, SGD steps on the summary.
        inner_lr: first value of their step size, above 0.
        learn_lr: whether it is learned (kept positive).
        inner_batch: synthetic points a step; None takes all of them.
        one_version: whether each inner step has one version of the points, drawn at random, where the summary has several of each
            (HaBa's styles); `inner_batch` then counts the points without their versions.
        augment: whether experts and inner steps use the modality's augmentation.
        gradient: "exact", or "tesla" for the published approximation at the same memory.
        expert_labels: whether the summary's learned labels begin as what the experts say of its points: the mean output of those
            that get a point right at their last snapshot (of all, where none does).
        label_threshold: labels are left alone at steps where the loss is above this; None never does so.
    """

    learner: str | None = None
    experts: int = 10
    expert_optimizer: Literal["sgd", "adam"] = "sgd"
    expert_lr: float = 0.01
    expert_momentum: float = 0.0
    expert_weight_decay: float = 0.0
    expert_batch: int | None = 256
    expert_interval: int | None = None
    expert_folder: str | None = None
    expert_seed: int | None = None
    max_start: int = 5
    min_start: int = 0
    first_max_start: int | None = None
    expand_steps: int = 1000
    span: int = 2
    inner_steps: int = 20
    inner_lr: float = 0.01
    learn_lr: bool = True
    inner_batch: int | None = None
    one_version: bool = False
    augment: bool = False
    gradient: Literal["exact", "tesla"] = "exact"
    expert_labels: bool = False
    label_threshold: float | None = None

    name: ClassVar[str] = "trajectory-matching"
    counted_in_steps: ClassVar[tuple[str, ...]] = ("expand_steps",)
    learns_rate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ("experts", "max_start", "expand_steps", "span", "inner_steps"):
            check_count(field, getattr(self, field))
        for field in ("expert_batch", "expert_interval", "inner_batch"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        for field in ("expert_lr", "inner_lr"):
            check_positive(field, getattr(self, field))
        check_momentum("expert_momentum", self.expert_momentum)
        check_nonnegative("expert_weight_decay", self.expert_weight_decay)
        check_count("min_start", self.min_start, least=0)
        require(
            self.min_start < self.max_start,
            f"min_start must be below max_start, {self.max_start}, got {self.min_start}.",
        )
        first = self.first_max_start
        require(
            first is None or self.min_start < check_count("first_max_start", first) <= self.max_start,
            f"first_max_start must be above min_start, {self.min_start}, and at most max_start, {self.max_start}, got {first}.",
        )
        for field, known in (("expert_optimizer", ("sgd", "adam")), ("gradient", ("exact", "tesla"))):
            if getattr(self, field) not in known:
                raise unknown_name(field, getattr(self, field), known)
        if self.expert_seed is not None:
            check_count("expert_seed", self.expert_seed, least=0)
        if self.label_threshold is not None:
            check_positive("label_threshold", self.label_threshold)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        check_unrolls(modality, self.learner)
        super().start(modality, summary, seed=seed, workdir=workdir)
        # Only the snapshots that can be a start or a target are ever trained for.
        plan = ExpertPlan(
            self.learner,
            self.experts,
            self.max_start - 1 + self.span,
            self.expert_interval,
            self.expert_batch,
            self.expert_optimizer,
            self.expert_lr,
            self.expert_momentum,
            self.expert_weight_decay,
            self.augment,
        )
        folder = None if workdir is None else workdir / "experts"
        if self.expert_folder is not None:
            folder = Path(self.expert_folder)
        self._buffer = ExpertBuffer(modality, plan, seed if self.expert_seed is None else self.expert_seed, folder)
        self._rates = PositiveRates(self.inner_lr, 1, self.learn_lr).to(modality.device, modality.dtype)
        self._step = 0
        if self.expert_labels:
            summary.relabel_(self._labels_of_experts(summary))

    def footprint(self, modality: Modality, summary: Summary) -> int:
        """One step's graph, with a second derivative, the weights of all of them, and the experts where they are in memory."""
        step = network_bytes(modality, summary, self.learner, kept=4, points=self.inner_batch)
        snapshots = self.experts * (self.max_start + self.span)
        return step + (self.inner_steps + 4 + snapshots) * weight_bytes(modality, self.learner)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The normalised squared distance of final parameters."""
        number = int(torch.randint(self.experts, (), generator=rng))
        first = int(torch.randint(self.min_start, self._window_end(), (), generator=rng))
        net = self.modality.learner(self.learner, rng=rng)
        start, goal = (
            split_parameters(self._buffer.snapshot(number, position), net) for position in (first, first + self.span)
        )
        synthetic = self.summary(rng)
        gate = _Gate()
        if (
            self.label_threshold is not None
            and isinstance(synthetic.targets, Tensor)
            and synthetic.targets.requires_grad
        ):
            synthetic = Batch(synthetic.inputs, _Gated.apply(synthetic.targets, gate), synthetic.groups)
        descent = Descent(
            net,
            self.modality.loss,
            self._picks(len(synthetic), rng),
            augment=step_augmentation(self.modality, self.inner_steps, rng) if self.augment else None,
        )
        rates = self._rates().expand(self.inner_steps)
        final = unroll(descent, start, synthetic, rates, exact=self.gradient == "exact")
        distance = sum(((final[name] - goal[name]).square().sum() for name in goal), torch.zeros(()))
        length = sum(((start[name] - goal[name]).square().sum() for name in goal), torch.zeros(()))
        loss = distance / length
        gate.open = self.label_threshold is None or float(loss.detach()) <= self.label_threshold
        return loss

    def after_step(self, rng: torch.Generator) -> None:
        self._step += 1

    def _picks(self, points: int, rng: torch.Generator) -> list[Tensor | None]:
        """The synthetic points of each inner step."""
        if self.one_version and self.summary.versions > 1:
            return version_picks(points, self.summary.versions, self.inner_batch, self.inner_steps, rng)
        return shuffled_picks(points, self.inner_batch, self.inner_steps, rng)

    def _window_end(self) -> int:
        """Starting points lie before this one at the present step."""
        if self.first_max_start is None:
            return self.max_start
        done = min(1.0, self._step / self.expand_steps)
        return self.first_max_start + int(done * (self.max_start - self.first_max_start))

    def _labels_of_experts(self, summary: Summary) -> Tensor:
        batch = summary().detach()
        rng = generator("shape of a learner")
        net = self.modality.learner(self.learner, rng=rng)
        said, right = [], []
        for number in range(self.experts):
            weights = split_parameters(self._buffer.snapshot(number, self.max_start - 1 + self.span), net)
            said.append(call_with(net, weights, batch.inputs).detach())
            right.append(said[-1].argmax(1) == batch.groups)
        trusted = torch.stack(right)
        weight = torch.where(trusted.any(0), trusted, True).to(said[0].dtype)[..., None]
        return ((weight * torch.stack(said)).sum(0) / weight.sum(0)).softmax(1)

    def learnables(self) -> dict[str, nn.Parameter]:
        return {"inner_lr": self._rates.raw} if self.learn_lr else {}

    def learned(self) -> dict[str, Any]:
        return {"inner_lr": self._rates().tolist(), "inner_steps": self.inner_steps}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]


class _Gate:
    """Whether gradients may pass, decided between the forward and the backward pass."""

    open = True


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return (gradient if ctx.gate.open else None), None  # a gradient of zero would still move labels by momentum
