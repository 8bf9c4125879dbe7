"""The summary of an image dataset: stored pixels as parameters, and soft labels where they are learned."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from datastill.backbones.simplex import nearest_distributions, nearest_sums_of_one
from datastill.modalities.base import Batch, Summary
from datastill.modalities.codec import Codec
from datastill.modalities.image_files import write_folder, write_grid
from datastill.modalities.image_scale import PixelScale
from datastill.modalities.image_storage import Storage
from datastill.modalities.image_stored import decode_images, decoded, encode_images, label_codec, native_images
from datastill.modalities.image_styles import StyleAdversary


class ImageSummary(Summary):
    """Synthetic images (n, c, h, w), normalised as the modality's learners read them.

    Args:
        storage: of the pixels, normalised.
        groups: (n,) the class of each image.
        labels: (n, classes) first values of the learned labels; None keeps the classes as labels.
        scale: of the pixels, by which they are exported.
        clamp: whether pixels are kept in the valid range after every step.
        eight_bit: whether the target dataset is uint8. Clamped pixels are then exported as uint8 too, and
            `read(export())` equals the summary up to rounding to one of 256 levels.
        class_names: of all classes.
        codec: by which the storage's numbers and soft labels are stored; the images are then those after that rounding. None
            stores them in full.
        storage_name: of the storage, in `image_storages.STORAGES`.
        signed_labels: whether the learned labels need not be distributions: their sums are one, but they may be of either sign.
        adversary: whose penalty on styles of one base is added to any objective (HaBa); None if there is none.

    What is stored factorised or by a codec is exported as `StoredImages`, which hold the bytes that they are decoded from, and
    `nbytes` is the number of these.
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
        codec: Codec | None = None,
        storage_name: str = "pixels",
        signed_labels: bool = False,
        adversary: StyleAdversary | None = None,
    ) -> None:
        super().__init__()
        self.storage = storage
        self.storage_name = storage_name
        self.codec = codec
        self.adversary = adversary
        self.signed_labels = signed_labels
        self.labels = None if labels is None else nn.Parameter(labels.clone())
        self.groups: Tensor
        self.register_buffer("groups", groups.clone())
        # Decoded pixels may lie outside the valid range; what is exported does not.
        self.exact_export = not storage.compact
        self.coded = storage.compact or codec is not None
        self.versions = storage.versions
        self.folds = storage.folds
        self.scale = scale
        self.clamp = clamp
        self.eight_bit = eight_bit and clamp
        self.class_names = class_names
        self.project_()

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """All images; targets are class ids (n,), or distributions (n, classes) where labels are learned."""
        labels = (
            self.labels if self.codec is None or self.labels is None else label_codec(self.codec).through(self.labels)
        )
        return Batch(self._pixels(), self.groups if labels is None else labels, self.groups)

    def penalty(self) -> Tensor | None:
        return None if self.adversary is None else self.adversary.penalty(self._pixels(), self.groups)

    def _pixels(self) -> Tensor:
        pixels = decoded(self.storage, self.codec)
        if self.codec is None or self.storage.compact or not self.clamp:
            return pixels
        # The least value of a block is rounded too, so that it may lie a little outside the valid range.
        inside = self.scale.clamp(pixels.detach())
        return inside + (pixels - pixels.detach())

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp stored pixels to the valid range, and make each learned label a distribution, or of sum one if it is signed."""
        if self.clamp:
            self.storage.clamp_(self.scale)
        if self.labels is not None:
            self.labels.copy_((nearest_sums_of_one if self.signed_labels else nearest_distributions)(self.labels))

    @torch.no_grad()
    def relabel_(self, targets: Tensor) -> None:
        """Make the learned labels these (n, classes), in place: distributions, or rows of sum one where labels are signed."""
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

        The images are uint8 if the target dataset is and pixels are kept in the valid range, else float32. They are
        `StoredImages` if they are stored factorised or by a codec.
        """
        if self.coded:
            return decode_images(self.encoded())
        images = native_images(self.storage(), self.scale, clamp=self.clamp, eight_bit=self.eight_bit)
        labels = self.groups if self.labels is None else self.labels.detach().float()
        return TensorDataset(images, labels.cpu().clone())

    def encoded(self) -> bytes:
        """What `StoredImages.coded` is of this summary."""
        images = self.storage()
        return encode_images(
            self.storage_name,
            self.storage,
            self.codec or Codec("float32"),
            torch.bincount(self.groups, minlength=len(self.class_names)).tolist(),
            self.labels,
            self.scale,
            shape=tuple(images.shape[1:]),
            clamp=self.clamp,
            eight_bit=self.eight_bit,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored: coded if it is, else of all parameters, those that the export folds into pixels included."""
        return len(self.encoded()) if self.coded else super().nbytes

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
