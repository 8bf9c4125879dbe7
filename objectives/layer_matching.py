"""Layer matching: the mean features of each group should agree in every layer of a network that trains on the summary.

CAFE: Wang et al. (CVPR 2022), arXiv 2203.01531: layer-wise alignment (equation 3), a discrimination loss that asks the synthetic
means to classify real points (equation 5), and loops whose lengths adapt to how the network's accuracy moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.errors import check_count, check_nonnegative, check_number, check_positive
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective, RealBatches, network_bytes
from datastill.objectives.distribution_matching import group_means
from datastill.objectives.inner import RealNorms, shuffled_picks
from datastill.rng import fork, isolated


@dataclass
class LayerMatching(Objective):
    """sum_l w_l sum_g || mean f_l(real of g) - mean f_l(synthetic of g) ||^2 + discrimination * cross-entropy.

    The cross-entropy is that of real points, summed, whose logits are inner products of their last features with the synthetic
    means of all groups. After a step the network trains on the summary until its accuracy on real points has moved by more than
    `train_tolerance`; it is replaced when its accuracies after `window` steps differ by less than `match_tolerance`.

    The program's layers of a ConvNet are its blocks, the last one with the weight of the others' ten times over: before pooling,
    after it, and after it once more as the features. Here that is one layer, after pooling, of weight 2.

    Attributes:
        learner: name of the learner whose `layers` are matched; None takes the modality's default.
        real_size: real points a group at each step; None takes all of them.
        query_size: real points a group on which accuracies are taken; None takes all of them.
        deep_layers: how many of the last layers have the weight `deep_weight`.
        deep_weight: of these.
        shallow_weight: of the layers before those.
        discrimination: weight of the cross-entropy; 0 leaves it out.
        inner_lr: learning rate of the network's training (SGD).
        inner_batch: synthetic points a step of that training.
        window: accuracies that are compared, of matches and of epochs; of each so many have to be there.
        match_tolerance: lambda_1, in [0, 1].
        train_tolerance: lambda_2, in [0, 1].
        max_matches: steps after which a network is replaced in any case.
        max_epochs: passes over the summary between two steps, at most.
        augment: whether real and synthetic points of a group get the same random augmentation, each group one of its own.
    """

    learner: str | None = None
    real_size: int | None = 256
    query_size: int | None = 128
    deep_layers: int = 1
    deep_weight: float = 2.0
    shallow_weight: float = 0.1
    discrimination: float = 0.01
    inner_lr: float = 0.01
    inner_batch: int = 256
    window: int = 10
    match_tolerance: float = 0.04
    train_tolerance: float = 0.03
    max_matches: int = 100
    max_epochs: int = 50
    augment: bool = False

    name: ClassVar[str] = "layer-matching"

    def __post_init__(self) -> None:
        for field in ("deep_layers", "inner_batch", "max_matches", "max_epochs"):
            check_count(field, getattr(self, field))
        check_count("window", self.window, least=2)
        for field in ("real_size", "query_size"):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field))
        for field in ("deep_weight", "shallow_weight", "discrimination"):
            check_nonnegative(field, getattr(self, field))
        for field in ("match_tolerance", "train_tolerance"):
            check_number(field, getattr(self, field), lambda share: 0 <= share <= 1, "a number in [0, 1]")
        check_positive("inner_lr", self.inner_lr)

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self._real = RealBatches(modality.real, self.real_size)
        self._query = RealBatches(modality.real, self.query_size)
        self._norms = RealNorms(modality)
        self._match = modality.group_augmenter(True)
        self._net: Learner | None = None
        self._accuracies: list[float] = []

    def footprint(self, modality: Modality, summary: Summary) -> int:
        return network_bytes(modality, summary, self.learner, real_size=self.real_size, real="layers")

    def loss(self, rng: torch.Generator) -> Tensor:
        """Alignment of all layers, and discrimination."""
        if self._net is None:
            self._net = self.modality.learner(self.learner, rng=rng)
        net = self._net.requires_grad_(False)
        self._norms.settle(net, rng)
        real, synthetic = self._real(rng), self.summary(rng)
        if self.augment:
            seeds = {group: fork(rng) % 2**31 for group in range(self.modality.num_groups)}
            real, synthetic = self._match(real, seeds), self._match(synthetic, seeds)
        with torch.no_grad():
            theirs = [layer.flatten(1) for layer in net.layers(real.inputs)]
        ours = [layer.flatten(1) for layer in net.layers(synthetic.inputs)]
        count = self.modality.num_groups
        present = torch.bincount(synthetic.groups, minlength=count) > 0
        total = torch.zeros((), dtype=self.modality.dtype, device=self.modality.device)
        for depth, (a, b) in enumerate(zip(ours, theirs)):
            means = group_means(a, synthetic.groups, count)
            gaps = (means - group_means(b, real.groups, count)).square().sum(1)
            weight = self.deep_weight if depth >= len(ours) - self.deep_layers else self.shallow_weight
            total = total + weight * gaps[present].sum()
        if self.discrimination:
            logits = (theirs[-1] @ means.T).masked_fill(~present, -torch.inf)
            asked = present[real.groups]  # a real point of a group without synthetic ones has no right answer
            total = total + self.discrimination * F.cross_entropy(logits[asked], real.groups[asked], reduction="sum")
        return total

    def after_step(self, rng: torch.Generator) -> None:
        self._accuracies.append(self._accuracy(rng))
        if len(self._accuracies) >= self.max_matches or self._settled():
            self._net, self._accuracies = None, []
        else:
            self._train(rng)

    def _settled(self) -> bool:
        recent = self._accuracies[-self.window :]
        return len(recent) == self.window and max(recent) - min(recent) < self.match_tolerance

    @torch.no_grad()
    def _accuracy(self, rng: torch.Generator) -> float:
        assert self._net is not None
        query = self._query(rng)
        return float(self.modality.correct(self._net(query.inputs), query.targets).double().mean())

    def _train(self, rng: torch.Generator) -> None:
        """Train on the summary until the accuracy has moved."""
        assert self._net is not None
        net = self._net.requires_grad_(True)
        with torch.no_grad():
            synthetic = self.summary(rng).detach()
        optimizer = torch.optim.SGD(net.parameters(), lr=self.inner_lr)
        seen: list[float] = []
        with isolated(fork(rng)):
            for _ in range(self.max_epochs):
                self._epoch(net, synthetic, optimizer, rng)
                seen.append(self._accuracy(rng))
                recent = seen[-self.window :]
                if len(recent) == self.window and max(recent) - min(recent) > self.train_tolerance:
                    break

    def _epoch(self, net: Learner, synthetic: Batch, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        net.train()
        size = min(self.inner_batch, len(synthetic))
        for pick in shuffled_picks(len(synthetic), size, -(-len(synthetic) // size), rng):
            points = synthetic if pick is None else synthetic.take(pick.to(synthetic.groups.device))
            if self.augment:
                points = self.modality.augment_each(points, fork(rng) % 2**31)
            net.differentiate(points, self.modality.loss)
            optimizer.step()
        net.eval().zero_grad()

    def state_dict(self) -> dict[str, Any]:
        net = None if self._net is None else self._net.state_dict()
        return {"net": net, "accuracies": list(self._accuracies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accuracies = list(state["accuracies"])
        if state["net"] is not None:
            self._net = self.modality.learner(self.learner, rng=torch.Generator())
            self._net.load_state_dict(state["net"])
