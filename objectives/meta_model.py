"""Meta-model matching by unrolling: train a fresh network on the summary, and ask how well it fits the target dataset.

DD: Wang et al. (2018), arXiv 1811.10959, equation 3, with learned step sizes; with momentum and long unrolls it is the engine of
Deng & Russakovsky (NeurIPS 2022, arXiv 2206.02916).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datastill.backbones.base import Learner, call_with, parameters_of
from datastill.backbones.precision import Precision, check_precision, convolved_in
from datastill.errors import check_count, check_momentum, check_nonnegative, check_positive, require
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches, limit_of, network_bytes, weight_bytes
from datastill.objectives.inner import PositiveRates, shuffled_picks, step_augmentation
from datastill.objectives.pool import UnrolledPool
from datastill.objectives.unroll import Descent, check_unrolls, continued
from datastill.processes import portion
from datastill.rng import fork, generator


@dataclass
class UnrolledTraining(Objective):
    """Real loss of a learner after `inner_steps` of SGD on the summary, differentiated exactly through all of them.

    The learner is a fresh one, or one of a `pool` that has trained before. It must be without batch norm, which `start` refuses.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        inner_steps: T, SGD steps.
        inner_lr: first value of the step size, above 0.
        learn_lr: whether the step sizes are learned (kept positive).
        lr_per_step: one step size for each inner step (DD) or one for all.
        momentum: of the inner SGD, in [0, 1).
        weight_decay: of the inner SGD.
        inner_batch: synthetic points an inner step; None takes all of them.
        real_size: real points a group for the outer loss; None takes all of them.
        real_limit: most real points of a step, all groups together: of more, each step draws a sample stratified by group. None
            sets no limit.
        real_precision: in what the convolutions of real points are multiplied: "full", "bfloat16", which is much faster where the
            device does it natively, or "auto", bfloat16 there and full elsewhere.
        inner_precision: the same of synthetic points, in the steps of SGD and where these are differentiated. What is rounded is
            far below what another learner would change.
        augment: whether inner batches are augmented, each step with a seed of its own, and real points too, as RaT-BPTT has it:
            every point of both has a transformation of its own.
        zero_head: whether the head of a learner begins at zero. Its random outputs, which a short training does not forget, are
            then no noise in the gradient.
        platt: whether the loss on real points is that of exp(k) times the outputs, k learned from 0 (Platt scaling, as in RFAD):
            a short training has its outputs right before it has them large.
        pool: learners that are kept and go on training from one outer step to the next, one of them at each; None trains a fresh
            one every time. With it the summary meets learners of all ages up to `max_age` at the cost of `inner_steps`, and the
            gradient is cut off at the first of these, as RaT-BPTT has it for a window that begins anywhere in a training (Feng,
            Vedantam & Kempe, ICLR 2024, arXiv 2311.07025). Excludes `lr_per_step`, whose steps are counted from the first.
        max_age: training steps after which a learner of the pool is replaced by a fresh one.
    """

    learner: str | None = None
    inner_steps: int = 20
    inner_lr: float = 0.02
    learn_lr: bool = True
    lr_per_step: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    inner_batch: int | None = None
    real_size: int | None = 64
    real_limit: int | None = None
    real_precision: Precision = "full"
    inner_precision: Precision = "full"
    augment: bool = False
    zero_head: bool = False
    platt: bool = False
    pool: int | None = None
    max_age: int = 300

    name: ClassVar[str] = "unrolled"
    learns_rate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("inner_steps", self.inner_steps)
        check_count("max_age", self.max_age)
        for field in ("inner_batch", "real_size", "real_limit", "pool"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        check_precision("real_precision", self.real_precision)
        check_precision("inner_precision", self.inner_precision)
        require(
            self.pool is None or not self.lr_per_step,
            "pool keeps learners beyond inner_steps, for which lr_per_step has no step sizes: leave one of the two out.",
        )
        check_positive("inner_lr", self.inner_lr)
        check_momentum("momentum", self.momentum)
        check_nonnegative("weight_decay", self.weight_decay)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        check_unrolls(modality, self.learner)
        super().start(modality, summary, seed=seed, workdir=workdir)
        limit = limit_of(self.real_limit, self.real_size, modality.num_groups)
        self._real = RealBatches(modality.real, self.real_size, limit)
        self._rates = PositiveRates(self.inner_lr, self.inner_steps if self.lr_per_step else 1, self.learn_lr)
        self._rates.to(modality.device, modality.dtype)
        draws = generator(seed, "unrolled pool")
        self._sharpness = nn.Parameter(torch.zeros((), device=modality.device, dtype=modality.dtype))
        self._pool = None if self.pool is None else UnrolledPool(self._learner, self.pool, self.max_age, draws)

    def footprint(self, modality: Modality, summary: Summary) -> int:
        """One step's graph, with a second derivative, and the weights of all of them."""
        step = network_bytes(
            modality,
            summary,
            self.learner,
            real_size=self.real_size,
            real_limit=self.real_limit,
            kept=4,
            points=self.inner_batch,
        )
        return step + (self.inner_steps + 4 + 2 * (self.pool or 0)) * weight_bytes(modality, self.learner)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The trained learner's loss on real points."""
        net = self._learner(rng)
        theta, velocity = self._pool.pick(rng) if self._pool else (parameters_of(net), None)
        real, synthetic = self._real.share(rng), self.summary(rng)
        picks = shuffled_picks(len(synthetic), self.inner_batch, self.inner_steps, rng)
        descent = Descent(
            net,
            self.modality.loss,
            picks,
            self.momentum,
            self.weight_decay,
            step_augmentation(self.modality, self.inner_steps, rng) if self.augment else None,
            self.inner_precision,
        )
        rates = self._rates().expand(self.inner_steps)
        trained, speed = continued(descent, theta, synthetic, rates, velocity=velocity)
        if self._pool:
            self._pool.offer(trained, speed, self.inner_steps)
        if self.augment:
            real = self.modality.augment_each(real, fork(rng) % 2**31)
        with convolved_in(self.real_precision):
            outputs = call_with(net, trained, real.inputs)
        loss = self.modality.loss(self._sharpness.exp() * outputs if self.platt else outputs, real.targets)
        return portion(loss, self.modality.weight(real))

    def _learner(self, rng: torch.Generator) -> Learner:
        """One that begins to train."""
        net = self.modality.learner(self.learner, rng=rng)
        if self.zero_head:
            with torch.no_grad():
                for value in net.head.parameters():
                    value.zero_()
        return net

    def after_step(self, rng: torch.Generator) -> None:
        if self._pool:
            self._pool.advance(rng)

    def learnables(self) -> dict[str, nn.Parameter]:
        rates = {"inner_lr": self._rates.raw} if self.learn_lr else {}
        return {**rates, **({"sharpness": self._sharpness} if self.platt else {})}

    def learned(self) -> dict[str, Any]:
        sharpness = {"sharpness": float(self._sharpness.detach().exp())} if self.platt else {}
        rates = self._rates().tolist()
        return {"inner_lr": rates, "inner_steps": self.inner_steps, "momentum": self.momentum, **sharpness}

    def state_dict(self) -> dict[str, Any]:
        return self._pool.state_dict() if self._pool else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._pool:
            self._pool.load_state_dict(state)
