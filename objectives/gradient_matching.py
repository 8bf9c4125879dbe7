"""Gradient matching: one training step on the summary should move a network as a step on the target dataset does.

DC: Zhao, Mopuri & Bilen (ICLR 2021), arXiv 2006.05929, equation 5; with augmentation DSA (arXiv 2102.08259); on graphs GCond
(arXiv 2110.07580), and DosCond (arXiv 2206.07746) where every network is matched just once, at initialisation. DCC (Lee et al.,
ICML 2022, arXiv 2202.02916) matches the gradient of all groups together after a while. In IDC (Kim et al., ICML 2022, arXiv
2205.14959) networks train on real points, gradients of hidden weights are compared by their lengths, and every group has a step
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datastill import processes
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.precision import Precision, check_precision, convolved_in
from datastill.backbones.training import Protocol, make_optimizer
from datastill.errors import check_count, check_momentum, check_nonnegative, check_positive, require, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches, enough, network_bytes, weight_bytes
from datastill.objectives.gradient_distances import DISTANCES, Distance, gradient_distances
from datastill.objectives.in_parts import SECOND, Parts, parts_of_summary, sum_of_parts
from datastill.objectives.inner import OncePerStep, RealNorms, shuffled_picks
from datastill.rng import fork, generator, isolated


@dataclass
class GradientMatching(Objective):
    """sum_g w_g distance(gradient on real points of g, gradient on synthetic points of g).

    A network is drawn, matched `outer_loops` times, trained for `inner_epochs` between two matches, then replaced.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        outer_loops: matches a network; None is as many as a group has points, at most 50, as published. So with one point a
            group no network is ever trained.
        trained_on: "summary" (DC) or "real" points (IDC), between two matches.
        inner_epochs: passes over them between two matches of one network; 0 trains it never; None is as published by points a
            group: 50 up to 10 of them, 25 for 20, 20 for 30, 15 for 40, 10 for 50 and more.
        inner_optimizer: "sgd" or "adam".
        inner_lr: its learning rate.
        inner_momentum: of "sgd".
        inner_weight_decay: L2 penalty of the network's training.
        inner_batch: points an inner step.
        inner_real: real points a group that "real" trains on between two matches; None takes all of them.
        inner_augment: augmentation of that training, as in `Modality.augmenter`: a name, True or False.
        real_size: real points a group at each step; None takes all of them.
        real_precision: in what the convolutions of real points are multiplied: "full", "bfloat16", which is much faster where the
            hardware does it natively, or "auto", which is bfloat16 there and full elsewhere.
        distance: "rows" sums 1 - cosine over the rows (output channels) of every weight and skips vectors, as in DC;
            "cosine" is one angle of all gradients together; "squared" is their squared distance, and "relative" that over
            the squared length of the real gradient, as in DosCond's graph classification; "hidden-squared" and "hidden-absolute"
            sum squares and absolute values of differences over the weights before the head, and skip vectors, as in IDC.
        augment: whether real and synthetic points of a group get the same random augmentation (DSA), and training on the summary
            one of each point's own; a name as in `Modality.augmenter` is another augmentation than the modality's (IDC).
        weighting: "uniform" (DC) or "size" (each group by its synthetic points over the largest group's, as in GCond).
        groups_per_step: groups matched at a step, in turn; a round of all of them counts as one match (IDC has 1). None is all.
        synthetic_limit: synthetic points of a group in a match, at most, another random choice each time (IDC); None is all.
        contrast_after: from this step of the run on, counted from 0, the mean of all groups' gradients is matched by the gradient
            of the whole summary (DCC, where it is a quarter of the run); None never does so.
        contrast_matches: the same from this match of every network on.
    """

    learner: str | None = None
    outer_loops: int | None = None
    trained_on: Literal["summary", "real"] = "summary"
    inner_epochs: int | None = None
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    inner_lr: float = 0.01
    inner_momentum: float = 0.0
    inner_weight_decay: float = 0.0
    inner_batch: int = 256
    inner_real: int | None = 50
    inner_augment: bool | str = False
    real_size: int | None = 256
    real_precision: Precision = "full"
    distance: Distance = "rows"
    augment: bool | str = False
    weighting: Literal["uniform", "size"] = "uniform"
    groups_per_step: int | None = None
    synthetic_limit: int | None = None
    contrast_after: int | None = None
    contrast_matches: int | None = None

    name: ClassVar[str] = "gradient-matching"
    counted_in_steps: ClassVar[tuple[str, ...]] = ("contrast_after",)

    def __post_init__(self) -> None:
        check_count("inner_batch", self.inner_batch)
        for field, least in (
            ("outer_loops", 1),
            ("inner_epochs", 0),
            ("real_size", 1),
            ("inner_real", 1),
            ("groups_per_step", 1),
            ("synthetic_limit", 1),
            ("contrast_after", 0),
            ("contrast_matches", 0),
        ):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field), least=least)
        contrasts = self.contrast_after is not None or self.contrast_matches is not None
        require(
            self.groups_per_step is None or not contrasts,
            "groups_per_step must be None where all groups are matched together by contrast_after or contrast_matches.",
        )
        check_momentum("inner_momentum", self.inner_momentum)
        check_nonnegative("inner_weight_decay", self.inner_weight_decay)
        check_precision("real_precision", self.real_precision)
        check_positive("inner_lr", self.inner_lr)
        plain = self.inner_augment is False and self.inner_real == type(self).inner_real
        require(
            self.trained_on == "real" or plain,
            "inner_augment and inner_real are of training on real points: leave them out, or set trained_on='real'. Training on "
            "the summary augments as `augment` says.",
        )
        for field, allowed in (
            ("distance", DISTANCES),
            ("trained_on", ("summary", "real")),
            ("inner_optimizer", ("sgd", "adam")),
            ("weighting", ("uniform", "size")),
        ):
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._real = RealBatches(modality.real, enough(self.real_size, modality.group_sizes))
        self._norms = RealNorms(modality)
        self._synthetic = OncePerStep(summary)
        self._parts = self._plan(modality, summary)
        with torch.no_grad():
            self._counts = torch.bincount(summary().groups.cpu(), minlength=modality.num_groups)
        self._groups: list[int] = self._counts.nonzero().flatten().tolist()
        loops, epochs = published_loops(int(self._counts.max()))
        self._loops = loops if self.outer_loops is None else self.outer_loops
        self._epochs = epochs if self.inner_epochs is None else self.inner_epochs
        if self.distance.startswith("hidden"):
            _hidden(modality.learner(self.learner, rng=generator(seed, "hidden weights")))
        self._match = modality.group_augmenter(self.augment) if self.augment else None
        chosen = self.augment if self.trained_on == "summary" else self.inner_augment
        self._vary = modality.augmenter(chosen) if chosen else None
        self._net: Learner | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._matches = self._steps = self._turn = 0

    def footprint(self, modality: Modality, summary: Summary) -> int:
        whole = weight_bytes(modality, self.learner)
        options: dict[str, Any] = {"real_size": self.real_size, "kept": SECOND, "real": "gradients"}
        return max(
            network_bytes(modality, summary, self.learner, points=points, **options) + SECOND * groups * whole
            for points, groups in {(sum(part.values()), len(part)) for part in self._plan(modality, summary)}
        )

    def _plan(self, modality: Modality, summary: Summary) -> Parts:
        """Groups are matched one by one, but a contrast is of all of them."""
        contrasts = self.contrast_after is not None or self.contrast_matches is not None
        return parts_of_summary(modality, summary, self.learner, most=self.synthetic_limit, together=contrasts)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The distance of gradients, summed over groups."""
        if self._net is None:
            self._adopt(self.modality.learner(self.learner, rng=rng))
        assert self._net is not None
        self._norms.settle(self._net, rng)
        groups = self._groups
        if self.groups_per_step is not None:
            groups = groups[self._turn : self._turn + self.groups_per_step]
        real = self._real.share(rng, None if self.groups_per_step is None else groups)
        synthetic = self._chosen(self._synthetic.take(rng), rng)
        seeds = {group: fork(rng) % 2**31 for group in groups}
        if self._match is not None:
            real, synthetic = self._match(real, seeds), self._match(synthetic, seeds)
        if self._contrasts():
            return self._contrast(real, synthetic, groups)
        parts = [mine for part in self._parts if (mine := [group for group in groups if group in part])]
        if len(parts) == 1:
            return self._distance(real, synthetic, groups)
        return sum_of_parts(synthetic, (partial(self._distance, real, groups=mine) for mine in parts))

    def _distance(self, real: Batch, synthetic: Batch, groups: Sequence[int]) -> Tensor:
        """That of the gradients of these groups, summed."""
        # Angles of rows need no products where every group is compared by this process alone.
        factored = self.distance == "rows" and processes.size() == 1
        target = self._real_gradients(real, groups, factored=factored)
        distances = self._distances(self._gradients(synthetic, groups, differentiable=True, factored=factored), target)
        if self.weighting == "size":
            distances = distances * (self._counts[groups] / self._counts.max()).to(distances)
        return distances.sum()

    def _contrast(self, real: Batch, synthetic: Batch, groups: Sequence[int]) -> Tensor:
        """The distance of the mean of all groups' gradients and the gradient of the whole summary."""
        target = [part.mean(0, keepdim=True) for part in self._real_gradients(real, groups, factored=False)]
        whole = Batch(synthetic.inputs, synthetic.targets, torch.zeros_like(synthetic.groups))
        return self._distances(self._gradients(whole, [0], differentiable=True, factored=False), target).sum()

    def _distances(self, ours: list[Any], target: list[Any]) -> Tensor:
        if self.distance.startswith("hidden"):
            assert self._net is not None
            kept = _hidden(self._net)
            ours, target = ([part for part, keep in zip(parts, kept) if keep] for parts in (ours, target))
        return gradient_distances(ours, target, self.distance)

    def _real_gradients(self, real: Batch, groups: Sequence[int], *, factored: bool) -> list[Any]:
        with convolved_in(self.real_precision):
            target = self._gradients(real, groups, differentiable=False, factored=factored)
        if processes.size() == 1:
            return target
        weights = [self.modality.weight(real.of_group(group)) for group in groups]
        each = [processes.average(parts, weight) for parts, weight in zip(zip(*target), weights)]
        return [torch.stack(parts) for parts in zip(*each)]

    def _chosen(self, batch: Batch, rng: torch.Generator) -> Batch:
        """At most `synthetic_limit` points of each group."""
        if self.synthetic_limit is None or int(self._counts.max()) <= self.synthetic_limit:
            return batch
        picked = []
        for group in self._groups:
            own = (batch.groups == group).nonzero().squeeze(1)
            some = torch.randperm(len(own), generator=rng)[: self.synthetic_limit].sort().values
            picked.append(own[some.to(own.device)])
        return batch.take(torch.cat(picked))

    def _contrasts(self) -> bool:
        after, matches = self.contrast_after, self.contrast_matches
        return (after is not None and self._steps >= after) or (matches is not None and self._matches >= matches)

    def _gradients(self, batch: Batch, groups: Sequence[int], *, differentiable: bool, factored: bool) -> list[Any]:
        """Gradients of each group's mean loss: for each parameter (groups, *shape), which may be `Outer` if `factored`."""
        assert self._net is not None
        gradients = self._net.factored_gradients if factored else self._net.group_gradients
        return list(gradients(batch, groups, self.modality.loss, create_graph=differentiable))

    def after_step(self, rng: torch.Generator) -> None:
        self._steps += 1
        self._turn += len(self._groups) if self.groups_per_step is None else self.groups_per_step
        if self._turn < len(self._groups):
            return
        self._turn = 0
        self._matches += 1
        if self._matches >= self._loops:
            self._net, self._optimizer, self._matches = None, None, 0
        elif self._epochs:
            self._train(rng)

    def _train(self, rng: torch.Generator) -> None:
        assert self._net is not None
        assert self._optimizer is not None
        if self.trained_on == "summary":
            batch = self._synthetic.ahead(rng).detach()
        else:
            batch = self.modality.real(self.inner_real, rng=rng)
        size = min(self.inner_batch, len(batch))
        steps = self._epochs * -(-len(batch) // size)
        self._net.train()
        with isolated(fork(rng)):
            if size == len(batch) and self._vary is None:
                self._net.descend(batch, self.modality.loss, self._optimizer, steps)
            else:
                for pick in shuffled_picks(len(batch), size, steps, rng):
                    points = batch if pick is None else batch.take(pick.to(batch.groups.device))
                    if self._vary is not None:
                        points = self._vary(points, fork(rng) % 2**31)
                    self._net.descend(points, self.modality.loss, self._optimizer, 1)
        self._net.eval().zero_grad()

    def _adopt(self, net: Learner) -> None:
        self._net = net
        protocol = Protocol(
            optimizer=self.inner_optimizer,
            lr=self.inner_lr,
            momentum=self.inner_momentum,
            weight_decay=self.inner_weight_decay,
        )
        self._optimizer = make_optimizer(protocol, net.parameters())

    def state_dict(self) -> dict[str, Any]:
        places = {"matches": self._matches, "steps": self._steps, "turn": self._turn}
        if self._net is None or self._optimizer is None:
            return {**places, "net": None}
        return {**places, "net": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._matches, self._steps, self._turn = state["matches"], state["steps"], state["turn"]
        if state["net"] is not None:
            self._adopt(self.modality.learner(self.learner, rng=torch.Generator()))
            assert self._net is not None
            assert self._optimizer is not None
            self._net.load_state_dict(state["net"])
            self._optimizer.load_state_dict(state["optimizer"])


def published_loops(points: int) -> tuple[int, int]:
    """Matches a network, and epochs between two of them, that DC's authors chose for so many points a class.

    They chose for 1, 10, 20, 30, 40 and 50 points; between these it is a straight line.
    """
    return min(points, 50), round(float(np.interp(points, (10, 20, 30, 40, 50), (50, 25, 20, 15, 10))))


def _hidden(net: Learner) -> list[bool]:
    """Which of the parameters are weights before the head."""
    head = {id(value) for value in net.head.parameters()}
    kept = [value.dim() > 1 and id(value) not in head for value in net.parameters()]
    require(any(kept), "The 'hidden' distances need a learner with weights before its head; this one has none.")
    return kept
