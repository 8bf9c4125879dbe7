"""Neural feature regression: ridge regression on the features of learners that train on the summary as it changes.

FRePo: Zhou, Nezhadarya & Ba (NeurIPS 2022), arXiv 2206.00719. The last layer is solved exactly, the layers below come from a pool
of learners at every stage of training, and gradients go through the features of the summary only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from datastill.backbones.batch import Batch
from datastill.backbones.precision import Precision, check_precision, convolved_in
from datastill.backbones.ridge import linear_gram, ridge_solve
from datastill.errors import check_count, check_nonnegative, check_positive
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches, limit_of, network_bytes
from datastill.objectives.pool import LearnerPool
from datastill.processes import portion
from datastill.rng import fork, generator


@dataclass
class FeatureRegression(Objective):
    """Loss on real points of F_t F_s' (F_s F_s' + ridge tr/n I)^-1 Y_s, with F the features of a learner of the pool.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        pool: learners in the pool.
        max_age: training steps after which a learner is replaced.
        inner_lr: learning rate of the learners' training on the summary (Adam).
        inner_steps: training steps of a learner at each visit, one as published. More cost little where the summary is far
            smaller than a real batch, and let the learners grow old in a short run.
        inner_batch: synthetic points of a training step; None takes all of them.
        ridge: at least 0, relative to the mean diagonal of F_s F_s'.
        real_size: real points a group at each step; None takes all of them, as far as `real_limit` goes.
        real_limit: most real points of a step, all groups together: of more, each step draws a sample stratified by group. None
            sets no limit.
        real_precision: in what the convolutions of real points are multiplied: "full", "bfloat16", which is much faster where the
            hardware does it natively, or "auto", which is bfloat16 there and full elsewhere.
        inner_precision: the same for the learners' training.
        inner_augment: what augments the summary as the learners train on it: False, True for the modality's augmentation, or the
            name of one (`Modality.augmenter`). The paper has none; a summary for students that train augmented needs theirs.
        augment: whether real and synthetic points of the regression get the same random augmentation.
        mirror: whether the regression trains on mirror images beside the synthetic points (`Modality.mirrored`).
        unit_outputs: targets are scaled by sqrt(this / outputs), as published for classes; None leaves them as they are. Learned
            labels are kept without that factor.
        margin: weight of the label margin, which keeps the largest of each learned label 1/classes above the next one, beside
            the squared error summed over outputs, as published; it does nothing where labels are fixed.
    """

    learner: str | None = None
    pool: int = 10
    max_age: int = 100
    inner_lr: float = 3e-4
    inner_steps: int = 1
    inner_batch: int | None = 1000
    ridge: float = 1e-6
    real_size: int | None = 102
    real_limit: int | None = 8192
    real_precision: Precision = "full"
    inner_precision: Precision = "full"
    inner_augment: bool | str = False
    augment: bool = False
    mirror: bool = False
    unit_outputs: int | None = None
    margin: float = 1.0

    name: ClassVar[str] = "feature-regression"

    def __post_init__(self) -> None:
        check_precision("real_precision", self.real_precision)
        check_precision("inner_precision", self.inner_precision)
        check_count("pool", self.pool)
        check_count("max_age", self.max_age)
        check_count("inner_steps", self.inner_steps)
        for field in ("inner_batch", "real_size", "real_limit", "unit_outputs"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        check_positive("inner_lr", self.inner_lr)
        check_nonnegative("ridge", self.ridge)
        check_nonnegative("margin", self.margin)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._vary = modality.augmenter(self.inner_augment) if self.inner_augment else None
        limit = limit_of(self.real_limit, self.real_size, modality.num_groups)
        self._real = RealBatches(modality.real, self.real_size, limit)
        self._learns_labels = "labels" in summary.parameter_groups()
        self._scale = 1.0
        if self.unit_outputs is not None:
            self._scale = math.sqrt(self.unit_outputs / modality.encode(summary().targets).shape[1])
        draws = generator(seed, "learner pool")
        self._pool = LearnerPool(
            modality, self.learner, self.pool, self.max_age, self.inner_lr, draws, target_scale=self._scale
        )

    def footprint(self, modality: Modality, summary: Summary) -> int:
        return network_bytes(modality, summary, self.learner, real_size=self.real_size, real_limit=self.real_limit)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The regression's loss on real points, and the label margin."""
        net = self._pool.pick(rng)
        real, synthetic = self._real.share(rng), self.summary(rng)
        labels = synthetic.targets
        if self.augment:
            seed = fork(rng) % 2**31
            real, synthetic = self.modality.augment(real, seed), self.modality.augment(synthetic, seed)
        if self.mirror:
            synthetic = self.modality.mirrored(synthetic)
        with torch.no_grad(), convolved_in(self.real_precision):
            theirs = net.embed(real.inputs).flatten(1)
        ours = net.embed(synthetic.inputs).flatten(1)
        targets = self.modality.encode(synthetic.targets)
        coefficients = ridge_solve(linear_gram(ours), targets, self.ridge)
        loss = self.modality.ridge_loss(theirs @ (ours.T @ coefficients), real.targets)
        # The prediction is linear in the labels, so that a factor of all targets is one of the squared error.
        loss = self._scale**2 * portion(loss, self.modality.weight(real))
        if not self._learns_labels:
            return loss
        # The error is a mean over outputs, where the paper's is their sum.
        return loss + self.margin / targets.shape[1] * label_margin(self._scale * labels)

    def after_step(self, rng: torch.Generator) -> None:
        with torch.no_grad():
            whole = self.summary(rng).detach()
        with convolved_in(self.inner_precision):
            for _ in range(self.inner_steps):
                if not self._pool.train(self._inner(whole, rng), rng):
                    break  # the next visit meets a fresh learner

    def _inner(self, batch: Batch, rng: torch.Generator) -> Batch:
        """What a learner trains on at one step."""
        if self.inner_batch is not None and self.inner_batch < len(batch):
            batch = batch.take(torch.randperm(len(batch), generator=rng)[: self.inner_batch].to(batch.groups.device))
        return batch if self._vary is None else self._vary(batch, fork(rng) % 2**31)

    def state_dict(self) -> dict[str, Any]:
        return self._pool.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool.load_state_dict(state)


def label_margin(labels: Tensor) -> Tensor:
    """Mean of -min(largest - second largest, 1/classes) over the rows of (n, classes), FRePo's appendix."""
    best = labels.topk(2, dim=1).values
    return -(best[:, 0] - best[:, 1]).clamp(max=1.0 / labels.shape[1]).mean()
