"""The summary of an image dataset: stored pixels as parameters, and soft labels where they are learned."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from datastill.modalities.base import Batch, Summary
from datastill.modalities.image_files import write_folder, write_grid
from datastill.modalities.image_scale import PixelScale
from datastill.modalities.image_storage import Storage


class ImageSummary(Summary):
    """Synthetic images (n, c, h, w), normalised as the modality's learners read them.

    Args:
        storage: of the pixels, normalised.
        groups: (n,) the class of each image.
        labels: (n, classes) first values of the soft labels; None keeps the classes as labels.
        scale: of the pixels, by which they are exported.
        clamp: whether pixels are kept in the valid range after every step.
        eight_bit: whether the target dataset is uint8. Clamped pixels are then exported as uint8 too, and
            `read(export())` equals the summary up to rounding to one of 256 levels.
        class_names: of all classes.
    """

    def __init__(
        self,
        storage: Storage,
        groups: Tensor,
        labels: Tensor | None,
        *,
        scale: PixelScale,
        clamp: bool,
        eight_bit: bool,
        class_names: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.storage = storage
        self.labels = None if labels is None else nn.Parameter(labels.clone())
        self.groups: Tensor
        self.register_buffer("groups", groups.clone())
        # The plain images hold what is stored, up to the clamping of decoded pixels, but take more bytes.
        self.exact_export = not storage.compact
        self.scale = scale
        self.clamp = clamp
        self.eight_bit = eight_bit and clamp
        self.class_names = class_names
        self.project_()

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """All images; targets are class ids (n,), or distributions (n, classes) where labels are learned."""
        return Batch(self.storage(), self.groups if self.labels is None else self.labels, self.groups)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp stored pixels to the valid range, and put each soft label on the simplex of distributions."""
        if self.clamp:
            self.storage.clamp_(*self.scale.bounds(next(self.storage.parameters())))
        if self.labels is not None:
            self.labels.copy_(nearest_distributions(self.labels))

    @torch.no_grad()
    def relabel_(self, targets: Tensor) -> None:
        """Make the learned labels these distributions (n, classes), in place."""
        if self.labels is None:
            super().relabel_(targets)
        else:
            self.labels.copy_(targets)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """ "points" are the stored pixels, "labels" the soft labels if they are learned."""
        groups = {"points": list(self.storage.parameters())}
        return groups if self.labels is None else {**groups, "labels": [self.labels]}

    @torch.no_grad()
    def export(self) -> TensorDataset:
        """Images (n, c, h, w) in the input's scale and their labels: int64 class ids or float32 distributions.

        The images are uint8 if the target dataset is and pixels are kept in the valid range, else float32.
        """
        images = self.scale.restore(self.storage().detach().cpu().float())
        if self.clamp:  # again, since undoing the normalisation rounds
            images = images.clamp(self.scale.low, self.scale.high)
        if self.eight_bit:
            images = images.round().to(torch.uint8)
        labels = self.groups if self.labels is None else self.labels.detach().float()
        return TensorDataset(images, labels.cpu().clone())

    @property
    def num_points(self) -> int:
        """How many images."""
        return len(self.groups)

    def to_image_folder(self, path: str | Path) -> None:
        """Write PNG files, one folder a class, and `labels.csv` with the weight of every class.

        PNG has 256 levels a channel: the valid range is mapped to 0..255. `modality.read(path)` maps it back.
        """
        pixels, labels = self._for_files()
        write_folder(path, pixels, labels, self.class_names)

    def to_grid(self, path: str | Path, *, columns: int | None = None) -> None:
        """Write all images as one PNG, by default a class a row where classes are of equal size, else ten images a row.

        Args:
            path: of the file.
            columns: images in a row.
        """
        sizes = self.groups.bincount()
        equal = bool((sizes == sizes[0]).all()) and 1 < int(sizes[0]) <= 50
        write_grid(
            path, self._for_files()[0], columns=columns or (int(sizes[0]) if equal else min(10, len(self.groups)))
        )

    def _for_files(self) -> tuple[Tensor, Tensor]:
        images, labels = self.export().tensors
        return self.scale.eight_bit(images), labels


def nearest_distributions(rows: Tensor) -> Tensor:
    """The Euclidean projection of each row (n, c) onto the simplex (Held, Wolfe & Crowder 1974)."""
    ordered = rows.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    rank = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    support = (ordered * rank > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (rows - threshold).clamp(min=0)
