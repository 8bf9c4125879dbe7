"""A pool of learners of different ages that train online, so that a summary meets beginners and trained learners alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol, make_optimizer
from datastill.modalities.base import Modality
from datastill.rng import fork, isolated


class LearnerPool:
    """Learners that train one step at each visit and are replaced when they have had enough (FRePo, arXiv 2206.00719, 3.2).

    Args:
        modality: whose learners.
        name: which; None takes the modality's default.
        size: learners in the pool.
        max_age: training steps after which a learner is replaced by a fresh one. The first ones start with ages spread
            over the range, so that they are not all replaced at once.
        lr: learning rate of their training (Adam).
        rng: for the first draw.
        target_scale: what encoded targets are multiplied by.
    """

    def __init__(
        self,
        modality: Modality,
        name: str | None,
        size: int,
        max_age: int,
        lr: float,
        rng: torch.Generator,
        *,
        target_scale: float = 1.0,
    ) -> None:
        self.modality = modality
        self.name = name
        self.max_age = max_age
        self.target_scale = target_scale
        self.protocol = Protocol(optimizer="adam", lr=lr)
        self.ages = [position * max_age // size for position in range(size)]
        self._learners = [modality.learner(name, rng=rng) for _ in range(size)]
        self._optimizers = [make_optimizer(self.protocol, learner.parameters()) for learner in self._learners]
        self._now = 0

    def pick(self, rng: torch.Generator) -> Learner:
        """A learner drawn uniformly; the next `train` is of this one."""
        self._now = int(torch.randint(len(self._learners), (), generator=rng))
        return self._learners[self._now].requires_grad_(False)

    def train(self, batch: Batch, rng: torch.Generator) -> None:
        """One step of the picked learner's mean squared error on `batch`, or a fresh learner if its time is up."""
        now = self._now
        if self.ages[now] >= self.max_age:
            self._learners[now] = self.modality.learner(self.name, rng=rng)
            self._optimizers[now] = make_optimizer(self.protocol, self._learners[now].parameters())
            self.ages[now] = 0
            return
        learner, optimizer = self._learners[now].requires_grad_(True), self._optimizers[now]
        learner.train()
        with isolated(fork(rng)):
            learner.differentiate(batch, self._error)
            optimizer.step()
        learner.eval()
        self.ages[now] += 1

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - self.target_scale * self.modality.encode(targets)).square().sum(1).mean()

    def state_dict(self) -> dict[str, Any]:
        """Ages, and the parameters and optimiser of every learner."""
        return {
            "ages": list(self.ages),
            "now": self._now,
            "learners": [learner.state_dict() for learner in self._learners],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.ages, self._now = list(state["ages"]), state["now"]
        for learner, optimizer, kept, memory in zip(
            self._learners, self._optimizers, state["learners"], state["optimizers"], strict=True
        ):
            learner.load_state_dict(kept)
            optimizer.load_state_dict(memory)
