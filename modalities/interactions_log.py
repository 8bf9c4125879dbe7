"""A log of user-item interactions in memory: duplicates, k-core, and the split of each user's items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch

from datastill.errors import InputError, check_count, require
from datastill.rng import generator

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Log:
    """Interactions as parallel arrays.

    Attributes:
        users: (n,) int64 positions in `user_ids`.
        items: (n,) int64 positions in `item_ids`.
        user_ids: the original ids, sorted: integers or strings.
        item_ids: likewise.
        times: (n,) float64, or None.
        parts: (n,) int8, TRAIN, VALIDATION or TEST, or None where the log does not say.
    """

    users: np.ndarray
    items: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    times: np.ndarray | None = None
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def keep(self, chosen: np.ndarray) -> Log:
        """The interactions at `chosen` (a mask or positions); users and items that are left without any are dropped."""
        users, items = self.users[chosen], self.items[chosen]
        user_codes, users = np.unique(users, return_inverse=True)
        item_codes, items = np.unique(items, return_inverse=True)
        return Log(
            users,
            items,
            self.user_ids[user_codes],
            self.item_ids[item_codes],
            None if self.times is None else self.times[chosen],
            None if self.parts is None else self.parts[chosen],
        )


@dataclass(frozen=True)
class Splits:
    """Every user's items, split into training, validation and test.

    Attributes:
        train, validation, test: (users, items) float32 CSR of zeros and ones with sorted columns; no pair is in two of them.
        user_ids: (users,) original ids.
        item_ids: (items,) original ids.
    """

    train: sp.csr_matrix
    validation: sp.csr_matrix
    test: sp.csr_matrix
    user_ids: np.ndarray
    item_ids: np.ndarray


def distinct(log: Log, duplicates: Literal["once", "refuse"] = "once") -> Log:
    """The log with every (user, item) pair once, sorted by user and item.

    Args:
        log: any log.
        duplicates: "once" keeps one of equal pairs: the one of the earliest part (training before validation before test, so
            that nothing held out has been seen in training), and of those the latest. "refuse" raises `InputError`.
    """
    require(duplicates in ("once", "refuse"), f"duplicates must be 'once' or 'refuse', got {duplicates!r}.")
    nothing = np.zeros(len(log))
    times = nothing if log.times is None else log.times
    parts = nothing if log.parts is None else log.parts
    order = np.lexsort((-times, parts, log.items, log.users))
    users, items = log.users[order], log.items[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    if duplicates == "refuse" and not first.all():
        at = int(np.flatnonzero(~first)[0])
        user, item = log.user_ids[users[at]], log.item_ids[items[at]]
        raise InputError(
            f"The log has {int((~first).sum())} repeated (user, item) pairs, the first being ({user}, {item}); "
            "duplicates='once' keeps one of each."
        )
    return log.keep(order[first])


def k_core(log: Log, k: int) -> Log:
    """The largest part of a `distinct` log in which every user and every item has at least `k` interactions."""
    check_count("core", k)
    while len(log):
        enough = (np.bincount(log.users)[log.users] >= k) & (np.bincount(log.items)[log.items] >= k)
        if enough.all():
            return log
        log = log.keep(enough)
    raise InputError(f"core={k} leaves no interaction: no group of users and items has {k} of each other; use less.")


def split_log(
    log: Log,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    order: Literal["random", "time"] = "random",
    seed: int = 0,
) -> Splits:
    """Split the items of each user of a `distinct` log.

    A user with n >= 3 items gives max(1, floor(test * n)) of them to test and max(1, floor(validation * n)) to validation;
    users with fewer items are in training only. Where the log names the parts itself, these are used; validation items are
    then drawn from the user's training items if no row is marked for validation.

    Args:
        log: with every pair once.
        validation: fraction of a user's items, in (0, 0.4].
        test: likewise; 0 makes no test split.
        order: "random" draws the held-out items; "time" takes the latest for test and those before for validation.
        seed: of the draw.

    Raises:
        InputError: a fraction out of range, a single item, no times to order by, or nobody with enough items to hold one out.
    """
    for name, value in (("validation", validation), ("test", test)):
        known = isinstance(value, int | float) and 0 <= value <= 0.4 and (value > 0 or name == "test")
        allowed = "[0, 0.4]" if name == "test" else "(0, 0.4]"
        require(known, f"{name} is the fraction of each user's items to hold out, in {allowed}; got {value!r}.")
    require(order in ("random", "time"), f"split must be 'random' or 'time', got {order!r}.")
    require(
        len(log.item_ids) >= 2,
        f"The log has {len(log.item_ids)} item; recommending needs at least 2 distinct items: check item_column.",
    )
    if order == "time" and log.times is None:
        raise InputError("split='time' needs a column of times; name it with time_column, or use split='random'.")
    if log.parts is None:
        parts = _hold_out(log, np.ones(len(log), dtype=bool), validation, test, order, seed)
    else:
        parts = log.parts
        if not (parts == VALIDATION).any():
            inside = parts == TRAIN
            parts = np.where(inside, _hold_out(log, inside, validation, 0.0, order, seed), parts)
    if not (parts == TRAIN).any():
        raise InputError("The log has no training interactions: its split column marks every row as held out.")
    if not (parts == VALIDATION).any():
        raise InputError("No user has 3 distinct items, so nothing can be held out to choose a summary by.")
    return Splits(
        train=_csr(log, parts == TRAIN),
        validation=_csr(log, parts == VALIDATION),
        test=_csr(log, parts == TEST),
        user_ids=log.user_ids,
        item_ids=log.item_ids,
    )


def _hold_out(log: Log, inside: np.ndarray, validation: float, test: float, order: str, seed: int) -> np.ndarray:
    """The part of each interaction, splitting those `inside`; the others get TRAIN."""
    at = np.flatnonzero(inside)
    users = log.users[at]
    if order == "time" and log.times is not None:
        keys = -log.times[at]
    else:
        keys = torch.rand(len(at), dtype=torch.float64, generator=generator(seed, "split")).numpy()
    counts = np.bincount(users, minlength=len(log.user_ids))
    by_user = np.lexsort((keys, users))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rank = np.empty(len(at), dtype=np.int64)
    rank[by_user] = np.arange(len(at)) - starts[users[by_user]]

    def share(fraction: float) -> np.ndarray:
        held = np.maximum(1, np.floor(fraction * counts + 1e-9).astype(np.int64))
        return np.where((counts >= 3) & (fraction > 0), held, 0)[users]

    tested = share(test)
    held_out = tested + share(validation)
    parts = np.full(len(log), TRAIN, dtype=np.int8)
    parts[at] = np.where(rank < tested, TEST, np.where(rank < held_out, VALIDATION, TRAIN))
    return parts


def _csr(log: Log, chosen: np.ndarray) -> sp.csr_matrix:
    shape = (len(log.user_ids), len(log.item_ids))
    ones = np.ones(int(chosen.sum()), dtype=np.float32)
    found = sp.csr_matrix((ones, (log.users[chosen], log.items[chosen])), shape=shape)
    found.sort_indices()
    return found
