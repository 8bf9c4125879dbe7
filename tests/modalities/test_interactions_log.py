"""Duplicates, k-core and splits of logs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datastill.errors import InputError
from datastill.modalities.interactions_log import TEST, TRAIN, VALIDATION, Log, distinct, k_core, split_log


def log_of(pairs: list[tuple[int, int]], times: Any = None, parts: Any = None) -> Log:
    """A log of pairs of integer ids."""
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    user_ids, user_codes = np.unique(users, return_inverse=True)
    item_ids, item_codes = np.unique(items, return_inverse=True)
    return Log(
        user_codes,
        item_codes,
        user_ids,
        item_ids,
        None if times is None else np.array(times, dtype=np.float64),
        None if parts is None else np.array(parts, dtype=np.int8),
    )


def pairs_of(log: Log) -> list[tuple[int, int]]:
    return list(zip(log.user_ids[log.users].tolist(), log.item_ids[log.items].tolist()))


def block(users: int, items: int) -> list[tuple[int, int]]:
    return [(user, item) for user in range(users) for item in range(items)]


def random_pairs(seed: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return [(int(user), int(item)) for user, item in rng.integers(0, 7, (rng.integers(1, 60), 2))]


@pytest.mark.parametrize("seed", range(10))
def test_every_pair_is_kept_once(seed: int) -> None:
    pairs = random_pairs(seed)
    assert pairs_of(distinct(log_of(pairs))) == sorted(set(pairs))


def test_of_equal_pairs_the_training_row_is_kept_and_of_these_the_latest() -> None:
    log = distinct(log_of([(1, 1)] * 3, times=[5, 7, 9], parts=[TRAIN, TRAIN, TEST]))
    assert log.times is not None
    assert log.parts is not None
    assert (log.times.tolist(), log.parts.tolist()) == ([7], [TRAIN])


def test_duplicates_can_be_refused() -> None:
    with pytest.raises(InputError, match=r"2 repeated .* \(3, 4\)"):
        distinct(log_of([(3, 4), (5, 1), (3, 4), (3, 4)]), "refuse")
    assert len(distinct(log_of([(3, 4), (5, 1)]), "refuse")) == 2
    with pytest.raises(InputError, match="'once' or 'refuse', got 'last'"):
        distinct(log_of([(3, 4)]), "last")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_the_core_is_that_of_removal_one_by_one(seed: int, k: int) -> None:
    pairs = random_pairs(seed)
    left = set(pairs)
    while True:  # brute force: take out one offender at a time
        weak = [p for p in left if min(sum(q[s] == p[s] for q in left) for s in (0, 1)) < k]
        if not weak:
            break
        left.remove(weak[0])
    if left:
        assert pairs_of(k_core(distinct(log_of(pairs)), k)) == sorted(left)
    else:
        with pytest.raises(InputError, match=f"core={k} leaves no interaction"):
            k_core(distinct(log_of(pairs)), k)


@pytest.mark.parametrize("order", ["random", "time"])
def test_splits_cover_the_log_and_have_the_stated_sizes(order: Any) -> None:
    pairs = [(user, item) for user in range(1, 30) for item in range(user)]
    log = distinct(log_of(pairs, times=np.arange(len(pairs))))
    splits = split_log(log, validation=0.1, test=0.2, order=order)
    whole = splits.train + splits.validation + splits.test
    assert whole.max() == 1
    assert whole.nnz == len(pairs)
    for row, n in enumerate(range(1, 30)):
        test = 0 if n < 3 else max(1, n // 5)
        validation = 0 if n < 3 else max(1, n // 10)
        sizes = [part[row].nnz for part in (splits.train, splits.validation, splits.test)]
        assert sizes == [n - test - validation, validation, test]
        if order == "time":
            assert splits.test[row].indices.tolist() == list(range(n - test, n))
            assert splits.validation[row].indices.tolist() == list(range(n - test - validation, n - test))


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    pairs = block(8, 10)
    shuffled = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    first, second = (split_log(distinct(log_of(rows)), seed=3) for rows in (pairs, shuffled))
    other = split_log(distinct(log_of(pairs)), seed=4)
    assert (first.test != second.test).nnz == 0
    assert (first.test != other.test).nnz > 0


def test_parts_of_the_log_are_taken_over_and_validation_is_drawn_from_training() -> None:
    pairs = block(4, 10)
    parts = [TEST if item < 2 else TRAIN for _, item in pairs]
    splits = split_log(distinct(log_of(pairs, parts=parts)), validation=0.25)
    assert all(splits.test[user].indices.tolist() == [0, 1] for user in range(4))
    assert splits.validation.sum(1).A1.tolist() == [2, 2, 2, 2]
    assert splits.train.sum(1).A1.tolist() == [6, 6, 6, 6]
    parts[5] = VALIDATION
    splits = split_log(distinct(log_of(pairs, parts=parts)), validation=0.25)
    assert splits.validation.nnz == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, r"validation is the fraction .* \(0, 0.4\]; got 0"),
        ({"validation": 0.5}, "got 0.5"),
        ({"test": -0.1}, r"test is the fraction .* \[0, 0.4\]; got -0.1"),
        ({"test": float("nan")}, "got nan"),
        ({"order": "last"}, "'random' or 'time', got 'last'"),
        ({"order": "time"}, "needs a column of times"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_log(distinct(log_of(block(3, 4))), **options)


def test_logs_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="No user has 3 distinct items"):
        split_log(distinct(log_of([(1, 1), (1, 2), (2, 1)])))
    with pytest.raises(InputError, match="no training interactions"):
        split_log(distinct(log_of([(1, 1), (1, 2)], parts=[TEST, VALIDATION])))
    with pytest.raises(InputError, match="The log has 1 item"):
        split_log(distinct(log_of([(1, 1), (2, 1)])))
