"""The table of interactions and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datastill.errors import InputError
from datastill.modalities.interactions_io import read_interactions
from datastill.modalities.interactions_table import Interactions, positions

TABLE = Interactions(np.array([0, 0, 1]), np.array(["b", "x y", "b"]), np.array([1.0, 0.5, 0.25], dtype=np.float32))


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "inter"])
def test_files_hold_ids_and_weights(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"small.{ending}"
    TABLE.save(path)
    log = read_interactions(path)
    assert log.user_ids[log.users].tolist() == [0, 0, 1]
    assert log.item_ids[log.items].tolist() == ["b", "x y", "b"]
    rated = read_interactions(path, rating_column="weight", min_rating=0.5)
    assert len(rated) == 2


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
