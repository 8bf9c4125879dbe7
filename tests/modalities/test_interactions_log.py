"""Duplicates, k-core and splits of logs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datastill.errors import InputError
from datastill.modalities.interactions_io import read_interactions
from datastill.modalities.interactions_log import TEST, TRAIN, VALIDATION, Log, SplitRule, distinct, k_core
from datastill.modalities.interactions_store import Splits

NAMES = {TRAIN: "train", VALIDATION: "valid", TEST: "test"}


def log_of(pairs: list[tuple[int, int]], times: Any = None, parts: Any = None) -> Log:
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Log(
        users,
        items,
        None if times is None else np.array(times, dtype=np.float64),
        None if parts is None else np.array(parts, dtype=np.int8),
    )


def table_of(pairs: list[tuple[int, int]], times: Any = None, parts: Any = None) -> dict[str, Any]:
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    found = {"user": users, "item": items}
    if times is not None:
        found["time"] = np.asarray(times)
    if parts is not None:
        found["part"] = np.array([NAMES[part] for part in parts])
    return found


def pairs_of(log: Log) -> list[tuple[int, int]]:
    return list(zip(log.users.tolist(), log.items.tolist()))


def pairs_in(splits: Splits) -> list[tuple[int, int]]:
    whole = (splits.train + splits.validation + splits.test).tocoo()
    return sorted(zip(splits.user_ids[whole.row].tolist(), splits.item_ids[whole.col].tolist()))


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
    with pytest.raises(InputError, match=r"repeated .* \(3, 4\)"):
        read_interactions(table_of([(3, 4), (5, 1), (3, 4), (3, 4)]), duplicates="refuse")
    pairs = block(4, 5)
    assert pairs_in(read_interactions(table_of(pairs), duplicates="refuse")) == pairs
    with pytest.raises(InputError, match="'once' or 'refuse', got 'last'"):
        read_interactions(table_of(pairs), duplicates="last")


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
    log = distinct(log_of(pairs))
    halves = [(log.users[part], log.items[part]) for part in (slice(0, 20), slice(20, None))]
    if left:
        users, items = k_core(lambda: halves, 7, 7, k)
        assert pairs_of(log.keep(users[log.users] & items[log.items])) == sorted(left)
    else:
        with pytest.raises(InputError, match=f"core={k} leaves no interaction"):
            k_core(lambda: halves, 7, 7, k)


def test_ids_outside_of_the_core_are_gone() -> None:
    pairs = [*block(6, 5), (77, 0), (3, 99)]
    assert pairs_in(read_interactions(table_of(pairs), core=2)) == block(6, 5)


@pytest.mark.parametrize("order", ["random", "time"])
def test_splits_cover_the_log_and_have_the_stated_sizes(order: Any) -> None:
    pairs = [(user, item) for user in range(1, 30) for item in range(user)]
    splits = read_interactions(table_of(pairs, times=np.arange(len(pairs))), validation=0.1, test=0.2, split=order)
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
    first, second = (read_interactions(table_of(rows), seed=3) for rows in (pairs, shuffled))
    other = read_interactions(table_of(pairs), seed=4)
    assert (first.test != second.test).nnz == 0
    assert (first.test != other.test).nnz > 0


def test_parts_of_the_log_are_taken_over_and_validation_is_drawn_from_training() -> None:
    pairs = block(4, 10)
    parts = [TEST if item < 2 else TRAIN for _, item in pairs]
    splits = read_interactions(table_of(pairs, parts=parts), split_column="part", validation=0.25)
    assert all(splits.test[user].indices.tolist() == [0, 1] for user in range(4))
    assert splits.validation.sum(1).A1.tolist() == [2, 2, 2, 2]
    assert splits.train.sum(1).A1.tolist() == [6, 6, 6, 6]
    parts[5] = VALIDATION
    splits = read_interactions(table_of(pairs, parts=parts), split_column="part", validation=0.25)
    assert splits.validation.nnz == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, r"validation is the fraction .* \(0, 0.4\]; got 0"),
        ({"validation": 0.5}, "got 0.5"),
        ({"test": -0.1}, r"test is the fraction .* \[0, 0.4\]; got -0.1"),
        ({"test": float("nan")}, "got nan"),
        ({"split": "last"}, "'random' or 'time', got 'last'"),
        ({"split": "time"}, "needs a column of times"),
        ({"unseen": "hide"}, "'keep', 'drop' or 'refuse', got 'hide'"),
        ({"core": 0}, "core must be an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_interactions(table_of(block(3, 4)), **options)


def test_logs_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="No user has 3 distinct items"):
        read_interactions(table_of([(1, 1), (1, 2), (2, 1)]))
    with pytest.raises(InputError, match="no training interactions"):
        read_interactions(table_of([(1, 1), (1, 2)], parts=[TEST, VALIDATION]), split_column="part")
    with pytest.raises(InputError, match="The log has 1 item"):
        read_interactions(table_of([(1, 1), (2, 1)]))


def test_a_random_split_is_even() -> None:
    """Each of 20 items is held out by a tenth of 4,000 users: a binomial count, within 5 standard deviations."""
    pairs = block(4000, 20)
    parts = SplitRule(validation=0.1, test=0.1, seed=5).parts(log_of(pairs))
    for part in (VALIDATION, TEST):
        held = np.bincount(log_of(pairs).items[parts == part], minlength=20)
        assert np.abs(held - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_items_that_nobody_has_in_training() -> None:
    pairs = [*block(5, 6), (0, 50)]
    parts = [[TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TEST][item] for _, item in block(5, 6)] + [TEST]
    parts[4] = TRAIN  # user 0 trains on item 4, so only items 5 and 50 are held out and not trained on
    kept = read_interactions(table_of(pairs, parts=parts), split_column="part")
    assert kept.item_ids.tolist() == [0, 1, 2, 3, 4, 5, 50]
    dropped = read_interactions(table_of(pairs, parts=parts), split_column="part", unseen="drop")
    assert dropped.item_ids.tolist() == [0, 1, 2, 3, 4]
    assert (dropped.train != kept.train[:, :5]).nnz == 0
    assert (dropped.validation != kept.validation[:, :5]).nnz == 0
    assert dropped.test.nnz == 0
    with pytest.raises(InputError, match="2 held-out items occur in no training interaction, the first being 5"):
        read_interactions(table_of(pairs, parts=parts), split_column="part", unseen="refuse")
