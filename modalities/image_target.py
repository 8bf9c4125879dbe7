"""A target dataset of labelled images: its points, and the learners, kernels and augmentations that it has."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datastill import memory
from datastill.backbones.base import Kernel, Learner
from datastill.backbones.infinite_conv import convolutional_kernel, parse_kernel
from datastill.backbones.training import Protocol
from datastill.backbones.vision import build_network, parse_name
from datastill.errors import InputError, require, unknown_name
from datastill.modalities.augmentation import NO_FLIP, Augmentation
from datastill.modalities.base import Batch, Split
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.image_data import LabelledImages, labelled_images, require_hard, split_off
from datastill.modalities.image_protocols import PUBLISHED, STRATEGIES, named_augmentation
from datastill.modalities.image_protocols import strategy as apply_strategy
from datastill.modalities.image_scale import PixelScale, blocks_of

_CHUNK = 1024  # held-out images a batch, at most
_COPIES = 4  # of a batch in float32, on the way from images as stored to normalised ones


class ImageTarget(ClassificationModality):
    """Labelled images of one size, and what learns from them; `ImageModality` has the summaries.

    Learners are "convnet" (`ConvNet` with instance norm, depth by image size) and "mlp", and beside them "lenet", "alexnet",
    "vgg11" and "resnet18". Names may carry options (`backbones.vision.parse_name`): "convnet-d3-w128",
    "convnet-w32-none-maxpool", "mlp-d1-w256", "resnet18-bn".

    The kernels "ntk" and "nngp" see flattened pixels. "cntk" and "cnngp" are those of convolutional networks, whose last maps are
    flattened; with "-avgpool" they are pooled in every block, and with "-gap" averaged at the end. These names may carry a depth
    and a first convolution more, "cntk-d3-avgpool-stem" (`backbones.infinite_conv.convolutional_kernel`).

    Args:
        data: the training images: a tensor or array (n, h, w) or (n, c, h, w) with `labels`, a pair (images, labels),
            any `Dataset` of (image, label), or the path of a folder with one subfolder a class.
        labels: class ids 0, 1, ... without gaps, for a tensor or an array.
        validation: what summaries are selected on: a fraction of `data` in (0, 1), held out and stratified by class;
            a dataset like `data`; or None for a tenth, at most 5000 images.
        test: a dataset like `data`, seen by `score(..., "test")` only.
        value_range: (low, high) of valid pixels. None takes (0, 255) for uint8, (0, 1) for floats that lie there,
            else the range of the training pixels.
        augmentation: what `augment` may do, as a string such as "color_crop_flip", "none", or an `Augmentation`. The
            default leaves out mirroring, which is wrong for digits and letters; `augmentation.NATURAL` has it.
        seed: of the validation split.

    Raises:
        InputError: for data or arguments that are not as said above.
    """

    learners = ("convnet", "mlp")
    further = ("lenet", "alexnet", "vgg11", "resnet18")
    kernels = ("ntk", "nngp", *(f"{kind}{pool}" for pool in ("", "-avgpool", "-gap") for kind in ("cntk", "cnngp")))
    published = PUBLISHED

    def __init__(
        self,
        data: Any,
        labels: Any = None,
        *,
        validation: Any = None,
        test: Any = None,
        value_range: tuple[float, float] | None = None,
        augmentation: str | Augmentation = NO_FLIP,
        seed: int = 0,
    ) -> None:
        self.augmentation = augmentation if isinstance(augmentation, Augmentation) else Augmentation.parse(augmentation)
        given = labelled_images(data, labels)
        classes = require_hard(given, "data")
        self.class_names = given.class_names or tuple(str(number) for number in range(classes))
        self._held: dict[Split, LabelledImages] = {}
        if validation is None or isinstance(validation, float | int):
            given, self._held["validation"] = split_off(given, validation, seed=seed)
        self._train = given
        self._members = [(given.labels == group).nonzero().flatten() for group in range(classes)]
        self._order = torch.cat(self._members)
        self.scale = PixelScale.of(given.images, value_range)
        if "validation" not in self._held:
            self._held["validation"] = self._like_training(labelled_images(validation, name="validation"), "validation")
        if test is not None:
            self._held["test"] = self._like_training(labelled_images(test, name="test"), "test")

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self._train.images.shape[1:]
        return channels, height, width

    @property
    def group_sizes(self) -> list[int]:
        """Training images of each class."""
        return [len(members) for members in self._members]

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        picked = []
        for group in groups:
            members = self._members[group]
            if size is not None:
                members = members[torch.randperm(len(members), generator=rng)[:size]]
            picked.append(members)
        return self._batch(self._train.at(torch.cat(picked)))

    def held_out(self, split: Split) -> Iterator[Batch]:
        """Batches of the held-out images.

        Raises:
            InputError: for the test split, if no test set was given.
        """
        if split not in self._held:
            raise InputError(f"There is no {split} set: give one to ImageModality with the {split} argument.")
        held = self._held[split]
        size = memory.chunk(4 * _COPIES * math.prod(self.shape), most=_CHUNK)
        for index in torch.arange(len(held)).split(size):
            yield self._batch(held.at(index)).to(self.device, self.dtype)

    def fingerprint(self) -> str:
        """Digest of the training and validation images as stored, and of their labels."""
        digest = hashlib.sha256(repr((self.shape, self.num_classes)).encode())
        for part in (self._train, self._held["validation"]):
            digest.update(f"{part.images.dtype}{len(part)}".encode())
            for chunk in blocks_of(part.images):
                digest.update(chunk.numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
        return digest.hexdigest()

    def identity(self) -> dict[str, str]:
        return {"augmentation": repr(self.augmentation)}

    # --- learners and kernels -----------------------------------------------------------------------------------------

    def knows(self, name: str) -> bool:
        return self.is_kernel(name) or parse_name(name) is not None

    def is_kernel(self, name: str) -> bool:
        return name in self.kernels or parse_kernel(name) is not None

    def kernel(self, name: str = "ntk", *, depth: int | None = None) -> Kernel:
        """The infinite-width network on these images; a convolutional one has by default as many blocks as suit their size."""
        return convolutional_kernel(name, self.shape, depth) or super().kernel(name, depth=depth)

    def build(self, name: str) -> Learner:
        if parse_name(name) is None:
            raise unknown_name("image learner", name, (*self.learners, *self.further))
        return build_network(name, self.shape, self.num_classes)

    def protocol(self, learner: str) -> Protocol:
        """300 steps of Adam with a cosine schedule, images augmented, whatever the number of images: a summary's score takes as
        long as that of the full data, of which tens of thousands would gain by a longer training."""
        return Protocol(steps=300, lr=1e-3 if learner.startswith("mlp") else 3e-3, augment=True)

    def vectors(self, inputs: Tensor) -> Tensor:
        """Flattened images."""
        return inputs.flatten(1)

    def augment(self, batch: Batch, seed: int) -> Batch:
        """One operation with one parameter for the whole batch, both decided by `seed` alone."""
        return Batch(self.augmentation(batch.inputs, seed), batch.targets, batch.groups)

    def augment_each(self, batch: Batch, seed: int) -> Batch:
        """One operation for the whole batch with a parameter for each image."""
        return Batch(self.augmentation(batch.inputs, seed, siamese=False), batch.targets, batch.groups)

    def augmenter(self, strategy: bool | str) -> Callable[[Batch, int], Batch]:
        """The augmentation of a paper by name (`image_protocols.STRATEGIES`); True is `augment_each`.

        None mirrors images unless the modality's own augmentation has "flip".
        """
        if not isinstance(strategy, str):
            return super().augmenter(strategy)
        self._named(strategy)
        flip = "flip" in self.augmentation.operations
        return lambda batch, seed: apply_strategy(strategy, batch, seed, flip=flip, classes=self.num_classes)

    def group_augmenter(self, strategy: bool | str) -> Callable[[Batch, Mapping[int, int]], Batch]:
        """As every modality's, with the names that `augmenter` has; no images are mixed."""
        chosen = self._named(strategy) if isinstance(strategy, str) else self.augmentation

        def augment(batch: Batch, seeds: Mapping[int, int]) -> Batch:
            order, sizes = batch.in_blocks(list(seeds))
            batch = batch if order is None else batch.take(order)
            owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(batch.groups.device)
            return Batch(chosen.by_group(batch.inputs, owners, list(seeds.values())), batch.targets, batch.groups)

        return augment

    def _named(self, strategy: str) -> Augmentation:
        if strategy not in STRATEGIES:
            raise unknown_name("augmentation strategy", strategy, STRATEGIES)
        return named_augmentation(strategy, flip="flip" in self.augmentation.operations)

    def mirrored(self, batch: Batch) -> Batch:
        """Images and their mirror images, if the modality's augmentation has "flip"."""
        if "flip" not in self.augmentation.operations:
            return batch
        both = (batch.inputs, batch.inputs.flip(3)), (batch.targets,) * 2, (batch.groups,) * 2
        return Batch(*(torch.cat(pair) for pair in both))

    # --- internals ----------------------------------------------------------------------------------------------------

    def _batch(self, part: LabelledImages) -> Batch:
        groups = part.labels.argmax(1) if part.labels.is_floating_point() else part.labels
        return Batch(self.scale.normalise(part.images), part.labels, groups)

    def _pick(self, group: int, count: int, rng: torch.Generator) -> Tensor:
        members = self._members[group]
        return members[torch.randperm(len(members), generator=rng)[:count]]

    def _like_training(self, given: LabelledImages, name: str, *, soft: bool = False) -> LabelledImages:
        """`given`, checked against the training images, and in their scale."""
        if not soft or not given.labels.is_floating_point():
            require_hard(given, name, self.num_classes)
        elif given.labels.shape[1] != self.num_classes:
            raise InputError(
                f"The labels of {name} must have one weight for each of the {self.num_classes} classes, "
                f"got {given.labels.shape[1]}."
            )
        shape = tuple(given.images.shape[1:])
        require(
            shape == self.shape, f"The images of {name} must have the training images' shape {self.shape}, got {shape}."
        )
        ours, theirs = self._train.images.dtype, given.images.dtype
        if ours == theirs or ours == torch.uint8:
            in_bytes = ours != torch.uint8 or theirs == torch.uint8 or float(given.images.max()) > 1
            require(
                in_bytes or self.scale.high <= 1,
                f"The images of {name} are floats of at most {float(given.images.max()):g}, the training images uint8 up to "
                f"{self.scale.high:g}, so they seem to be of another scale: multiply them by 255, or give all as floats.",
            )
            return given
        if given.eight_bit_file:
            return LabelledImages(self.scale.from_eight_bit(given.images), given.labels, given.class_names)
        raise InputError(
            f"The images of {name} are {theirs} but the training images {ours}, so their scale is not known: convert them to "
            f"floats between {self.scale.low:g} and {self.scale.high:g}."
        )
