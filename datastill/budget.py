"""Budgets in bytes: how many points, and numbers of which precision, fit into so many bytes of storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datastill.errors import InputError, check_count, check_ratio, require
from datastill.modalities.base import Modality
from datastill.recipe import Recipe

CODECS = (None, "float16-entropy", "int8-entropy", "int4-entropy", "int2-entropy")
"""How numbers may be stored, finest first; None is in full."""
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
    **options: Any,
) -> Sequence[int]:
    """The points of each group of the largest summary that is stored in `nbytes` bytes.

    Args:
        modality: the target dataset.
        recipe: for this kind of data; its summary options say how points are stored.
        nbytes: the budget.
        counts_of: points of each group for a size, from `least` to `most`; more for a larger one.
        most: largest size.
        least: smallest size.
        options: of the summary, in place of the recipe's.

    Raises:
        InputError: if not even the smallest fits.
    """
    check_count("nbytes", nbytes)

    def measure(size: int) -> int:
        return stored_bytes(modality, recipe, counts_of(size), **options)

    smallest = measure(least)
    if smallest > nbytes:
        raise InputError(
            f"nbytes={nbytes:,} is too little: the smallest summary of recipe {recipe.name!r}, "
            f"{sum(counts_of(least)):,} points, takes {smallest:,} bytes. Ask for as many, or for numbers of fewer bits."
        )
    low, high = least, min(most, 2 * least)
    while high < most and measure(high) <= nbytes:
        low, high = high, min(most, 2 * high)
    if high == most and measure(most) <= nbytes:
        return counts_of(most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) <= nbytes else (low, middle)
    return counts_of(low)


def finest_codec(
    modality: Modality,
    recipe: Recipe,
    nbytes: int,
    counts: Sequence[int],
    codecs: Sequence[str | None],
    **options: Any,
) -> str | None:
    """The first of `codecs`, finest first, by which `counts` points of each group are stored in `nbytes` bytes.

    Raises:
        InputError: if none is coarse enough.
    """
    check_count("nbytes", nbytes)
    for codec in codecs:
        takes = stored_bytes(modality, recipe, counts, **{**options, **({} if codec is None else {"codec": codec})})
        if takes <= nbytes:
            return codec
    raise InputError(
        f"nbytes={nbytes:,} is too little for {sum(counts):,} points of recipe {recipe.name!r}, which take {takes:,} bytes"
        f"{'' if codecs[-1] is None else f' even by codec {codecs[-1]!r}'}: ask for as many bytes, or for fewer points."
    )


def stored_bytes(modality: Modality, recipe: Recipe, counts: Sequence[int], **options: Any) -> int:
    """`modality.stored_bytes` for a summary as `recipe` has it."""
    start = {**recipe.summary, **options}
    kept = {name: value for name, value in start.items() if name not in _CHOICE}
    if recipe.objective is None:  # real points: their labels are their own, or distributions of a teacher
        labels = kept.pop("labels", "own")
        kept |= {} if labels == "own" else {"labels": "learned"}
    return modality.stored_bytes(counts, **kept)
