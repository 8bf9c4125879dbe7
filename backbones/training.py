"""Ordinary training of a finite learner on a batch of points: what a user of a data summary does with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from datastill.backbones.base import Learner, Predictor
from datastill.backbones.batch import Batch
from datastill.rng import generator, isolated


@dataclass(frozen=True)
class Protocol:
    """How a learner is trained in evaluation. Plain data, so that a table can state it.

    Attributes:
        steps: optimiser steps.
        optimizer: "adam", "adamw" or "sgd".
        lr: first learning rate.
        momentum: of "sgd".
        weight_decay: L2 penalty (decoupled for "adamw").
        batch_size: points a step; None takes all of them.
        schedule: "constant", "cosine" (to zero) or "drop" (a tenth for the second half).
        augment: whether the modality's augmentation is applied.
        validate_every: steps between validations that pick the best moment; None keeps the last step.
    """

    steps: int = 300
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int | None = 256
    schedule: Literal["constant", "cosine", "drop"] = "cosine"
    augment: bool = False
    validate_every: int | None = None


def make_optimizer(protocol: Protocol, parameters: Any) -> torch.optim.Optimizer:
    """The optimiser that `protocol` names, over `parameters`."""
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
        )
    kind = torch.optim.AdamW if protocol.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=protocol.lr, weight_decay=protocol.weight_decay)


def learning_rate(protocol: Protocol, step: int) -> float:
    """The learning rate of step `step` (0-based)."""
    if protocol.schedule == "cosine":
        return protocol.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / protocol.steps))))
    if protocol.schedule == "drop" and 2 * step >= protocol.steps:
        return 0.1 * protocol.lr
    return protocol.lr


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
    size = len(batch) if protocol.batch_size is None else min(protocol.batch_size, len(batch))
    best: tuple[float, dict[str, Tensor]] | None = None
    order = torch.empty(0, dtype=torch.int64)
    rng = generator(seed, "train")
    with isolated(seed):
        for step in range(protocol.steps):
            points = batch
            if size < len(batch):
                if len(order) < size:
                    order = torch.randperm(len(batch), generator=rng)
                points, order = batch.take(order[:size].to(batch.groups.device)), order[size:]
            if augment is not None and protocol.augment:
                points = augment(points, int(torch.randint(2**31, (), generator=rng)))
            learner.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(protocol, step)
            optimizer.zero_grad()
            loss(learner(points.inputs), points.targets).backward()
            optimizer.step()
            learner.eval()
            if after_step is not None:
                after_step(step + 1, learner)
            due = protocol.validate_every and ((step + 1) % protocol.validate_every == 0 or step + 1 == protocol.steps)
            if validate is not None and due:
                with torch.no_grad():
                    score = validate(learner)
                if best is None or score > best[0]:
                    best = score, copy.deepcopy(learner.state_dict())
    if best is not None:
        learner.load_state_dict(best[1])
    return learner.eval()
