"""What image, text and graph have in common: points with a class, scored by accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Predictor
from datastill.backbones.chunks import parts_of
from datastill.backbones.losses import cross_entropy_slopes, sloped
from datastill.modalities.base import Batch, Modality, Split, Summary


class ClassificationModality(Modality):
    """A modality whose targets are class ids (n,) or class distributions (n, classes)."""

    @property
    def num_classes(self) -> int:
        """Classes, which are the groups."""
        return self.num_groups

    @abstractmethod
    def held_out(self, split: Split) -> Iterable[Batch]:
        """Batches of the real points of a held-out split, on `device` and in `dtype`."""

    @sloped(cross_entropy_slopes)
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy; targets may be distributions."""
        return F.cross_entropy(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each point, (n,)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def encode(self, targets: Tensor) -> Tensor:
        """One-hot vectors (or the distributions themselves) minus 1/classes, as in KIP (arXiv 2107.13034)."""
        if not targets.is_floating_point():
            targets = F.one_hot(targets, self.num_classes).to(self.dtype)
        return targets - 1.0 / self.num_classes

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors plus 1/classes: rows of sum one, if those of the vectors sum to zero."""
        return vectors + 1.0 / self.num_classes

    def trains_by_regression(self, targets: Tensor) -> bool:
        """Whether they are signed: cross-entropy has no lower bound where a weight is negative."""
        return targets.is_floating_point() and bool((targets < 0).any())

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the class of the largest output is that of the target."""
        return outputs.argmax(1) == (targets.argmax(1) if targets.is_floating_point() else targets)

    def check_split(self, split: Split) -> None:
        for _ in self.held_out(split):
            return

    @torch.no_grad()
    def score(self, predictor: Predictor, split: Split) -> dict[str, float]:
        """Accuracy on the held-out split, in [0, 1]."""
        right = total = 0
        for batch in (part for whole in self.held_out(split) for part in parts_of(predictor, whole, most=len(whole))):
            right += int((predictor(batch.inputs).argmax(1) == batch.targets).sum())
            total += len(batch)
        return {"accuracy": right / total}


class SoftLabelSummary(Summary):
    """A summary whose labels, where they are learned, are the softmax of `label_logits` (n, classes)."""

    label_logits: nn.Parameter | None

    @torch.no_grad()
    def relabel_(self, targets: Tensor) -> None:
        """Make the learned labels these distributions (n, classes), in place."""
        if self.label_logits is None:
            super().relabel_(targets)
        else:
            self.label_logits.copy_(targets.clamp(min=torch.finfo(targets.dtype).tiny).log())
