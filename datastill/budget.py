"""Budgets in bytes: how many points, and numbers of which precision, fit into so many bytes of storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from datastill.condense.common import first_summary
from datastill.errors import InputError, check_count, check_ratio, require
from datastill.loop import exported_bytes
from datastill.modalities.base import Modality
from datastill.modalities.codec import Codec
from datastill.objectives.coresets import VECTORS, coreset
from datastill.objectives.remembered import remembering
from datastill.recipe import Recipe
from datastill.rng import generator

CODECS = (None, "float16-entropy", "int8-entropy", "int4-entropy", "int2-entropy")
"""How numbers may be stored, finest first; None is in full."""
_NEAR = 200  # a measured search ends once less than this part of the budget is left
_STRAIGHT, _FAR = 8, 8  # measurements that take sizes for a straight line, and how many times a size they look ahead
_CHOICE = ("init", "space", "parts")  # of a recipe's summary: which points it begins from, not how they are stored


def one_budget(*, needed: bool = False, **budgets: float | None) -> None:
    """Refuse budgets of which more than one is given (or none, if one is needed), or that are no numbers of that kind."""
    given = {name: value for name, value in budgets.items() if value is not None}
    names = [*budgets]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    require(
        len(given) == 1 or (not given and not needed),
        f"Give {'exactly' if needed else 'at most'} one of {listed}, got {', '.join(given) or 'none of them'}.",
    )
    for name, value in given.items():
        if name == "ratio":
            check_ratio(name, value)
        else:
            check_count(name, value)


def most_points(
    modality: Modality,
    recipe: Recipe,
    nbytes: int,
    counts_of: Callable[[int], Sequence[int]],
    *,
    most: int,
    least: int = 1,
    seed: int = 0,
    **options: Any,
) -> Sequence[int]:
    """The points of each group of the largest summary that is stored in `nbytes` bytes.

    Where content decides how many bytes that is (entropy coding, words, edges), what a run with `seed` begins from is built and
    measured, a few times, until one size more does not fit or at most 1/200 of the budget is left; `distill(nbytes=...)` then
    holds the limit.

    Args:
        modality: the target dataset.
        recipe: for this kind of data; its summary options say how points are stored.
        nbytes: the budget.
        counts_of: points of each group for a size, from `least` to `most`; more for a larger one.
        most: largest size.
        least: smallest size.
        seed: of the run.
        options: of the summary, in place of the recipe's.

    Raises:
        InputError: if not even the smallest fits.
    """
    check_count("nbytes", nbytes)

    def bound(size: int) -> int:
        return stored_bytes(modality, recipe, counts_of(size), **options)

    def begins(size: int) -> int:
        takes = beginning_bytes(modality, recipe, counts_of(size), seed=seed, **options)
        certain = recipe.objective is None or _entropy(recipe, options)
        return takes if certain else max(takes, bound(size))  # features that are zero do not stay so

    if not _content_decides(modality, recipe, options):
        found, smallest = _largest(bound, nbytes, least, most), bound
    else:
        # In plain bits it fits, or nearly: content is measured from there.
        guess = _largest(bound, nbytes, least, most)
        with remembering():  # points may be chosen by a training, which is the same for all sizes
            found, smallest = _largest_measured(begins, nbytes, least, most, guess or least), begins
    if found is None:
        raise InputError(
            f"nbytes={nbytes:,} is too little: the smallest summary of recipe {recipe.name!r}, "
            f"{sum(counts_of(least)):,} points, takes {smallest(least):,} bytes. Ask for as many, or for numbers of fewer bits."
        )
    return counts_of(found)


def _largest(measure: Callable[[int], int], nbytes: int, least: int, most: int) -> int | None:
    """The largest size that `measure`, which is cheap and grows, finds within `nbytes`; None if the smallest is not."""
    if measure(least) > nbytes:
        return None
    low, high = least, min(most, 2 * least)
    while high < most and measure(high) <= nbytes:
        low, high = high, min(most, 2 * high)
    if high == most and measure(most) <= nbytes:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) <= nbytes else (low, middle)
    return low


def _largest_measured(measure: Callable[[int], int], nbytes: int, least: int, most: int, guess: int) -> int | None:
    """The same where `measure` is dear and nearly a straight line: few measurements, from `guess` on.

    It is content with a size that leaves at most 1/200 of `nbytes`.
    """
    takes = {least: measure(least)}
    if takes[least] > nbytes:
        return None
    low, high = least, most + 1
    size = guess
    while high - low > 1 and nbytes - takes[low] > nbytes // _NEAR:
        size = min(max(size, low + 1), high - 1)
        takes[size] = measure(size)
        low, high = (size, high) if takes[size] <= nbytes else (low, size)
        before = high if high in takes else max(known for known in takes if known < low) if low > least else None
        if before is None or len(takes) > _STRAIGHT:  # it is no straight line: halves are sure to end
            size = (low + high) // 2 if high in takes else 2 * low
        else:
            slope = (takes[before] - takes[low]) / (before - low)
            aim = nbytes - nbytes // (2 * _NEAR)  # amid what is near enough
            size = min(low + int((aim - takes[low]) / max(slope, 1e-9)), _FAR * low)
    return low


def finest_codec(
    modality: Modality,
    recipe: Recipe,
    nbytes: int,
    counts: Sequence[int],
    codecs: Sequence[str | None],
    *,
    seed: int = 0,
    **options: Any,
) -> str | None:
    """The first of `codecs`, finest first, by which `counts` points of each group are stored in `nbytes` bytes.

    Their plain bits are what counts: the finer a codec is, the more of what entropy coding saves at the beginning is gone once
    the numbers have been optimised. Only if none fits that way, the last one may do by what the beginning takes.

    Raises:
        InputError: if none is coarse enough.
    """
    check_count("nbytes", nbytes)
    for codec in codecs:
        stored = {**options, **({} if codec is None else {"codec": codec})}
        takes = stored_bytes(modality, recipe, counts, **stored)
        if takes <= nbytes:
            return codec
    if _content_decides(modality, recipe, stored):
        takes = beginning_bytes(modality, recipe, counts, seed=seed, **stored)
        if takes <= nbytes:
            return codec
    raise InputError(
        f"nbytes={nbytes:,} is too little for {sum(counts):,} points of recipe {recipe.name!r}, which take {takes:,} bytes"
        f"{'' if codecs[-1] is None else f' even by codec {codecs[-1]!r}'}: ask for as many bytes, or for fewer points."
    )


def _content_decides(modality: Modality, recipe: Recipe, options: dict[str, Any]) -> bool:
    """Whether a summary takes as many bytes as its content makes of it: real texts, for one, are as long as they are."""
    return _entropy(recipe, options) or not modality.shapes_decide_bytes(**{**recipe.summary, **options})


def _entropy(recipe: Recipe, options: dict[str, Any]) -> bool:
    codec = {**recipe.summary, **options}.get("codec")
    return codec is not None and Codec(codec).entropy


def beginning_bytes(modality: Modality, recipe: Recipe, counts: Sequence[int], *, seed: int, **options: Any) -> int:
    """Bytes of the export of what a run of `recipe` with `seed` begins from; learned labels count as if they had been learned."""
    start = _start(recipe, options)
    if recipe.objective is None and start.get("codec") is None and "labels" not in start:
        parts = start.get("parts") or {}
        space = start.get("space", VECTORS)
        return modality.size(coreset(modality, counts, method=start["init"], space=space, seed=seed, **parts)).nbytes
    summary = first_summary(modality, counts, seed=seed, **start)
    labels = summary().targets if start.get("labels", "hard") != "hard" else None
    if labels is not None:  # they begin as one class each, which an entropy code makes nothing of
        learned = torch.rand(labels.shape, generator=generator(seed, "labels"))
        summary.relabel_((learned / learned.sum(1, keepdim=True)).to(labels))
    return exported_bytes(modality, summary)


def stored_bytes(modality: Modality, recipe: Recipe, counts: Sequence[int], **options: Any) -> int:
    """`modality.stored_bytes` for a summary as `recipe` has it."""
    kept = {name: value for name, value in _start(recipe, options).items() if name not in _CHOICE}
    return modality.stored_bytes(counts, **kept)


def _start(recipe: Recipe, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the summary that a run begins from."""
    start = {**recipe.summary, **options}
    if recipe.objective is None:  # real points: their labels are their own, or distributions of a teacher
        labels = start.pop("labels", "own")
        start |= {} if labels == "own" else {"labels": "learned"}
    return start
