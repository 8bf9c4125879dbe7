"""Images with labels from whatever holds them: tensors, arrays, any torch `Dataset`, a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from datastill.errors import InputError, require
from datastill.modalities.image_files import eight_bits, read_folder
from datastill.rng import generator, isolated

VALIDATION_FRACTION = 0.1
VALIDATION_CAP = 5000
_SHAPES = "(n, channels, height, width) or, for grey images, (n, height, width)"


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels, checked, on the CPU.

    Attributes:
        images: (n, channels, height, width), uint8 or float32, in the scale in which they came.
        labels: (n,) int64 class ids, or (n, classes) float32 rows of sum one (a summary with soft or signed labels).
        class_names: the names of the classes where the source has them.
        eight_bit_file: whether the images were read from files of 8 bits a channel rather than handed over in memory.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...] | None = None
    eight_bit_file: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def at(self, index: Tensor) -> LabelledImages:
        """The images at `index`, in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])


def labelled_images(data: Any, labels: Any = None, *, name: str = "data") -> LabelledImages:
    """Collect `data` in memory, without changing it.

    Args:
        data: a tensor or array of images (then `labels` are needed); a pair (images, labels); a `Dataset` of (image,
            label) with PIL images, tensors (channels first) or arrays (channels last); or the path of a folder
            (`read_folder`).
        labels: class ids from 0 for a tensor or an array.
        name: of the argument, for error messages.

    Raises:
        InputError: for anything else, mismatched lengths, images of different sizes, NaN or infinite pixels.
    """
    if isinstance(data, LabelledImages):
        return data
    if isinstance(data, str | Path):
        require(labels is None, f"{name} is a folder, which has its own labels: leave out the labels argument.")
        return LabelledImages(*read_folder(data), eight_bit_file=True)
    if isinstance(data, Tensor | np.ndarray):
        require(labels is not None, f"{name} is a bare array of images: give the class ids as labels.")
        return _checked(data, labels, name)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in data):
        require(labels is None, f"{name} already brings labels: leave out the labels argument.")
        return _checked(data[0], data[1], name)
    require(
        labels is None or not isinstance(data, list),
        f"{name} with labels must be a tensor or an array of images, got a list: stack them, as by numpy.stack or torch.stack.",
    )
    require(labels is None, f"{name} already brings labels: leave out the labels argument.")
    if isinstance(data, TensorDataset):
        require(
            len(data.tensors) == 2,
            f"{name} must be a TensorDataset of images and labels, got {len(data.tensors)} tensors.",
        )
        return _checked(data.tensors[0], data.tensors[1], name)
    return _from_dataset(data, name)


def _from_dataset(dataset: Any, name: str) -> LabelledImages:
    readable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not readable or isinstance(dataset, Mapping | str | bytes):
        raise InputError(
            f"{name} must be a tensor of images, a Dataset of (image, label) with a length, or a folder; "
            f"got {type(dataset).__name__}."
        )
    require(len(dataset) > 0, f"{name} is empty: it needs at least one image of each class.")
    images: Tensor | None = None
    labels: list[Any] = []
    with isolated(0):  # a transform that draws at random would otherwise move the caller's generators
        for index in range(len(dataset)):
            item = dataset[index]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise InputError(f"{name}[{index}] must be a pair (image, label), got {type(item).__name__}.")
            image = _one_image(item[0], f"{name}[{index}]")
            if images is None:
                images = torch.empty((len(dataset), *image.shape), dtype=image.dtype)
            if image.shape != images.shape[1:] or image.dtype != images.dtype:
                raise InputError(
                    f"All images of {name} must have one shape and type: image {index} is {tuple(image.shape)} {image.dtype}, "
                    f"the first one {tuple(images.shape[1:])} {images.dtype}. Add a transform that resizes them."
                )
            images[index] = image
            labels.append(item[1])
    assert images is not None
    rows = [_label_tensor(label, name) for label in labels]
    if any(row.shape != rows[0].shape for row in rows):
        raise InputError(f"The labels of {name} differ in shape; each must be one class id.")
    names = getattr(dataset, "classes", None)
    named = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(item, str) for item in names)
    return replace(
        _checked(images, torch.stack(rows), name), class_names=tuple(names or ()) if named and names else None
    )


def _one_image(image: Any, name: str) -> Tensor:
    """(channels, height, width), uint8 or floating, of one PIL image, tensor or array."""
    if hasattr(image, "convert") and hasattr(image, "mode"):  # PIL, which is not imported for this
        image = eight_bits(image, name)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image))  # a copy, since the array may be read-only
        image = image.movedim(-1, 0) if image.ndim == 3 else image
    if not isinstance(image, Tensor):
        raise InputError(f"{name} must hold a PIL image, a tensor or an array, got {type(image).__name__}.")
    image = image.unsqueeze(0) if image.ndim == 2 else image
    require(image.ndim == 3, f"{name} must have shape (channels, height, width), got {tuple(image.shape)}.")
    return image


def _tensor(values: Any, wanted: str) -> Tensor:
    """Numbers on the CPU, without a graph; `wanted` says what they must be.

    An array that is read-only, runs backwards or has the bytes of another processor is copied, as PyTorch takes none of these.
    """
    try:
        if isinstance(values, np.ndarray):
            values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.writeable)
            values = np.ascontiguousarray(values) if any(step < 0 for step in values.strides) else values
        return torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InputError(f"{wanted}, got {kind}.") from error


def _label_tensor(labels: Any, name: str) -> Tensor:
    return _tensor(
        labels,
        f"The labels of {name} must be class ids 0, 1, ... (number the names of classes, as in "
        "[names.index(label) for label in labels])",
    )


def _checked(images: Any, labels: Any, name: str) -> LabelledImages:
    images, labels = _tensor(images, f"The images of {name} must be numbers"), _label_tensor(labels, name)
    require(
        labels.ndim > 0, f"The labels of {name} must be one class id for each image, got the single number {labels}."
    )
    require(images.ndim in (3, 4), f"The images of {name} must have shape {_SHAPES}, got {tuple(images.shape)}.")
    images = images.unsqueeze(1) if images.ndim == 3 else images
    if images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        raise InputError(
            f"The images of {name} seem to have channels last, {tuple(images.shape)}: give {_SHAPES}, "
            "for example with permute(0, 3, 1, 2) or transpose(0, 3, 1, 2)."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"The images of {name} must be uint8 or floating, got {images.dtype}: convert them first.")
    require(min(images.shape) > 0, f"{name} is empty: it has shape {tuple(images.shape)}.")
    if images.is_floating_point():
        images = images.to(torch.float32)
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            raise InputError(
                f"{name} has NaN or infinite pixels in {len(bad)} images, first in image {int(bad[0])}: repair or drop them."
            )
    if len(labels) != len(images):
        raise InputError(f"{name} has {len(images)} images but {len(labels)} labels: they must be of equal number.")
    if labels.is_floating_point():
        # Signed rows are targets of regression, which some methods learn; rounding grows with their size.
        soft = labels.ndim == 2 and bool(((labels.sum(1) - 1).abs() < 1e-3 * labels.abs().sum(1).clamp(min=1)).all())
        require(
            soft, f"The labels of {name} must be class ids (integers), or rows of class probabilities that sum to 1."
        )
        labels = labels.to(torch.float32)
    else:
        require(
            labels.ndim == 1 and labels.dtype != torch.bool,
            f"The labels of {name} must be class ids of shape (n,), got {tuple(labels.shape)} {labels.dtype}.",
        )
        labels = labels.to(torch.int64)
        require(int(labels.min()) >= 0, f"The labels of {name} must be class ids from 0, got {int(labels.min())}.")
    return LabelledImages(images, labels)


def require_hard(data: LabelledImages, name: str, classes: int | None = None) -> int:
    """Check that labels are class ids below `classes` (or count the classes, each of which needs an image)."""
    require(not data.labels.is_floating_point(), f"The labels of {name} must be class ids, not probabilities.")
    highest = int(data.labels.max())
    if classes is not None:
        require(
            highest < classes, f"The labels of {name} must be below {classes}, the number of classes, got {highest}."
        )
        return classes
    count = max(highest + 1, len(data.class_names or ()))
    sizes = torch.bincount(data.labels, minlength=count)
    missing = (sizes == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(
            f"The labels of {name} go up to {highest}, but no image has label {missing[0]}"
            f"{f' ({len(missing)} such labels)' if len(missing) > 1 else ''}: number the classes 0 to "
            f"{count - len(missing) - 1} without gaps."
        )
    require(count > 1, f"{name} has a single class; at least two are needed.")
    return count


def split_off(data: LabelledImages, fraction: float | None, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split `data` in (training, validation) parts, stratified by class.

    Args:
        data: with class ids.
        fraction: of the images, in (0, 1), for validation; None takes a tenth, at most 5000 images.
        seed: of the choice.

    Every class keeps an image for training and, if it has two, gives at least one to validation.
    """
    if fraction is None:
        fraction = min(VALIDATION_FRACTION, VALIDATION_CAP / len(data))
    elif isinstance(fraction, bool) or not 0 < fraction < 1:
        raise InputError(f"validation must be a fraction in (0, 1) or a dataset, got {fraction!r}.")
    rng = generator(seed, "image validation split")
    kept, held = [], []
    for label in range(int(data.labels.max()) + 1):
        members = (data.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    validation = torch.cat(held).sort().values
    require(
        len(validation) > 0,
        "Every class has one image only, so none can be held out: give a validation set with the validation argument.",
    )
    return data.at(torch.cat(kept).sort().values), data.at(validation)
