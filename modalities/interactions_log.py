"""Interactions as parallel arrays: duplicates, k-core, and the split of each user's items."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datastill.errors import InputError, check_count, require
from datastill.rng import derive_seed

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
}
"""What a split column may hold."""


@dataclass(frozen=True)
class Log:
    """Interactions of whole users.

    Attributes:
        users: (n,) positions of users, integers.
        items: (n,) positions of items, integers.
        times: (n,) float64, or None.
        parts: (n,) int8, TRAIN, VALIDATION or TEST, or None where the log does not say.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def keep(self, chosen: np.ndarray) -> Log:
        """The interactions at `chosen` (a mask or positions)."""
        times, parts = (None if column is None else column[chosen] for column in (self.times, self.parts))
        return Log(self.users[chosen], self.items[chosen], times, parts)


@dataclass(frozen=True)
class SplitRule:
    """How the items of each user are split.

    A user with n >= 3 items gives max(1, floor(test * n)) of them to test and max(1, floor(validation * n)) to validation;
    users with fewer items are in training only. Where the log names the parts itself, these are used; validation items are
    then drawn from the user's training items if no row is marked for validation.

    Attributes:
        validation: fraction of a user's items, in (0, 0.4].
        test: likewise; 0 makes no test split.
        order: "random" draws the held-out items; "time" takes the latest for test and those before for validation.
        seed: of the draw, which depends on nothing else but the positions of user and item.

    Raises:
        InputError: a fraction out of range, or an unknown order.
    """

    validation: float = 0.1
    test: float = 0.1
    order: Literal["random", "time"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("validation", self.validation), ("test", self.test)):
            known = isinstance(value, int | float) and 0 <= value <= 0.4 and (value > 0 or name == "test")
            allowed = "[0, 0.4]" if name == "test" else "(0, 0.4]"
            require(known, f"{name} is the fraction of each user's items to hold out, in {allowed}; got {value!r}.")
        require(self.order in ("random", "time"), f"split must be 'random' or 'time', got {self.order!r}.")

    def parts(self, log: Log, marks_validation: bool = True) -> np.ndarray:
        """TRAIN, VALIDATION or TEST of each interaction of whole users, with every pair once; int8.

        Args:
            log: any users of a log.
            marks_validation: of a log that names its parts, whether it has validation rows, among these users or others.
        """
        if log.parts is None:
            return self._hold_out(log, self.validation, self.test)
        if marks_validation:
            return log.parts
        parts = log.parts.copy()
        inside = parts == TRAIN
        parts[inside] = self._hold_out(log.keep(inside), self.validation, 0.0)
        return parts

    def _hold_out(self, log: Log, validation: float, test: float) -> np.ndarray:
        if not len(log):
            return np.zeros(0, dtype=np.int8)
        if self.order == "time" and log.times is not None:
            order = np.lexsort((-log.items.astype(np.int64), -log.times, log.users))
        else:
            order = np.lexsort((_noise(log, derive_seed(self.seed, "split")), log.users))
        owners = log.users - int(log.users.min())
        counts = np.bincount(owners)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        rank = np.empty(len(log), dtype=np.int64)
        rank[order] = np.arange(len(log)) - starts[owners[order]]

        def share(fraction: float) -> np.ndarray:
            held = np.maximum(1, np.floor(fraction * counts + 1e-9).astype(np.int64))
            return np.where((counts >= 3) & (fraction > 0), held, 0)[owners]

        tested = share(test)
        held_out = tested + share(validation)
        return np.where(rank < tested, TEST, np.where(rank < held_out, VALIDATION, TRAIN)).astype(np.int8)


def _noise(log: Log, seed: int) -> np.ndarray:
    """A pseudo-random uint64 for each pair: the finaliser of SplitMix64 on a mix of seed, user and item."""
    values = log.users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    for mixed in (log.items.astype(np.uint64), np.uint64(0)):
        values = values + mixed
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        values = values ^ (values >> np.uint64(31))
    return values


def distinct(log: Log) -> Log:
    """The log with every (user, item) pair once, sorted by user and item.

    Of equal pairs that of the earliest part is kept (training before validation before test, so that nothing held out has
    been seen in training), and of those the latest.
    """
    keys = [log.items, log.users]
    if log.parts is not None:
        keys.insert(0, log.parts)
    if log.times is not None:
        keys.insert(0, -log.times)
    order = np.lexsort(keys)
    users, items = log.users[order], log.items[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return log.keep(order[first])


def k_core(
    chunks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], users: int, items: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The largest part of a log in which every user and every item has at least `k` interactions.

    Args:
        chunks: gives the (users, items) positions of the log's interactions, every pair once, each time it is called.
        users, items: how many there are.
        k: at least 1.

    Returns:
        Masks (users,) and (items,) of those who stay: an interaction stays if both of its ends do.

    Raises:
        InputError: nothing is left.
    """
    check_count("core", k)
    stay_users, stay_items = np.ones(users, dtype=bool), np.ones(items, dtype=bool)
    while True:
        of_users, of_items = np.zeros(users, dtype=np.int64), np.zeros(items, dtype=np.int64)
        for some_users, some_items in chunks():
            inside = stay_users[some_users] & stay_items[some_items]
            of_users += np.bincount(some_users[inside], minlength=users)
            of_items += np.bincount(some_items[inside], minlength=items)
        weak_users, weak_items = stay_users & (of_users < k), stay_items & (of_items < k)
        if not (weak_users.any() or weak_items.any()):
            break
        stay_users &= ~weak_users
        stay_items &= ~weak_items
    if not stay_users.any():
        raise InputError(
            f"core={k} leaves no interaction: no group of users and items has {k} of each other; use less."
        )
    return stay_users, stay_items
