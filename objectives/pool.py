"""A pool of learners of different ages that train online, so that a summary meets beginners and trained learners alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from datastill.backbones.base import Learner, parameters_of
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol, make_optimizer
from datastill.modalities.base import Modality
from datastill.rng import fork, isolated

_State: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor]]  # parameters and velocity


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
        self.ages = _spread(size, max_age)
        self._learners = [modality.learner(name, rng=rng) for _ in range(size)]
        self._optimizers = [make_optimizer(self.protocol, learner.parameters()) for learner in self._learners]
        self._now = 0

    def pick(self, rng: torch.Generator) -> Learner:
        """A learner drawn uniformly; the next `train` is of this one."""
        self._now = int(torch.randint(len(self._learners), (), generator=rng))
        return self._learners[self._now].requires_grad_(False)

    def train(self, batch: Batch, rng: torch.Generator) -> bool:
        """One step of the picked learner's mean squared error on `batch`; False if its time was up and a fresh one is there."""
        now = self._now
        if self.ages[now] >= self.max_age:
            self._learners[now] = self.modality.learner(self.name, rng=rng)
            self._optimizers[now] = make_optimizer(self.protocol, self._learners[now].parameters())
            self.ages[now] = 0
            return False
        learner, optimizer = self._learners[now].requires_grad_(True), self._optimizers[now]
        learner.train()
        with isolated(fork(rng)):
            learner.differentiate(batch, self._error)
            optimizer.step()
        learner.eval()
        self.ages[now] += 1
        return True

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


class UnrolledPool:
    """Trainings of different ages that outer steps take turns to unroll further: truncated windows as RaT-BPTT has them
    (arXiv 2311.07025), which begin where another one ended and not after steps of their own.

    Args:
        fresh: makes a learner with random weights.
        size: trainings in the pool.
        max_age: inner steps after which one begins again with a fresh learner. The first ones start with ages spread over the
            range, so that they do not all begin again at once.
        rng: for the first draw.
    """

    def __init__(
        self, fresh: Callable[[torch.Generator], Learner], size: int, max_age: int, rng: torch.Generator
    ) -> None:
        self.fresh = fresh
        self.max_age = max_age
        self.ages = _spread(size, max_age)
        self._states = [self._begun(rng) for _ in range(size)]
        self._now = 0
        self._ahead: tuple[_State, int] | None = None

    def pick(self, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and velocity of a training drawn uniformly."""
        self._now = int(torch.randint(len(self._states), (), generator=rng))
        return self._states[self._now]

    def offer(self, parameters: dict[str, Tensor], velocity: dict[str, Tensor], steps: int) -> None:
        """Where the picked training stands `steps` later; `advance` takes it over, when the outer step is made."""
        detached = ({name: value.detach() for name, value in parameters.items()}, velocity)
        self._ahead = detached, steps

    def advance(self, rng: torch.Generator) -> None:
        """Take over what was offered, or a fresh learner if the training's time is up."""
        if self._ahead is None:
            return
        (state, steps), self._ahead = self._ahead, None
        self.ages[self._now] += steps
        if self.ages[self._now] >= self.max_age:
            state = self._begun(rng)
            self.ages[self._now] = 0
        self._states[self._now] = state

    def _begun(self, rng: torch.Generator) -> _State:
        parameters = parameters_of(self.fresh(rng))
        return parameters, {name: torch.zeros_like(value) for name, value in parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        """Ages, parameters and velocities, between two outer steps."""
        return {
            "ages": list(self.ages),
            "parameters": [dict(parameters) for parameters, _ in self._states],
            "velocities": [dict(velocity) for _, velocity in self._states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.ages = list(state["ages"])
        kept = zip(state["parameters"], state["velocities"], strict=True)
        self._states = [
            (_like(parameters, ours[0]), _like(velocity, ours[1]))
            for (parameters, velocity), ours in zip(kept, self._states)
        ]


def _like(values: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """`values` on the devices of `ours`."""
    return {name: value.to(ours[name].device) for name, value in values.items()}


def _spread(size: int, max_age: int) -> list[int]:
    """First ages over the whole range, so that members are not all replaced at once."""
    return [position * max_age // size for position in range(size)]
