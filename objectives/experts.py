"""Expert trajectories: parameters of networks on their way through training on the target dataset, stored for matching."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor

from datastill.backbones.base import Learner
from datastill.backbones.training import Protocol, train
from datastill.bundle import DATA
from datastill.modalities.base import Modality
from datastill.objectives.shelf import digest_of, shelved
from datastill.rng import fork, generator


@dataclass(frozen=True)
class ExpertPlan:
    """How experts are trained, and how many.

    Attributes:
        learner: name of the learner; None takes the modality's default.
        count: experts.
        snapshots: parameter vectors stored after the initial one.
        interval: optimiser steps between two snapshots; None is one pass over the target dataset.
        batch_size: real points a step; None takes all of them.
        optimizer: "sgd" or "adam".
        lr: its learning rate, constant.
        momentum: of "sgd".
        weight_decay: L2 penalty.
        augment: whether training uses the modality's augmentation.
    """

    learner: str | None
    count: int
    snapshots: int
    interval: int | None
    batch_size: int | None
    optimizer: Literal["sgd", "adam"]
    lr: float
    momentum: float
    weight_decay: float
    augment: bool


def flatten_parameters(net: Learner) -> Tensor:
    """All parameters as one vector, on the CPU."""
    return torch.cat([value.detach().flatten().cpu() for value in net.parameters()])


def split_parameters(vector: Tensor, like: Learner) -> dict[str, Tensor]:
    """The inverse of `flatten_parameters`, with the names, shapes and device of `like`."""
    named = dict(like.named_parameters())
    first = next(iter(named.values()))
    pieces = vector.to(first.device).split([value.numel() for value in named.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(named.items(), pieces)}


def train_expert(modality: Modality, plan: ExpertPlan, seed: int) -> Tensor:
    """One trajectory, (snapshots + 1, parameters)."""
    rng = generator(seed, "expert")
    net = modality.learner(plan.learner, rng=rng)
    real = modality.real()
    points = len(real)
    size = points if plan.batch_size is None else min(plan.batch_size, points)
    interval = plan.interval or -(-points // size)
    path = [flatten_parameters(net)]

    def snapshot(step: int, learner: Learner) -> None:
        if step % interval == 0:
            path.append(flatten_parameters(learner))

    protocol = Protocol(
        steps=interval * plan.snapshots,
        optimizer=plan.optimizer,
        lr=plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        batch_size=size,
        schedule="constant",
        augment=plan.augment,
    )
    train(
        net,
        real,
        loss=modality.loss,
        protocol=protocol,
        seed=fork(rng),
        augment=modality.augment_each,
        after_step=snapshot,
    )
    return torch.stack(path)


class ExpertBuffer:
    """Trajectories by number, trained when first asked for.

    With a folder, each is a shard on disk, a safetensors file of which only the snapshots that are asked for are read (through a
    memory map); without one, they are in memory. A trajectory is a function of the target dataset, the seed, its number and the
    plan alone, so that what a crash took is simply trained again, and runs with equal plans and seeds can share a folder.

    Args:
        modality: the target dataset.
        plan: of the training.
        seed: of all experts.
        folder: where shards are kept, in a subfolder for these data, this plan and this seed; None keeps them in memory.
    """

    def __init__(self, modality: Modality, plan: ExpertPlan, seed: int, folder: Path | None) -> None:
        self.modality = modality
        self.plan = plan
        self.seed = seed
        self.identity = {
            "plan": asdict(plan),
            "seed": seed,
            "target": modality.fingerprint(),
            **modality.identity(),
            "dtype": str(modality.dtype),
        }
        self.folder = None if folder is None else folder / digest_of(self.identity)
        self._kept: dict[int, Tensor] = {}
        self._checked: set[int] = set()

    def snapshot(self, number: int, position: int) -> Tensor:
        """Parameters (p,) of expert `number` at snapshot `position`, 0 being its initial ones, on the CPU."""
        if self.folder is None:
            if number not in self._kept:
                self._kept[number] = self._train(number)
            return self._kept[number][position]
        shard = self.folder / f"expert-{number:04d}"
        if number not in self._checked:
            shelved(shard, self.identity, lambda: {"trajectory": self._train(number)}, read=False)
            self._checked.add(number)
        with safetensors.safe_open(shard / DATA, framework="pt") as file:
            row: Tensor = file.get_slice("trajectory")[position : position + 1]
        return row.squeeze(0)

    def _train(self, number: int) -> Tensor:
        return train_expert(self.modality, self.plan, seed=fork(generator(self.seed, "expert", number)))
