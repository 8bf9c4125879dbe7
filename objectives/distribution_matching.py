"""Distribution matching: the mean features of each group should agree under random networks.

DM: Zhao & Bilen (WACV 2023), arXiv 2110.04181, equation 5. On graphs this is GCDM (arXiv 2206.13697) without its inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from datastill.backbones.base import Learner
from datastill.backbones.training import Protocol, train
from datastill.errors import check_count, require
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches
from datastill.processes import total
from datastill.rng import fork


@dataclass
class DistributionMatching(Objective):
    """sum_g w_g || mean f(real of g) - mean f(synthetic of g) ||^2, with f the features of a fresh learner.

    Attributes:
        learner: name of the learner whose `embed` gives the features; None takes the modality's default.
        real_size: real points a group at each step; None takes all of them.
        augment: whether real and synthetic points get the same random augmentation.
        weighting: "uniform" (DM) or "share" (each group by its share of the synthetic points, as in GCDM).
        refresh: steps for which one learner is kept before the next draw.
        warmup: steps of training on real points that a fresh learner gets before it is used.
        warmup_lr: learning rate of that training (Adam).
    """

    learner: str | None = None
    real_size: int | None = 256
    augment: bool = True
    weighting: Literal["uniform", "share"] = "uniform"
    refresh: int = 1
    warmup: int = 0
    warmup_lr: float = 1e-3

    name: ClassVar[str] = "distribution-matching"

    def __post_init__(self) -> None:
        check_count("refresh", self.refresh)
        check_count("warmup", self.warmup, least=0)
        require(self.warmup_lr > 0, f"warmup_lr must be positive, got {self.warmup_lr!r}.")
        if self.real_size is not None:
            check_count("real_size", self.real_size)
        require(
            self.weighting in ("uniform", "share"), f"weighting must be 'uniform' or 'share', got {self.weighting!r}."
        )

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._real = RealBatches(modality.real, self.real_size)
        self._net: Learner | None = None
        self._age = 0

    def loss(self, rng: torch.Generator) -> Tensor:
        """The squared distance of group means, summed over features and groups."""
        net = self._current_learner(rng)
        real, synthetic = self._real.share(rng), self.summary(rng)
        if self.augment:
            seed = fork(rng) % 2**31
            real, synthetic = self.modality.augment(real, seed), self.modality.augment(synthetic, seed)
        with torch.no_grad():
            target = group_means(net.embed(real.inputs), real.groups, self.modality.num_groups, shared=True)
        counts = torch.bincount(synthetic.groups, minlength=self.modality.num_groups)
        weights = (counts > 0).to(target.dtype) if self.weighting == "uniform" else counts / counts.sum()
        means = group_means(net.embed(synthetic.inputs), synthetic.groups, self.modality.num_groups)
        return (weights * (means - target).square().sum(1)).sum()

    def after_step(self, rng: torch.Generator) -> None:
        self._age += 1
        if self._age >= self.refresh:
            self._net, self._age = None, 0

    def _current_learner(self, rng: torch.Generator) -> Learner:
        if self._net is None:
            net = self.modality.learner(self.learner, rng=rng)
            if self.warmup:
                protocol = Protocol(steps=self.warmup, lr=self.warmup_lr, schedule="constant", batch_size=None)
                train(net, self._real(rng), loss=self.modality.loss, protocol=protocol, seed=fork(rng))
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
