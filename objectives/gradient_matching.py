"""Gradient matching: one training step on the summary should move a network as a step on the target dataset does.

DC: Zhao, Mopuri & Bilen (ICLR 2021), arXiv 2006.05929, equation 5; with augmentation DSA (arXiv 2102.08259); on graphs GCond
(arXiv 2110.07580), and DosCond (arXiv 2206.07746) where every network is matched just once, at initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datastill import processes
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol, make_optimizer
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches
from datastill.objectives.inner import OncePerStep, shuffled_picks
from datastill.rng import fork, isolated

Distance = Literal["rows", "cosine", "squared", "relative"]


@dataclass
class GradientMatching(Objective):
    """sum_g w_g distance(gradient on real points of g, gradient on synthetic points of g).

    A network is drawn, matched `outer_loops` times, trained between two matches for `inner_epochs` on the summary, then replaced.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        outer_loops: matches a network.
        inner_epochs: passes over the summary between two matches of one network; 0 trains it never.
        inner_optimizer: "sgd" (no momentum) or "adam".
        inner_lr: its learning rate.
        inner_batch: synthetic points an inner step.
        real_size: real points a group at each step; None takes all of them.
        distance: "rows" sums 1 - cosine over the rows (output channels) of every weight and skips vectors, as in DC;
            "cosine" is one angle of all gradients together; "squared" is their squared distance, and "relative" that over
            the squared length of the real gradient, as in DosCond's graph classification.
        augment: whether real and synthetic points of a group get the same random augmentation (DSA).
        weighting: "uniform" (DC) or "size" (each group by its synthetic points over the largest group's, as in GCond).
    """

    learner: str | None = None
    outer_loops: int = 10
    inner_epochs: int = 50
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    inner_lr: float = 0.01
    inner_batch: int = 256
    real_size: int | None = 256
    distance: Distance = "rows"
    augment: bool = False
    weighting: Literal["uniform", "size"] = "uniform"

    name: ClassVar[str] = "gradient-matching"

    def __post_init__(self) -> None:
        check_count("outer_loops", self.outer_loops)
        check_count("inner_epochs", self.inner_epochs, least=0)
        check_count("inner_batch", self.inner_batch)
        if self.real_size is not None:
            check_count("real_size", self.real_size)
        require(self.inner_lr > 0, f"inner_lr must be positive, got {self.inner_lr!r}.")
        for field, allowed in (
            ("distance", ("rows", "cosine", "squared", "relative")),
            ("inner_optimizer", ("sgd", "adam")),
            ("weighting", ("uniform", "size")),
        ):
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._real = RealBatches(modality.real, self.real_size)
        self._synthetic = OncePerStep(summary)
        self._net: Learner | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._matches = 0

    def loss(self, rng: torch.Generator) -> Tensor:
        """The distance of gradients, summed over groups."""
        if self._net is None:
            self._adopt(self.modality.learner(self.learner, rng=rng))
        assert self._net is not None
        real, synthetic = self._real.share(rng), self._synthetic.take(rng)
        counts = torch.bincount(synthetic.groups, minlength=self.modality.num_groups)
        groups = counts.nonzero().flatten().tolist()
        seeds = [fork(rng) % 2**31 for _ in groups]
        target = self._gradients(real, groups, seeds, differentiable=False)
        if processes.size() > 1:
            weights = [self.modality.weight(real.of_group(group)) for group in groups]
            each = [processes.average(parts, weight) for parts, weight in zip(zip(*target), weights)]
            target = [torch.stack(parts) for parts in zip(*each)]
        ours = self._gradients(synthetic, groups, seeds, differentiable=True)
        distances = gradient_distances(ours, target, self.distance)
        if self.weighting == "size":
            distances = distances * (counts[groups] / counts.max()).to(distances.dtype)
        return distances.sum()

    def _gradients(
        self, batch: Batch, groups: Sequence[int], seeds: Sequence[int], *, differentiable: bool
    ) -> list[Tensor]:
        """Gradients of each group's mean loss: for each parameter (groups, *shape)."""
        assert self._net is not None
        if not self.augment:
            return self._net.group_gradients(batch, groups, self.modality.loss, create_graph=differentiable)
        parts = []
        for group, seed in zip(groups, seeds):
            points = self.modality.augment(batch.of_group(group), seed)
            parts.append(self._net.group_gradients(points, [group], self.modality.loss, create_graph=differentiable))
        return [torch.cat(each) for each in zip(*parts)]

    def after_step(self, rng: torch.Generator) -> None:
        self._matches += 1
        if self._matches >= self.outer_loops:
            self._net, self._optimizer, self._matches = None, None, 0
        elif self.inner_epochs:
            self._train(rng)

    def _train(self, rng: torch.Generator) -> None:
        assert self._net is not None
        assert self._optimizer is not None
        synthetic = self._synthetic.ahead(rng).detach()
        size = min(self.inner_batch, len(synthetic))
        steps = self.inner_epochs * -(-len(synthetic) // size)
        self._net.train()
        with isolated(fork(rng)):
            for pick in shuffled_picks(len(synthetic), size, steps, rng):
                points = synthetic if pick is None else synthetic.take(pick.to(synthetic.groups.device))
                if self.augment:
                    points = self.modality.augment(points, fork(rng) % 2**31)
                self._optimizer.zero_grad()
                self.modality.loss(self._net(points.inputs), points.targets).backward()
                self._optimizer.step()
        self._net.eval().zero_grad()

    def _adopt(self, net: Learner) -> None:
        self._net = net
        protocol = Protocol(optimizer=self.inner_optimizer, lr=self.inner_lr, momentum=0.0)
        self._optimizer = make_optimizer(protocol, net.parameters())

    def state_dict(self) -> dict[str, Any]:
        if self._net is None or self._optimizer is None:
            return {"matches": self._matches, "net": None}
        return {
            "matches": self._matches,
            "net": self._net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._matches = state["matches"]
        if state["net"] is not None:
            self._adopt(self.modality.learner(self.learner, rng=torch.Generator()))
            assert self._net is not None
            assert self._optimizer is not None
            self._net.load_state_dict(state["net"])
            self._optimizer.load_state_dict(state["optimizer"])


def gradient_distances(ours: Sequence[Tensor], target: Sequence[Tensor], distance: Distance) -> Tensor:
    """How far two lists of parameter gradients, each (groups, *shape), are apart, (groups,); see `GradientMatching.distance`."""
    if distance == "rows":
        rows = [_angles(a.flatten(2), b.flatten(2)).sum(1) for a, b in zip(ours, target) if a.dim() > 2]
        require(bool(rows), "distance='rows' needs a learner with at least one weight matrix.")
        return torch.stack(rows).sum(0)
    a = torch.cat([part.flatten(1) for part in ours], 1)
    b = torch.cat([part.flatten(1) for part in target], 1)
    if distance == "cosine":
        return _angles(a, b)
    gap = (a - b).square().sum(1)
    return gap if distance == "squared" else gap / b.square().sum(1).clamp(min=torch.finfo(b.dtype).tiny)


def _angles(a: Tensor, b: Tensor) -> Tensor:
    # The norm of an all-zero row has no derivative; the tiny floor under the square gives it zero instead of NaN.
    tiny = torch.finfo(a.dtype).tiny
    lengths = (a.square().sum(-1) + tiny).sqrt() * (b.square().sum(-1) + tiny).sqrt()
    return 1 - (a * b).sum(-1) / (lengths + 1e-6)
