"""Expert trajectories: parameters of networks on their way through training on the target dataset, stored for matching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datastill.backbones.base import Learner
from datastill.backbones.training import Protocol, train
from datastill.bundle import read_bundle, write_bundle
from datastill.errors import ArtifactError
from datastill.modalities.base import Modality
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
        lr: learning rate of plain SGD.
        momentum: of that SGD.
        augment: whether training uses the modality's augmentation.
    """

    learner: str | None
    count: int
    snapshots: int
    interval: int | None
    batch_size: int | None
    lr: float
    momentum: float
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
        optimizer="sgd",
        lr=plan.lr,
        momentum=plan.momentum,
        batch_size=size,
        schedule="constant",
        augment=plan.augment,
    )
    train(
        net, real, loss=modality.loss, protocol=protocol, seed=fork(rng), augment=modality.augment, after_step=snapshot
    )
    return torch.stack(path)


class ExpertBuffer:
    """Trajectories by number, trained when first asked for; on disk if a folder is given, else in memory.

    A trajectory is a function of the seed, its number and the plan alone, so what a crash took is simply trained again.
    """

    def __init__(self, modality: Modality, plan: ExpertPlan, seed: int, folder: Path | None) -> None:
        self.modality = modality
        self.plan = plan
        self.seed = seed
        self.folder = folder
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """Trajectory `number`, (snapshots + 1, parameters), on the CPU."""
        if number not in self._kept:
            self._kept[number] = self._load(number)
        return self._kept[number]

    def _load(self, number: int) -> Tensor:
        identity = {
            "plan": self.plan.__dict__,
            "seed": self.seed,
            "number": number,
            "target": self.modality.fingerprint(),
            "dtype": str(self.modality.dtype),
        }
        path = None if self.folder is None else self.folder / f"expert-{number:04d}"
        if path is not None and path.exists():
            try:
                tensors, meta = read_bundle(path)
                if meta.get("identity") == identity:
                    return tensors["trajectory"]
            except ArtifactError:
                pass  # damaged by a crash: trained again below
        trajectory = train_expert(self.modality, self.plan, seed=fork(generator(self.seed, "expert", number)))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bundle(path, {"trajectory": trajectory}, {"identity": identity})
        return trajectory
