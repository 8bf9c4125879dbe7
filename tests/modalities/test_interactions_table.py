"""The table of interactions and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datastill.errors import InputError
from datastill.modalities.interactions_coded import CodedLog
from datastill.modalities.interactions_table import Interactions, positions

TABLE = Interactions(np.array([0, 0, 1]), np.array(["b", "x y", "b"]), np.array([1.0, 0.5, 0.25], dtype=np.float32))


def pairs_in(path: Path, **options: Any) -> list[tuple[Any, Any]]:
    with CodedLog(path, **options) as coded:
        logs = list(coded.chunks(10**6))
        return [
            pair for log in logs for pair in zip(coded.user_ids[log.users].tolist(), coded.item_ids[log.items].tolist())
        ]


# Ids that all look like integers are integers when text is read; so these begin with a letter.
item_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6).map("x{}".format)


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "inter"])
@given(items=st.lists(item_names, min_size=1, max_size=6, unique=True), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_can_be_read(ending: str, items: list[str], seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 4, len(items))
    weights = rng.choice(np.array([0.25, 0.5, 1.0], dtype=np.float32), len(items))
    path = tmp_path / f"small.{ending}"
    table = Interactions(users, np.array(items), weights)
    if ending == "inter" and any(mark in item for item in items for mark in "\t\r\n"):
        with pytest.raises(InputError, match="contains a tab or a line break"):
            table.save(path)
        return
    table.save(path)
    expected = sorted(zip(users.tolist(), items))
    assert sorted(pairs_in(path)) == expected
    some = [pair for pair, weight in zip(zip(users.tolist(), items), weights) if weight >= 0.5]
    if some:
        assert sorted(pairs_in(path, rating_column="weight", min_rating=0.5)) == sorted(some)


def test_recbole_reads_the_header(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "small.inter")
    lines = (tmp_path / "small.inter").read_text().splitlines()
    assert lines[:2] == ["user_id:token\titem_id:token\tweight:float", "0\tb\t1.0"]


def test_csr_has_rows_of_users_and_columns_of_items() -> None:
    found, users, items = TABLE.to_csr()
    assert found.toarray().tolist() == [[1, 0.5], [0.25, 0]]
    assert (users.tolist(), items.tolist()) == ([0, 1], ["b", "x y"])
    catalogue = np.array(["z", "x y", "b"])
    assert TABLE.to_csr(catalogue)[0].toarray().tolist() == [[0, 0.5, 1], [0, 0, 0.25]]


def test_pandas_has_the_same_columns() -> None:
    frame = TABLE.to_pandas()
    assert list(frame.columns) == ["user_id", "item_id", "weight"]
    assert frame["weight"].tolist() == [1.0, 0.5, 0.25]
    assert list(Interactions(TABLE.users, TABLE.items).to_pandas().columns) == ["user_id", "item_id"]


def test_counts() -> None:
    assert (len(TABLE), TABLE.num_users, TABLE.num_items) == (3, 2, 2)
    assert repr(TABLE) == "Interactions(3 rows, 2 users, 2 items, weighted)"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 repeated"):
        Interactions(np.array([0, 0]), np.array([1, 1])).to_csr()
    with pytest.raises(InputError, match="1 item ids are not in the target dataset, the first being 'b'"):
        TABLE.to_csr(np.array(["x y", "z"]))
    with pytest.raises(InputError, match="item ids are strings, but those of the target dataset are integers"):
        TABLE.to_csr(np.array([1, 2]))
    with pytest.raises(InputError, match="equal lengths"):
        Interactions(np.array([0, 0]), np.array([1]))
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        TABLE.save(tmp_path / "small.xlsx")
    with pytest.raises(InputError, match="contains a tab"):
        Interactions(np.array([0]), np.array(["a\tb"])).save(tmp_path / "small.inter")


def test_positions_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    catalogue = rng.permutation(50)
    ids = rng.choice(catalogue, 200)
    where = {int(item): place for place, item in enumerate(catalogue)}
    assert positions(ids, catalogue).tolist() == [where[int(item)] for item in ids]
