"""The smallest honest modality: points in a plane-like space, in classes. Objectives are checked on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datastill.backbones.base import Learner
from datastill.backbones.mlp import MLP
from datastill.backbones.training import Protocol
from datastill.errors import require, unknown_name
from datastill.modalities.base import Batch, Size, Split, Summary
from datastill.modalities.classification import ClassificationModality
from datastill.rng import generator


class ToySummary(Summary):
    """Vectors as free parameters, with fixed classes."""

    def __init__(self, points: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(points.clone())
        self.register_buffer("labels", labels.clone())

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        labels = self.get_buffer("labels")
        return Batch(self.points, labels, labels)

    def export(self) -> tuple[Tensor, Tensor]:
        return self.points.detach().cpu().clone(), self.get_buffer("labels").cpu().clone()

    @property
    def num_points(self) -> int:
        return len(self.points)


class ToyModality(ClassificationModality):
    """Gaussian clouds, one for each of `classes`, in `width` dimensions.

    Args:
        classes: at least 2.
        width: dimensions.
        points: training points a class; as many again are held out for validation and for test.
        seed: of the clouds.
    """

    kind = "toy"
    learners = ("mlp", "linear")

    def __init__(self, classes: int = 3, width: int = 5, points: int = 20, seed: int = 0) -> None:
        rng = generator(seed, "toy")
        centres = 1.5 * torch.randn(classes, width, generator=rng)
        labels = torch.arange(classes).repeat_interleave(points)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        for split in ("train", "validation", "test"):
            self._splits[split] = (centres[labels] + torch.randn(len(labels), width, generator=rng), labels)

    @property
    def group_sizes(self) -> list[int]:
        return torch.bincount(self._splits["train"][1]).tolist()

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        points, labels = self._splits["train"]
        picked = []
        for group in groups:
            members = (labels == group).nonzero().squeeze(1)
            picked.append(members if size is None else members[torch.randperm(len(members), generator=rng)[:size]])
        index = torch.cat(picked)
        return Batch(points[index], labels[index], labels[index])

    def held_out(self, split: Split) -> Iterator[Batch]:
        points, labels = self._splits[split]
        yield Batch(points, labels, labels).to(self.device, self.dtype)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(points.numpy().tobytes() for points, _ in self._splits.values())).hexdigest()

    def build(self, name: str) -> Learner:
        width = self._splits["train"][0].shape[1]
        return MLP(width, self.num_groups, depth=1 if name == "mlp" else 0, width=16)

    def vectors(self, inputs: Tensor) -> Tensor:
        return inputs

    def protocol(self, learner: str) -> Protocol:
        return Protocol(steps=100, lr=0.02, batch_size=None)

    def summary(
        self, counts: Sequence[int], *, rng: torch.Generator, init: str | Tensor = "real", **options: Any
    ) -> ToySummary:
        require(not options, f"The toy summary has no options, got {', '.join(options)}.")
        labels = torch.arange(self.num_groups).repeat_interleave(torch.tensor(counts))
        if not isinstance(init, str):
            points = self.pick(self.check_chosen(init, counts))[0]
        elif init == "real":
            points = self.subset(counts, rng=rng)[0]
        elif init == "noise":
            points = torch.randn(len(labels), self._splits["train"][0].shape[1], generator=rng)
        else:
            raise unknown_name("init", init, ("real", "noise"))
        return ToySummary(points.to(self.device, self.dtype), labels.to(self.device))

    def read(self, dataset: tuple[Tensor, Tensor]) -> Batch:
        points, labels = dataset
        return Batch(points, labels, labels).to(self.device, self.dtype)

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor]:
        points, labels = self._splits["train"]
        return points[index], labels[index]

    def size(self, dataset: tuple[Tensor, Tensor]) -> Size:
        return Size(len(dataset[0]), sum(part.numel() * part.element_size() for part in dataset))

    def full_size(self) -> Size:
        return self.size(self._splits["train"])

    @staticmethod
    def pack(dataset: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"points": dataset[0], "labels": dataset[1]}, {}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return tensors["points"], tensors["labels"]
