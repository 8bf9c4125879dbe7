"""Reading logs of every kind, and saying what is wrong with bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from datastill.errors import InputError
from datastill.modalities.interactions_coded import CodedLog
from datastill.modalities.interactions_log import TEST, TRAIN, VALIDATION
from datastill.modalities.interactions_table import Interactions

USERS, ITEMS, RATINGS = [7, 7, 2, 30], [11, 5, 5, 11], [5.0, 2.0, 4.0, 1.0]
PAIRS = [(2, 5), (7, 5), (7, 11), (30, 11)]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"userId": USERS, "movieId": ITEMS, "rating": RATINGS, "timestamp": [4, 3, 2, 1]})


def rows_of(logs: Any, rows: int = 2**20, **options: Any) -> dict[tuple[Any, Any], tuple[Any, Any]]:
    """The pairs of a log in order of users, each with its time and part."""
    found: dict[tuple[Any, Any], tuple[Any, Any]] = {}
    with CodedLog(logs, timed=True, **options) as coded:
        for log in coded.chunks(rows):
            nothing = [None] * len(log)
            times = nothing if log.times is None else log.times.tolist()
            parts = nothing if log.parts is None else log.parts.tolist()
            pairs = zip(coded.user_ids[log.users].tolist(), coded.item_ids[log.items].tolist())
            found.update(zip(pairs, zip(times, parts)))
    return found


def pairs_of(logs: Any, **options: Any) -> list[tuple[Any, Any]]:
    return sorted(rows_of(logs, **options))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- what can be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "inter", "csv.gz"])
def test_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"log.{ending}"
    if ending == "parquet":
        frame().to_parquet(path)
    elif ending == "inter":
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        path.write_text(header + frame().to_csv(sep="\t", header=False, index=False))
    elif ending == "csv.gz":
        path.write_bytes(gzip.compress(frame().to_csv(index=False).encode()))
    else:
        frame().to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    rows = rows_of(path)
    assert sorted(rows) == PAIRS
    assert {pair: time for pair, (time, _) in rows.items()} == {(7, 11): 4, (7, 5): 3, (2, 5): 2, (30, 11): 1}
    assert pairs_of(str(path), min_rating=4) == [(2, 5), (7, 11)]


def test_tables_in_memory() -> None:
    import polars as pl
    import pyarrow as pa

    columns = {"userId": USERS, "movieId": ITEMS, "rating": RATINGS}
    for table in (frame(), pl.DataFrame(columns), pa.table(columns), columns):
        assert pairs_of(table) == PAIRS
        assert pairs_of(table, min_rating=4) == [(2, 5), (7, 11)]
    categories = frame().assign(userId=pd.Categorical(["b", "b", "a", "c"]))
    assert pairs_of(categories) == [("a", 5), ("b", 5), ("b", 11), ("c", 11)]


def test_what_is_exported_can_be_read() -> None:
    assert pairs_of(Interactions(np.array(USERS), np.array(ITEMS))) == PAIRS


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_array])
def test_sparse_matrices(kind: Any) -> None:
    matrix = kind(np.array([[0, 5, 2], [0, 0, 0], [0, 0, 4]]))
    assert pairs_of(matrix) == [(0, 1), (0, 2), (2, 2)]
    assert pairs_of(matrix, min_rating=4) == [(0, 1), (2, 2)]


def test_folders_globs_and_lists_hold_all_their_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "user,item\n1,2\n")
    second = write(tmp_path / "b.csv", "item,user\n4,3\n")
    write(tmp_path / "notes.txt", "not a log")
    for logs in (tmp_path, tmp_path / "*.csv", [first, second]):
        assert pairs_of(logs) == [(1, 2), (3, 4)]


def test_ids_in_text_stay_as_written(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item\n007,b c\n7,a\n")
    assert pairs_of(path) == [("007", "b c"), ("7", "a")]


def test_string_ids_and_integer_valued_floats() -> None:
    log = {"user": np.array(["b", "a"], dtype=object), "item": np.array([3.0, 1.0])}
    assert repr(pairs_of(log)) == "[('a', 1), ('b', 3)]"


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = {"who": [1, 2], "what": [3, 4], "user": [9, 9], "fold": ["train", "valid"]}
    rows = rows_of(table, user_column="who", item_column="what", split_column="fold")
    assert {pair: part for pair, (_, part) in rows.items()} == {(1, 3): TRAIN, (2, 4): VALIDATION}
    path = write(tmp_path / "log.inter", "uid:token\tclick:token\tpart:token\n1\t2\ttest\n")
    assert rows_of(path, item_column="click", split_column="part") == {(1, 2): (None, TEST)}


def test_dates_are_times(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,date\n1,2,2024-05-31\n1,3,2024-06-01 12:00:00\n")
    in_memory = pd.DataFrame(
        {"user": [1, 1], "item": [2, 3], "date": pd.to_datetime(["2024-05-31 00:00", "2024-06-01 12:00"])}
    )
    for logs in (path, in_memory):
        rows = rows_of(logs)
        assert rows[1, 3][0] - rows[1, 2][0] == pytest.approx(36 * 3600 * 1e6)


def test_the_input_is_left_as_it_is() -> None:
    table = frame()
    pairs_of(table, min_rating=3)
    pd.testing.assert_frame_equal(table, frame())


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(logs: Any, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pairs_of(logs, **options)
    assert str(caught.value)[-1] == "."


def test_missing_columns_are_named_with_those_that_are_there() -> None:
    refused({"user": [1], "thing": [2]}, "no column that looks like item.*item_column.*There are: user, thing")
    refused(frame(), "user_column='who' is not a column.*userId, movieId, rating, timestamp", user_column="who")
    refused({"user": [1], "uid": [1], "item": [1]}, "several columns for user: user, uid; choose with user_column")
    refused({"user": [1], "item": [1]}, "no column that looks like rating", min_rating=3)
    refused({"user": [1], "item": [1]}, "time_column='when' is not a column", time_column="when")


def test_empty_logs(tmp_path: Path) -> None:
    refused({"user": [], "item": []}, "no interactions")
    refused(frame()[:0], "no interactions")
    refused(sp.csr_matrix((3, 4)), "no non-zero entry")
    refused(write(tmp_path / "empty.csv", ""), r"empty.csv is empty \(0 bytes\)")
    refused(write(tmp_path / "head.csv", "user,item\n"), "no interactions")
    refused([], "empty list")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "holds no .parquet")


def test_nothing_rated_highly_enough() -> None:
    refused(frame(), "min_rating=6 leaves no interaction: the ratings in 'rating' go from 1.0 to 5.0", min_rating=6)
    refused(sp.csr_matrix(np.array([[1.0, 2.0]])), "min_rating=6 leaves no interaction", min_rating=6)


def test_unusable_ratings() -> None:
    refused({"user": [1, 1], "item": [1, 2], "rating": [1.0, np.nan]}, "'rating' has 1 missing values", min_rating=1)
    refused({"user": [1, 1], "item": [1, 2], "rating": [1.0, np.inf]}, "must be finite; entry 1 is inf", min_rating=1)
    refused({"user": [1], "item": [1], "rating": ["good"]}, "must hold numbers", min_rating=1)
    refused(frame(), "used with min_rating only", rating_column="rating")
    refused(sp.csr_matrix(np.array([[1.0, -2.0]])), "negative entries; give min_rating")
    refused(sp.csr_matrix(np.array([[1.0, np.nan]])), "must be finite")


def test_unusable_ids(tmp_path: Path) -> None:
    refused({"user": [1.0, np.nan], "item": [1, 2]}, "'user' has 1 missing ids, the first in row 1")
    refused({"user": np.array(["a", None], dtype=object), "item": [1, 2]}, "'user' has 1 missing ids")
    refused({"user": [1, -1], "item": [1, 2]}, "'user' has negative ids, the least being -1")
    refused({"user": [1, 2], "item": [1.5, 2.0]}, "'item' has ids that are not whole numbers, the first in row 0")
    refused({"user": np.array(["a", 1], dtype=object), "item": [1, 2]}, "values of one type.* int, str")
    refused({"user": ["", "a"], "item": [1, 2]}, "empty string")
    refused({"user": [True, False], "item": [1, 2]}, "strings or integers, got bool")
    refused(write(tmp_path / "log.csv", "user,item\n1,\n2,3\n"), "'item' has 1 missing ids, the first in row 0")


def test_unusable_splits_and_shapes() -> None:
    refused({"user": [1], "item": [2], "part": ["hold"]}, "it also holds hold", split_column="part")
    refused({"user": [1, 2], "item": [3]}, "equal lengths, but user has 2, item has 1")
    refused(sp.eye(3).tocsr(), "has no columns to name, but user_column", user_column="u")
    refused(3, "logs must be a path.*got int")


def test_files_of_mixed_types(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "a.parquet")
    frame().astype({"movieId": str}).to_parquet(tmp_path / "b.parquet")
    refused(tmp_path, r"'movieId' holds strings in .*b.parquet and numbers in .*a.parquet; write it with one type")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ending", ["parquet", "csv.gz"])
def test_files_that_were_cut_off(tmp_path: Path, ending: str, kept: float) -> None:
    rows = pd.concat([frame()] * 2000)
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    rows.to_parquet(whole) if ending == "parquet" else rows.to_csv(whole, index=False)
    cut.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    refused(cut, r"could not be read .*cut\.")


def test_unreadable_files(tmp_path: Path) -> None:
    whole = tmp_path / "log.parquet"
    frame().to_parquet(whole)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(whole.read_bytes()[:-20])
    refused(broken, "could not be read .*broken.parquet")
    refused(tmp_path / "none.csv", "There is no file")
    refused(write(tmp_path / "log.json", "{}"), "must be .parquet, .csv, .tsv or .inter files")
    refused(write(tmp_path / "bad.tsv", "user\titem\n1\t2\n3\t4\t5\t6\n"), "could not be read .*bad.tsv")
    refused([whole, write(tmp_path / "log.csv", "user,item\n1,2\n")], "files of one kind, got .csv, .parquet")
