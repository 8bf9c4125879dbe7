"""`condense_images`: labelled images in, a few synthetic images out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from datastill.budget import CODECS, finest_codec, most_points
from datastill.condense.common import Job, condenser, find_recipe
from datastill.errors import check_count, unknown_name
from datastill.modalities.augmentation import NO_FLIP
from datastill.modalities.image import ImageModality
from datastill.modalities.image_storages import OPTIONS, factorised, fewest, folds, shared
from datastill.recipe import Recipe

_FACTORS = 0.01  # rate of Adam for factors of images, in recipes whose own is of pixels by SGD


@condenser
def condense_images(
    data: Any,
    labels: Any = None,
    *,
    per_class: int | None = None,
    nbytes: int | None = None,
    recipe: str | Recipe | None = None,
    validation: Any = None,
    test: Any = None,
    augmentation: str = NO_FLIP,
    storage: str | None = None,
    storage_options: Mapping[str, int | float] | None = None,
    codec: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> Job[TensorDataset]:
    """Distil labelled images into `per_class` synthetic images of each class, on which a network trains almost as well.

    Args:
        data: training images of one size: a tensor or array (n, h, w) or (n, c, h, w), uint8 or floating, with
            `labels`; a pair (images, labels); any `Dataset` of (image, label) with PIL images, tensors or arrays; or
            the path of a folder with one subfolder a class.
        labels: class ids 0, 1, ... for a tensor or an array.
        per_class: images of each class in the result, at least 1; None is 10 (or the next number that comes from whole stored
            images), or as many as fit into `nbytes`.
        nbytes: most bytes that the result may take, labels included. With an entropy-coding codec as many images fit as it takes
            to fill them before anything is optimised. Optimising makes pixels harder to code, and what takes more is not
            selected, so fewer images (`per_class` beside `nbytes`) leave room for it. With `per_class` and no codec it decides
            the precision of what is stored: the finest codec by which so many images fit, entropy coding apart.
        recipe: one of `datastill.recipes` for images, or None for the default.
        validation: the share of the images that is set apart to select the summary, in (0, 1), or validation images
            in any form of `data`; None is a tenth, at most 5000.
        test: test images in any form of `data`, never used in distillation; `evaluate` scores a job's result on them.
        augmentation: operations joined by "_" out of color, crop, cutout, flip, scale and rotate, or "none". The
            default has no flip; add it where a mirror image means the same.
        storage: how pixels are stored, in place of the recipe's: "pixels" (freely) or "preconditioned" (the same, with a matrix
            that is learned beside), or as fewer numbers "formation", "low-resolution", "bases", "frequencies",
            "hallucinators" or "codes"; see `ImageModality.summary`. A recipe that moves pixels by SGD moves bases, hallucinators
            and codes, whose factors have other scales, by Adam.
        storage_options: of that storage, such as {"bases": 8, "downscale": 2} or {"factor": 3}; on a command line as JSON. Those
            that are left out are the recipe's, if it has that storage, or the storage's defaults.
        codec: how the stored numbers are kept, in place of the recipe's: "float32", "float16", "int8", "int4" or "int2", with
            "-entropy" behind it entropy-coded too. With a storage or a codec the result is `StoredImages`, which also hold the
            bytes that they are decoded from.
        seed: of everything random.
        steps: outer steps, in place of the recipe's.
        out: run folder for the artifact, the metrics and checkpoints from which a killed run goes on. None writes
            nothing.
        device: where to compute; None is the CPU.
        memory: bytes that the run may use, such as "4GiB": chunks are made to fit, which changes numbers by rounding alone. None
            is the environment variable DATASTILL_MEMORY, or what is free.
        progress: whether a progress bar is shown on stderr.

    Returns:
        Images (n, c, h, w) in the scale of `data`, in order of class, and their labels: class ids, or rows of a weight for each
        class if the recipe learns them: distributions, or of either sign as targets of regression. They are uint8 where
        `data` is, else float32; and always float32, maybe outside the range of `data`, where the recipe lets pixels leave that
        (`clamp` of its summary).

    Raises:
        InputError: for data or arguments that cannot be used, before work starts.
    """
    for name, number in (("per_class", per_class), ("nbytes", nbytes)):
        if number is not None:
            check_count(name, number)
    chosen = find_recipe(recipe, "image")
    modality = ImageModality(data, labels, validation=validation, test=test, augmentation=augmentation, seed=seed)
    stored: dict[str, Any] = {}
    stored |= {name: value for name, value in (("storage", storage), ("codec", codec)) if value is not None}
    if storage not in (None, chosen.summary.get("storage", "pixels")):  # the recipe's options are of another storage
        kept = {name: value for name, value in chosen.summary.items() if name not in OPTIONS}
        chosen = dataclasses.replace(chosen, summary=kept)
        if factorised(storage) and chosen.optimizer == "sgd":
            chosen = dataclasses.replace(chosen, optimizer="adam", lr=_FACTORS, momentum=None)
    for name in storage_options or {}:
        if name not in OPTIONS:
            raise unknown_name("storage option", name, OPTIONS)
    stored.update(storage_options or {})
    if nbytes is not None:
        per_class, found = _into_bytes(modality, chosen, nbytes, per_class, stored, seed)
        stored |= found
    if per_class is None:
        start = {**chosen.summary, **stored}
        share = shared(start.get("storage", "pixels"), start)
        per_class = -(-10 // share) * share
    counts = [per_class] * modality.num_groups
    options: dict[str, Any] = {"seed": seed, "steps": steps, "out": out, "device": device, "progress": progress}
    return Job(modality, counts, chosen, {**options, **stored, "nbytes": nbytes})


def _into_bytes(
    modality: ImageModality, recipe: Recipe, nbytes: int, per_class: int | None, stored: dict[str, Any], seed: int
) -> tuple[int, dict[str, Any]]:
    """Images a class that fit into `nbytes`, and the codec by which they do if it had to be chosen."""
    start = {**recipe.summary, **stored}
    if per_class is None:
        return images_within(modality, recipe, nbytes, seed=seed, **stored)[0], {}
    free = recipe.objective is not None and "codec" not in start and not folds(start.get("storage", "pixels"))
    codecs = CODECS if free else [None]
    found = finest_codec(modality, recipe, nbytes, [per_class] * modality.num_groups, codecs, seed=seed, **stored)
    return per_class, {} if found is None else {"codec": found}


def images_within(
    modality: ImageModality, recipe: Recipe, nbytes: int, *, seed: int = 0, **stored: Any
) -> Sequence[int]:
    """The most images of each class, as many of every class, that `recipe` stores in `nbytes` bytes.

    Args:
        modality: the target dataset.
        recipe: for images; its summary options say how they are stored.
        nbytes: the budget.
        seed: of the run, which begins from the images that are measured here where content decides.
        stored: options of the summary, in place of the recipe's.

    Raises:
        InputError: if not even one image of each class (or one stored unit, where it makes several) fits.
    """
    start = {**recipe.summary, **stored}
    storage, classes = start.get("storage", "pixels"), modality.num_groups
    share = shared(storage, start)
    most = max(1, min(modality.group_sizes) // share)
    least = min(most, -(-fewest(storage, start) // (classes * share)))
    return most_points(
        modality, recipe, nbytes, lambda units: [units * share] * classes, most=most, least=least, seed=seed, **stored
    )
