"""Images with classes: any torch `Dataset`, tensors or a folder in; a `TensorDataset`, PNG files or a grid out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from datastill import memory
from datastill.backbones.base import Kernel, Learner
from datastill.backbones.infinite_conv import convolutional_kernel, parse_kernel
from datastill.backbones.kmeans import k_means
from datastill.backbones.training import Protocol
from datastill.backbones.vision import build_network, parse_name
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.augmentation import NO_FLIP, Augmentation
from datastill.modalities.base import Batch, Size, Split
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.codec import Codec
from datastill.modalities.image_crops import best_crops, check_crops, default_factor
from datastill.modalities.image_data import LabelledImages, labelled_images, require_hard, split_off
from datastill.modalities.image_generators import Hallucinators
from datastill.modalities.image_protocols import PUBLISHED, STRATEGIES, named_augmentation
from datastill.modalities.image_protocols import strategy as apply_strategy
from datastill.modalities.image_scale import PixelScale, blocks_of
from datastill.modalities.image_storage import Storage
from datastill.modalities.image_storages import OPTIONS, blank_storage, check_storage, make_storage
from datastill.modalities.image_stored import StoredImages, decode_images
from datastill.modalities.image_styles import StyleAdversary
from datastill.modalities.image_summary import ImageSummary
from datastill.rng import fork

INITS = ("real", "noise", "kmeans")
LABELS = ("hard", "learned", "signed")
_CHUNK = 1024  # held-out images a batch, at most
_COPIES = 4  # of a batch in float32, on the way from images as stored to normalised ones
_SLACK = 64  # bytes
_CLUSTERED = 2000  # images of a class, at most, that k-means looks at


class ImageModality(ClassificationModality):
    """Labelled images of one size.

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

    kind = "image"
    learners = ("convnet", "mlp")
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
            raise unknown_name("image learner", name, self.learners)
        return build_network(name, self.shape, self.num_classes)

    def protocol(self, learner: str) -> Protocol:
        """300 steps of Adam with a cosine schedule, images augmented."""
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

    # --- summaries and native datasets --------------------------------------------------------------------------------

    def summary(
        self,
        counts: Sequence[int],
        *,
        rng: torch.Generator,
        init: str | Tensor = "real",
        labels: str = "hard",
        clamp: bool = True,
        storage: str = "pixels",
        codec: str | None = None,
        **options: Any,
    ) -> ImageSummary:
        """A summary with `counts[g]` images of each class.

        Args:
            counts: images of each class, at least 0.
            rng: of the initial values.
            init: "real" (random training images), "noise" (standard normal where pixels are normalised), "kmeans"
                (centres of the class's training images, blurred), positions of training images in `full`, or normalised
                images (n, c, h, w) in order of class, as `best` gives them.
            labels: "hard" (the class); "learned": distributions over classes, which begin as the class and are optimised; or
                "signed": the same without the bounds, rows whose sum is one. Those are targets of regression, as KIP, FRePo and
                RFAD have them: evaluation trains networks on them with the squared loss.
            clamp: whether pixels stay in the valid range, so that every summary can be exported as images.
            storage: "pixels" (every pixel is a parameter), "preconditioned" (these times a learned matrix, RFAD), or fewer
                numbers that decode to the images: "formation" (mosaics of small images), "low-resolution" (small images), "bases"
                (linear combinations), "frequencies" (low ones), "hallucinators" (bases in several styles) or "codes" (latent
                codes through small decoders); see `image_storage` and `image_generators`.
            codec: how these numbers are stored: None in full, or "float16", "int8", "int4", "int2", with "-entropy" behind it
                entropy-coded too; see `codec.Codec`. The rounding is part of what is optimised.
            options: of the storage: `mixing`; `factor`; `bases` and `downscale`; `keep`; `styles`, `diversity` and `fit`;
                `decoders`, `channels`, `width` and `fit`.
        """
        self.check_options(counts, labels=labels, storage=storage, codec=codec, **options)
        if isinstance(init, str) and init not in INITS:
            raise unknown_name("initialisation", init, INITS)
        self._check_counts(counts, limited=isinstance(init, str) and init != "noise")
        if isinstance(init, str):
            pixels = torch.cat([self._initial(group, count, init, rng) for group, count in enumerate(counts) if count])
        elif init.is_floating_point():
            wanted = (sum(counts), *self.shape)
            require(tuple(init.shape) == wanted, f"init must be images of shape {wanted}, got {tuple(init.shape)}.")
            pixels = init.detach().cpu().float()
        else:
            pixels = self.scale.normalise(self._train.images[self._order[self.check_chosen(init, counts)]])
        made = make_storage(storage, pixels, options, seed=fork(rng))
        adversary = None
        if isinstance(made, Hallucinators) and made.styles > 1 and made.diversity > 0:
            adversary = StyleAdversary(
                self.shape, self.num_classes, styles=made.styles, weight=made.diversity, seed=fork(rng)
            )
        summary = self._summary_in(made, counts, labels, clamp=clamp, storage=storage, codec=codec, adversary=adversary)
        return summary.to(self.device, self.dtype)

    def check_options(
        self,
        counts: Sequence[int],
        *,
        labels: str = "hard",
        clamp: bool = True,
        storage: str = "pixels",
        codec: str | None = None,
        **options: Any,
    ) -> None:
        for option in options:
            if option not in OPTIONS:
                known = ("init", "labels", "clamp", "storage", "codec", *OPTIONS)
                raise unknown_name("option of image summaries", option, known)
        if labels not in LABELS:
            raise unknown_name("kind of labels", labels, LABELS)
        check_storage(storage, counts, options, None if codec is None else Codec(codec))

    def best(
        self,
        counts: Sequence[int],
        score: Callable[[Batch], Tensor],
        *,
        rng: torch.Generator,
        pool: int | None = 300,
        crops: int = 5,
        factor: int | None = None,
        area: tuple[float, float] = (0.08, 1.0),
        **options: Any,
    ) -> Tensor:
        """Normalised images put together from the crops with the lowest score (`image_crops.best_crops`), for `summary`.

        Args:
            counts: images of each class.
            score: of a batch, (n,).
            rng: of the draw and the crops.
            pool: training images of each class that are looked at, each of which gives one crop at most; None takes all.
            crops: tried of each.
            factor: crops along each side of an image; None is 2 from 128 pixels on, else 1.
            area: least and largest share of a training image that a crop is.
            options: none; an unknown one is refused by name.
        """
        for option in options:
            raise unknown_name("option of crops", option, ("pool", "crops", "factor", "area"))
        factor = default_factor(self.shape) if factor is None else factor
        check_crops(crops, factor, area, self.shape)
        made = []
        for group, (places, count) in enumerate(
            zip(self.pools([n * factor**2 for n in counts], pool, rng=rng), counts)
        ):

            def scored(images: Tensor, group: int = group) -> Tensor:
                labels = torch.full((len(images),), group)
                return score(Batch(images, labels, labels).to(self.device, self.dtype))

            if count:
                images = self.scale.normalise(self._train.images[self._order[places]])
                made.append(best_crops(images, count, scored, rng=rng, crops=crops, factor=factor, area=area))
        return torch.cat(made)

    def read(self, dataset: Any) -> Batch:
        """Images and labels as training points.

        Args:
            dataset: what `export` or `subset` gives, or any dataset that the constructor takes, with images in the
                scale of the target dataset; or the path of a folder, such as `to_image_folder` writes, with 8 bits a
                channel for the valid range. Labels may be distributions.
        """
        given = self._like_training(labelled_images(dataset, name="dataset"), "dataset", soft=True)
        return self._batch(given).to(self.device, self.dtype)

    def pick(self, index: Tensor) -> TensorDataset:
        """Training images in the input's scale, with class ids."""
        picked = self._train.at(self._order[index])
        return TensorDataset(picked.images.clone(), picked.labels.clone())

    def check_supply(self, counts: Sequence[int]) -> None:
        self._check_counts(counts, limited=True)

    def size(self, dataset: Any) -> Size:
        """How many images, and the bytes of the dataset's tensors.

        A pixel and channel takes 1 byte as uint8, 4 as float32; a label 8 as a class id, 4 a class as a distribution.
        `StoredImages` take the bytes that they are decoded from.
        """
        if isinstance(dataset, StoredImages):
            return Size(len(dataset), len(dataset.coded))
        given = labelled_images(dataset, name="dataset")
        return Size(len(given), _bytes_of(given))

    def stored_bytes(
        self,
        counts: Sequence[int],
        *,
        codec: str | None = None,
        labels: str = "hard",
        clamp: bool = True,
        storage: str = "pixels",
        **options: Any,
    ) -> int:
        """Bytes that `counts[c]` images of each class take at most, whatever their pixels are and entropy coding saves."""
        plain = None if codec is None else Codec(codec).plain
        self.check_options(counts, labels=labels, storage=storage, codec=plain, **options)
        self._check_counts(counts, limited=False)
        blank = blank_storage(storage, (sum(counts), *self.shape), options)
        made = self._summary_in(blank, counts, labels, clamp=clamp, storage=storage, codec=plain)
        # Entropy coding keeps what it does not shorten, behind one byte; lengths in the header may have other digits.
        return made.nbytes + _SLACK if made.coded else self.size(made.export()).nbytes

    def shapes_decide_bytes(self, **options: Any) -> bool:
        """They do."""
        return True

    def full_size(self) -> Size:
        """The training images (without validation), counted as by `size`."""
        return Size(len(self._train), _bytes_of(self._train))

    @staticmethod
    def pack(dataset: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if isinstance(dataset, StoredImages):
            return {"coded": torch.frombuffer(bytearray(dataset.coded), dtype=torch.uint8)}, {}
        given = labelled_images(dataset, name="dataset")
        return {"images": given.images, "labels": given.labels}, {}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> TensorDataset:
        if "coded" in tensors:
            return decode_images(tensors["coded"].numpy().tobytes())
        return TensorDataset(tensors["images"], tensors["labels"])

    # --- internals ----------------------------------------------------------------------------------------------------

    def _batch(self, part: LabelledImages) -> Batch:
        groups = part.labels.argmax(1) if part.labels.is_floating_point() else part.labels
        return Batch(self.scale.normalise(part.images), part.labels, groups)

    def _pick(self, group: int, count: int, rng: torch.Generator) -> Tensor:
        members = self._members[group]
        return members[torch.randperm(len(members), generator=rng)[:count]]

    def _summary_in(
        self,
        made: Storage,
        counts: Sequence[int],
        labels: str,
        *,
        clamp: bool,
        storage: str,
        codec: str | None,
        adversary: StyleAdversary | None = None,
    ) -> ImageSummary:
        """The summary of the images in the storage `made`, called `storage`; the other arguments are those of `summary`."""
        groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
        return ImageSummary(
            made,
            groups,
            F.one_hot(groups, self.num_classes).to(torch.float32) if labels != "hard" else None,
            scale=self.scale,
            clamp=clamp,
            eight_bit=self._train.images.dtype == torch.uint8,
            class_names=self.class_names,
            codec=None if codec is None else Codec(codec),
            storage_name=storage,
            signed_labels=labels == "signed",
            adversary=adversary,
        )

    def _initial(self, group: int, count: int, init: str, rng: torch.Generator) -> Tensor:
        if init == "noise":
            return torch.randn(count, *self.shape, generator=rng)
        if init == "real":
            return self.scale.normalise(self._train.images[self._pick(group, count, rng)])
        images = self.scale.normalise(self._train.images[self._pick(group, max(count, _CLUSTERED), rng)])
        return k_means(images.flatten(1), count, rng).view(count, *self.shape)

    def _check_counts(self, counts: Sequence[int], *, limited: bool) -> None:
        require(
            len(counts) == self.num_classes,
            f"counts must have one number for each of the {self.num_classes} classes, got {len(counts)}.",
        )
        for name, count, size in zip(self.class_names, counts, self.group_sizes):
            check_count("counts", count, least=0)
            require(
                not limited or count <= size,
                f"Class {name!r} has {size} training images, fewer than the {count} asked for: lower the budget (or let the "
                'summary begin from noise, ImageModality.summary(..., init="noise")).',
            )
        require(sum(counts) > 0, "counts must ask for at least one image.")

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


def _bytes_of(given: LabelledImages) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (given.images, given.labels))
