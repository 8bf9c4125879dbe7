"""Ordinary training of a finite learner on a batch of points: what a user of a data summary does with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datastill.backbones.base import Learner, Predictor
from datastill.backbones.batch import Batch
from datastill.backbones.steps import aligned
from datastill.errors import (
    check_count,
    check_momentum,
    check_nonnegative,
    check_number,
    check_positive,
    require,
    unknown_name,
)
from datastill.rng import generator, isolated

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "drop"]
TrainingLoss = Literal["task", "squared"]


@dataclass(frozen=True)
class Protocol:
    """How a learner is trained in evaluation. Plain data, so that a table can state it.

    An `InputError` says which value is not allowed.

    Attributes:
        steps: optimiser steps; 0 leaves the learner as it begins.
        epochs: in place of `steps`, passes over the points; the last batch of a pass may then be smaller.
        optimizer: "adam", "adamw" or "sgd".
        lr: first learning rate, above 0.
        momentum: of "sgd", in [0, 1).
        weight_decay: at least 0, the L2 penalty (decoupled for "adamw").
        batch_size: points a step; None takes all of them.
        schedule: "constant", "cosine" (to `floor`) or "drop" (times `drop_factor` at each of `drops`).
        drops: parts of the run, in (0, 1), after which the rate drops.
        drop_factor: what the rate is multiplied by there, above 0.
        restart: whether the optimiser forgets its state (momentum) where the rate drops.
        warmup: steps in which the rate rises linearly to `lr`, before the cosine begins.
        floor: share of `lr` at which the cosine ends, in [0, 1].
        augment: whether the modality's augmentation is applied; a string names one of `Modality.augmenter`.
        loss: "task" (the modality's), or "squared": half the squared distance to `encode(targets)`, summed over outputs.
        target_scale: what encoded targets are multiplied by, for "squared"; above 0.
        centred: whether what is trained is the learner minus its initial outputs.
        validate_every: steps between validations that pick the best moment; None keeps the last step.
    """

    steps: int = 300
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int | None = 256
    schedule: Schedule = "cosine"
    augment: bool | str = False
    validate_every: int | None = None
    epochs: int | None = None
    drops: tuple[float, ...] = (0.5,)
    drop_factor: float = 0.1
    restart: bool = False
    warmup: int = 0
    floor: float = 0.0
    loss: TrainingLoss = "task"
    target_scale: float = 1.0
    centred: bool = False

    def __post_init__(self) -> None:
        for field, least in (("steps", 0), ("warmup", 0)):
            check_count(field, getattr(self, field), least=least)
        for field, least in (("epochs", 0), ("batch_size", 1), ("validate_every", 1)):
            if getattr(self, field) is not None:
                check_count(field, getattr(self, field), least=least)
        for field, names in (("optimizer", Optimizer), ("schedule", Schedule), ("loss", TrainingLoss)):
            if getattr(self, field) not in get_args(names):
                raise unknown_name(field, getattr(self, field), get_args(names))
        for field in ("lr", "drop_factor", "target_scale"):
            check_positive(field, getattr(self, field))
        check_momentum("momentum", self.momentum)
        check_nonnegative("weight_decay", self.weight_decay)
        check_number("floor", self.floor, lambda value: 0 <= value <= 1, "a number in [0, 1]")
        require(
            isinstance(self.drops, tuple) and (self.schedule != "drop" or len(self.drops) > 0),
            f"drops must be a tuple of parts of the run, such as (0.5,), got {self.drops!r}.",
        )
        for moment in self.drops:
            check_number("Each of drops", moment, lambda value: 0 < value < 1, "a number in (0, 1)")
        for field in ("restart", "centred"):
            require(
                isinstance(getattr(self, field), bool), f"{field} must be True or False, got {getattr(self, field)!r}."
            )
        require(
            isinstance(self.augment, bool | str),
            f"augment must be True, False or the name of an augmentation, got {self.augment!r}.",
        )

    def batches(self, points: int) -> Iterator[int]:
        """Sizes of the batches of one pass over `points`."""
        size = points if self.batch_size is None else min(self.batch_size, points)
        yield from [size] * (points // size)
        if self.epochs is not None and points % size:
            yield points % size

    def total_steps(self, points: int) -> int:
        """Optimiser steps that this protocol takes on so many points."""
        return self.steps if self.epochs is None else self.epochs * len(list(self.batches(points)))


def make_optimizer(protocol: Protocol, parameters: Any) -> torch.optim.Optimizer:
    """The optimiser that `protocol` names, over `parameters`."""
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
        )
    kind = torch.optim.AdamW if protocol.optimizer == "adamw" else torch.optim.Adam
    return aligned(kind(parameters, lr=protocol.lr, weight_decay=protocol.weight_decay, fused=True))


def learning_rate(protocol: Protocol, step: int, steps: int) -> float:
    """The learning rate of step `step` (0-based) of a run of `steps`."""
    if step < protocol.warmup:
        return protocol.lr * (step + 1) / protocol.warmup
    if protocol.schedule == "cosine":
        progress = (step - protocol.warmup) / max(1, steps - protocol.warmup)
        return protocol.lr * (protocol.floor + (1 - protocol.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if protocol.schedule == "drop":
        return protocol.lr * protocol.drop_factor ** _drops_before(protocol, step, steps)
    return protocol.lr


def _drops_before(protocol: Protocol, step: int, steps: int) -> int:
    # A drop belongs to the first step that lies wholly after it; the rounding keeps 502/1001 of 1001 steps at step 502.
    return sum(step >= math.ceil(round(moment * steps, 6)) for moment in protocol.drops)


class Centred(Learner):
    """A learner minus what it gave before training, as in the linearisation of wide networks; begins at zero everywhere."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.start = copy.deepcopy(learner).requires_grad_(False)
        self.head = learner.head

    def embed(self, inputs: Any) -> Tensor:
        """The learner's own features."""
        return self.learner.embed(inputs)

    def forward(self, inputs: Any) -> Tensor:
        """Outputs (n, c): the learner's now, minus those at the start."""
        outputs: Tensor = self.learner(inputs) - self.start(inputs)
        return outputs


def train(
    learner: Learner,
    batch: Batch,
    *,
    loss: Callable[[Tensor, Any], Tensor],
    protocol: Protocol,
    seed: int,
    augment: Callable[[Batch, int], Batch] | None = None,
    validate: Callable[[Predictor], float] | None = None,
    after_step: Callable[[int, Learner], None] | None = None,
) -> Learner:
    """Train `learner` in place on `batch` and return it in eval mode.

    Args:
        learner: a fresh learner.
        batch: all points; mini-batches are drawn by shuffled epochs.
        loss: of outputs and targets, a scalar.
        protocol: optimiser, steps, schedule, batch size.
        seed: of shuffling, augmentation and dropout.
        augment: used if `protocol.augment`; gets a batch and a seed.
        validate: a score, higher is better; with `protocol.validate_every` the best moment is kept (ties: the earliest).
        after_step: called with the number of finished steps and the learner.
    """
    batch = batch.detach()
    optimizer = make_optimizer(protocol, learner.parameters())
    sizes = list(protocol.batches(len(batch)))
    steps = protocol.total_steps(len(batch))
    best: tuple[float, dict[str, Tensor]] | None = None
    order = torch.empty(0, dtype=torch.int64)
    rng = generator(seed, "train")
    with isolated(seed):
        for step in range(steps):
            points, size = batch, sizes[step % len(sizes)]
            if size < len(batch):
                if step % len(sizes) == 0:
                    order = torch.randperm(len(batch), generator=rng)
                points, order = batch.take(order[:size].to(batch.groups.device)), order[size:]
            if augment is not None and protocol.augment:
                points = augment(points, int(torch.randint(2**31, (), generator=rng)))
            if protocol.restart and _drops_before(protocol, step, steps) > _drops_before(protocol, step - 1, steps):
                optimizer = make_optimizer(protocol, learner.parameters())
            learner.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(protocol, step, steps)
            learner.differentiate(points, loss)
            optimizer.step()
            learner.eval()
            if after_step is not None:
                after_step(step + 1, learner)
            due = protocol.validate_every and ((step + 1) % protocol.validate_every == 0 or step + 1 == steps)
            if validate is not None and due:
                with torch.no_grad():
                    score = validate(learner)
                if best is None or score > best[0]:
                    best = score, copy.deepcopy(learner.state_dict())
    if best is not None:
        learner.load_state_dict(best[1])
    return learner.eval()
