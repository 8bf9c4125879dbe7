"""Images with classes: any torch `Dataset`, tensors or a folder in; a `TensorDataset`, PNG files or a grid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from datastill.backbones.kmeans import k_means
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Batch, Size
from datastill.modalities.codec import Codec
from datastill.modalities.image_crops import best_crops, check_crops, default_factor
from datastill.modalities.image_data import LabelledImages, labelled_images
from datastill.modalities.image_generators import Hallucinators
from datastill.modalities.image_storage import Storage
from datastill.modalities.image_storages import OPTIONS, blank_storage, check_storage, make_storage
from datastill.modalities.image_stored import StoredImages, decode_images
from datastill.modalities.image_styles import StyleAdversary
from datastill.modalities.image_summary import ImageSummary
from datastill.modalities.image_target import ImageTarget
from datastill.rng import fork

INITS = ("real", "noise", "kmeans")
LABELS = ("hard", "learned", "signed")
_SLACK = 64  # bytes that entropy coding may add
_CLUSTERED = 2000  # images of a class, at most, that k-means looks at


class ImageModality(ImageTarget):
    """Labelled images of one size, what learns from them, and summaries of them.

    Arguments, learners and kernels are those of `ImageTarget`.
    """

    kind = "image"

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
        if not made.coded:
            return self.size(made.export()).nbytes
        # Entropy coding keeps what it does not shorten, behind one byte; lengths in the header may have other digits.
        return made.nbytes + (_SLACK if plain != codec else 0)

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


def _bytes_of(given: LabelledImages) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (given.images, given.labels))
