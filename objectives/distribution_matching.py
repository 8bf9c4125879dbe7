"""Distribution matching: the features of each group should have the same distribution under random networks.

DM: Zhao & Bilen (WACV 2023), arXiv 2110.04181, equation 5, which compares means. M3D (Zhang et al., AAAI 2024, arXiv 2312.15927)
compares all moments at once, by the maximum mean discrepancy of a Gaussian kernel. Networks at every stage of training and a
classification loss are IDM's (Zhao et al., CVPR 2023, arXiv 2307.09742). On graphs DM is GCDM (arXiv 2206.13697) without its
inner loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.chunks import parts_of
from datastill.backbones.precision import Precision, check_precision, convolved_in
from datastill.backbones.training import Protocol, train
from datastill.errors import check_count, check_nonnegative, check_positive, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches, network_bytes
from datastill.objectives.in_parts import FIRST, Parts, parts_of_summary, sum_of_parts
from datastill.objectives.inner import RealNorms
from datastill.processes import total
from datastill.rng import fork


@dataclass
class DistributionMatching(Objective):
    """sum_g w_g discrepancy(f(real of g), f(synthetic of g)), with f the features of a fresh learner.

    Attributes:
        learner: name of the learner whose `embed` gives the features; None takes the modality's default.
        real_size: real points a group at each step; None takes all of them.
        real_precision: in what the convolutions of real points are multiplied: "full", "bfloat16", which is much faster where the
            hardware does it natively, or "auto", which is bfloat16 there and full elsewhere.
        augment: whether real and synthetic points of a group get the same random augmentation, each group one of its own.
        discrepancy: "mean" is || mean f(real) - mean f(synthetic) ||^2 (DM); "gaussian" is `gaussian_discrepancy` (M3D).
        weighting: "uniform" (DM) or "share" (each group by its share of the synthetic points, as in GCDM).
        refresh: steps for which one learner is kept before the next draw.
        warmup: steps of training on real points that a fresh learner gets before it is used.
        warmup_lr: learning rate of that training (Adam).
        spread_warmup: whether each learner gets a random number of those steps, from 0 to `warmup`, so that the summary meets
            learners at every stage (IDM), or all of them.
        class_loss: weight of the learner's own loss on the synthetic points, the mean of each group's, summed over groups, times
            its accuracy on real ones, in [0, 1] (IDM, whose program has percent); 0 is none.
    """

    learner: str | None = None
    real_size: int | None = 256
    real_precision: Precision = "full"
    augment: bool = True
    discrepancy: Literal["mean", "gaussian"] = "mean"
    weighting: Literal["uniform", "share"] = "uniform"
    refresh: int = 1
    warmup: int = 0
    warmup_lr: float = 1e-3
    spread_warmup: bool = False
    class_loss: float = 0.0

    name: ClassVar[str] = "distribution-matching"

    def __post_init__(self) -> None:
        check_precision("real_precision", self.real_precision)
        check_count("refresh", self.refresh)
        check_count("warmup", self.warmup, least=0)
        check_positive("warmup_lr", self.warmup_lr)
        if self.real_size is not None:
            check_count("real_size", self.real_size)
        for field, known in (("weighting", ("uniform", "share")), ("discrepancy", ("mean", "gaussian"))):
            if getattr(self, field) not in known:
                raise unknown_name(field, getattr(self, field), known)
        check_nonnegative("class_loss", self.class_loss)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._real = RealBatches(modality.real, self.real_size)
        self._norms = RealNorms(modality)
        self._match = modality.group_augmenter(True)
        self._parts = self._plan(modality, summary)
        self._net: Learner | None = None
        self._age = 0

    def footprint(self, modality: Modality, summary: Summary) -> int:
        points = max(sum(part.values()) for part in self._plan(modality, summary))
        return network_bytes(modality, summary, self.learner, real_size=self.real_size, kept=FIRST, points=points)

    def _plan(self, modality: Modality, summary: Summary) -> Parts:
        """Groups are matched one by one, but the class loss is of all points."""
        return parts_of_summary(modality, summary, self.learner, derivative=FIRST, together=self.class_loss > 0)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The discrepancy of each group's features, summed over groups."""
        net = self._current_learner(rng)
        # Means are sums over the processes' shares; pairs of points and accuracies are computed whole by each.
        shared = self.discrepancy == "mean" and not self.class_loss
        real, synthetic = self._real.share(rng) if shared else self._real(rng), self.summary(rng)
        if self.augment:
            seeds = {group: fork(rng) % 2**31 for group in range(self.modality.num_groups)}
            real, synthetic = (self._match(batch, seeds) for batch in (real, synthetic))
        with torch.no_grad(), convolved_in(self.real_precision):
            theirs = torch.cat([net.embed(part.inputs).flatten(1) for part in parts_of(net, real)])
        aims = self._aims(theirs, real.groups, shared=shared)
        weights = self._weights(synthetic)
        if len(self._parts) == 1:
            loss = self._gaps(net, synthetic, aims, weights)
        else:
            loss = sum_of_parts(synthetic, (partial(self._of_part, net, aims, weights, part) for part in self._parts))
        if self.class_loss:
            with torch.no_grad():
                right = [self.modality.correct(net(part.inputs), part.targets) for part in parts_of(net, real)]
            accuracy = torch.cat(right).to(loss.dtype).mean()
            losses = self.modality.losses(net(synthetic.inputs), synthetic.targets)
            each = group_means(losses[:, None], synthetic.groups, self.modality.num_groups)
            loss = loss + self.class_loss * accuracy * each.sum()
        return loss

    def _aims(self, theirs: Tensor, groups: Tensor, *, shared: bool) -> Any:
        """For each group what its synthetic points are compared with: the mean of the real ones' features, or all of these."""
        count = self.modality.num_groups
        if self.discrepancy == "mean":
            return group_means(theirs, groups, count, shared=shared)
        return [theirs[groups == group] for group in range(count)]

    def _weights(self, synthetic: Batch) -> Tensor:
        """Of each group, (groups,)."""
        counts = torch.bincount(synthetic.groups, minlength=self.modality.num_groups).to(self.modality.dtype)
        return (counts > 0).to(counts.dtype) if self.weighting == "uniform" else counts / counts.sum()

    def _gaps(self, net: Learner, synthetic: Batch, aims: Any, weights: Tensor) -> Tensor:
        """The discrepancies of all groups whose weight is not zero, weighted and summed."""
        ours, groups = net.embed(synthetic.inputs).flatten(1), synthetic.groups
        if self.discrepancy == "mean":
            return weights @ (group_means(ours, groups, len(weights)) - aims).square().sum(1)
        some = weights.nonzero().flatten().tolist()
        return weights[some] @ torch.stack([gaussian_discrepancy(ours[groups == one], aims[one]) for one in some])

    def _of_part(self, net: Learner, aims: Any, weights: Tensor, part: Mapping[int, int], synthetic: Batch) -> Tensor:
        """The same of the groups of one part alone."""
        own = torch.zeros_like(weights)
        own[list(part)] = weights[list(part)]
        order, _ = synthetic.in_blocks(list(part))
        return self._gaps(net, synthetic if order is None else synthetic.take(order), aims, own)

    def after_step(self, rng: torch.Generator) -> None:
        self._age += 1
        if self._age >= self.refresh:
            self._net, self._age = None, 0

    def _current_learner(self, rng: torch.Generator) -> Learner:
        if self._net is None:
            net = self.modality.learner(self.learner, rng=rng)
            steps = self.warmup
            if self.spread_warmup:
                steps = int(torch.randint(self.warmup + 1, (), generator=rng))
            if steps:
                protocol = Protocol(steps=steps, lr=self.warmup_lr, schedule="constant", batch_size=None)
                train(net, self._real(rng), loss=self.modality.loss, protocol=protocol, seed=fork(rng))
            self._norms.settle(net, rng)
            self._net = net.requires_grad_(False)
        return self._net

    def state_dict(self) -> dict[str, Any]:
        return {"age": self._age, "net": None if self._net is None else self._net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._age = state["age"]
        if state["net"] is not None:
            net = self.modality.learner(self.learner, rng=torch.Generator())
            net.load_state_dict(state["net"])
            self._net = net.requires_grad_(False)


def gaussian_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two sets of vectors (n, d) and (m, d), a scalar, at least 0.

    The kernel is the mean of exp(-|| x - y ||^2 / (s h)) over s = 1/4, 1/2, 1, 2, 4, with h the mean squared distance of two
    points of `b` (1 where they are all equal), which counts as a constant; averages run over all pairs, equal ones included
    (Gretton et al., JMLR 2012, equation 5).
    """
    within = _squared_gaps(b, b)
    width = within.detach().sum() / max(len(b) * (len(b) - 1), 1)
    width = torch.where(width > 0, width, torch.ones_like(width))

    def mean_kernel(gaps: Tensor) -> Tensor:
        return torch.stack([torch.exp(-gaps / (scale * width)).mean() for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]).mean()

    return mean_kernel(_squared_gaps(a, a)) + mean_kernel(within) - 2 * mean_kernel(_squared_gaps(a, b))


def _squared_gaps(a: Tensor, b: Tensor) -> Tensor:
    gaps = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    return gaps.clamp(min=0)  # rounding


def group_means(features: Tensor, groups: Tensor, count: int, *, shared: bool = False) -> Tensor:
    """Mean feature of each of `count` groups, (count, width); zero for a group without points.

    `shared` says that other processes have points of these groups too, which are to count.
    """
    flat = features.flatten(1)
    sums = flat.new_zeros(count, flat.shape[1]).index_add(0, groups, flat)
    sizes = torch.bincount(groups, minlength=count).to(flat.dtype)
    if shared:
        sums, sizes = total(sums), total(sizes)
    return sums / sizes.clamp(min=1)[:, None]
