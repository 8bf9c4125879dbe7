"""Columns of a log as arrays: ids, ratings, times, split names, and what is wrong with them."""

from __future__ import annotations

import re

import numpy as np

from datastill.errors import InputError
from datastill.modalities.interactions_log import TEST, TRAIN, VALIDATION

_PARTS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}


def to_ids(column: np.ndarray, name: str, text: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n,) int64 and the sorted distinct ids, integers or strings.

    Args:
        column: as read, possibly masked.
        name: of the column, for messages.
        text: whether it comes from a text file; there, ids that are all written as integers become integers.
    """
    missing = _missing(column)
    if missing.any():
        raise InputError(
            f"Column {name!r} has {int(missing.sum())} missing ids, the first in row {_first(missing)}; drop these rows."
        )
    values = np.ma.getdata(column)
    if values.dtype.kind == "f":
        broken = values != np.floor(values)
        if broken.any():
            raise InputError(f"Column {name!r} has ids that are not whole numbers, the first in row {_first(broken)}.")
        values = values.astype(np.int64)
    elif values.dtype.kind == "O":
        kinds = {type(value) for value in values.tolist()}
        if kinds <= {str}:
            values = values.astype(str)
        elif all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            values = values.astype(np.int64)
        else:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise InputError(f"Column {name!r} must hold ids of one type, strings or integers; it holds {found}.")
    if values.dtype.kind not in "iuUT":
        raise InputError(f"Column {name!r} must hold strings or integers, got {values.dtype}.")
    ids, codes = np.unique(values, return_inverse=True)
    if text and _all_integers(ids):
        numbers = ids.astype(np.int64)
        order = np.argsort(numbers)
        rank = np.empty(len(ids), dtype=np.int64)
        rank[order] = np.arange(len(ids))
        ids, codes = numbers[order], rank[codes]
    if ids.dtype.kind in "iu" and ids[0] < 0:
        raise InputError(
            f"Column {name!r} has negative ids, the least being {ids[0]}; such ids often mark unknowns: drop these rows."
        )
    if ids.dtype.kind == "U" and ids[0] == "":
        raise InputError(f"Column {name!r} has an empty string as id; drop these rows.")
    return codes.astype(np.int64), ids


def _all_integers(ids: np.ndarray) -> bool:
    return all(len(text) <= 18 and re.fullmatch(r"0|-?[1-9][0-9]*", text) is not None for text in ids.tolist())


def _missing(column: np.ndarray) -> np.ndarray:
    mask = np.ma.getmaskarray(column).copy()
    values = np.ma.getdata(column)
    if values.dtype.kind in "fM":
        mask |= np.isnan(values) if values.dtype.kind == "f" else np.isnat(values)
    elif values.dtype.kind == "O":
        mask |= np.fromiter((value is None or value != value for value in values), dtype=bool, count=len(values))
    return mask


def to_numbers(column: np.ndarray, name: str) -> np.ndarray:
    """Finite float64 values."""
    missing = _missing(column)
    if missing.any():
        raise InputError(
            f"Column {name!r} has {int(missing.sum())} missing values, the first in row {_first(missing)}."
        )
    try:
        values = np.ma.getdata(column).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Column {name!r} must hold numbers: {error}.") from error
    check_finite(values, f"column {name!r}")
    return values


def check_finite(values: np.ndarray, what: str) -> None:
    """Refuse NaN and infinite ratings; `what` names where they are."""
    broken = ~np.isfinite(values)
    if broken.any():
        raise InputError(f"The ratings in {what} must be finite; entry {_first(broken)} is {values[broken][0]}.")


def to_times(column: np.ndarray, name: str) -> np.ndarray:
    """Times as float64: numbers as they are, dates in microseconds."""
    values = np.ma.getdata(column)
    if values.dtype.kind == "M" and not _missing(column).any():
        return values.astype("datetime64[us]").astype(np.int64).astype(np.float64)
    if values.dtype.kind == "O" and not _missing(column).any():
        try:
            return values.astype(np.float64)
        except (TypeError, ValueError):
            try:
                return values.astype("datetime64[us]").astype(np.int64).astype(np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(f"Column {name!r} must hold numbers or dates such as 2024-05-31: {error}.") from error
    return to_numbers(column, name)


def to_parts(column: np.ndarray, name: str) -> np.ndarray:
    """TRAIN, VALIDATION or TEST for each entry, int8."""
    values, codes = np.unique(np.ma.getdata(column).astype(str), return_inverse=True)
    unknown = [value for value in values.tolist() if value not in _PARTS]
    if unknown:
        raise InputError(
            f"Column {name!r} must hold train, validation or test; it also holds {', '.join(unknown[:5])}."
        )
    return np.array([_PARTS[value] for value in values.tolist()], dtype=np.int8)[codes]


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])
