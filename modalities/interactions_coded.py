"""A log as pairs of small integers, out of core: ids are mapped and rows brought together by user in DuckDB, which spills."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from datastill.errors import InputError, load_extra, require
from datastill.modalities.interactions_log import PARTS, Log
from datastill.modalities.interactions_source import Source, quoted

_WHOLE = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
)
_REAL = ("FLOAT", "DOUBLE")
_BATCH = 2**18


class CodedLog:
    """Logs with ids mapped to positions, in chunks of whole users.

    Use it in a `with` block, for as long as which its tables lie in `folder`.

    Args:
        logs: see `Source`.
        user_column, item_column: names of the id columns; None finds the usual ones (user_id, userId, user, item_id, movieId
            ...; capitals, underscores and RecBole's ":token" do not matter). Ids are strings or integers that are not negative.
        rating_column: used with `min_rating` only; None finds the usual ones.
        min_rating: keep interactions rated at least this much; None keeps all, whatever their rating.
        time_column: numbers or dates; None finds the usual ones if `timed`.
        split_column: "train", "validation" (or "valid", "val", "dev") or "test" for each interaction; None has no such column.
        timed: whether times are read.
        folder: where tables lie that do not fit into memory, made anew and removed in the end; None is a temporary one.
        memory: what DuckDB may take, such as "400MB".

    Attributes:
        folder: where whoever works on the log may keep files until it is closed.
        user_ids, item_ids: sorted distinct ids, integers or strings. Ids of text files are integers if all of them are written
            as such (no sign, no leading zero), else strings.
        counts: (users,) int64 rows of each user, repeated ones included.

    Raises:
        InputError: unreadable or empty logs, missing columns, unusable ids or ratings, nothing rated highly enough.
        MissingExtraError: without the packages duckdb and pyarrow.
    """

    def __init__(
        self,
        logs: Any,
        *,
        user_column: str | None = None,
        item_column: str | None = None,
        rating_column: str | None = None,
        min_rating: float | None = None,
        time_column: str | None = None,
        split_column: str | None = None,
        timed: bool = False,
        folder: Path | None = None,
        memory: str = "400MB",
    ) -> None:
        if hasattr(logs, "tocoo"):
            named = {"user_column": user_column, "item_column": item_column, "rating_column": rating_column}
            named |= {"time_column": time_column, "split_column": split_column}
            given = [name for name, value in named.items() if value is not None]
            require(not given, f"A sparse matrix has no columns to name, but {', '.join(given)} was given.")
            user_column, item_column, rating_column = "row", "column", "value"
        elif rating_column is not None and min_rating is None:
            raise InputError("rating_column is used with min_rating only; give min_rating, or leave rating_column out.")
        self.folder = Path(tempfile.mkdtemp(prefix="datastill-")) if folder is None else folder
        shutil.rmtree(self.folder, ignore_errors=True)  # of a process that was killed
        self.folder.mkdir(parents=True)
        try:
            self._connect(memory)
            self.source = Source(logs, self._connection)
            self._user = self.source.find("user", user_column)
            self._item = self.source.find("item", item_column)
            rated = min_rating is not None or self.source.matrix
            self._rating = self.source.find("rating", rating_column) if rated else None
            self._time = self.source.find("time", time_column, needed=time_column is not None)
            self._split = None if split_column is None else self.source.find("split", split_column)
            self._least = min_rating
            self._timed = timed and self._time is not None
        except BaseException:
            self.close()
            raise

    @property
    def has_times(self) -> bool:
        """Whether the logs have a column of times."""
        return self._time is not None

    def _connect(self, memory: str) -> None:
        duckdb = load_extra("duckdb", "interactions")
        config = {
            "autoinstall_known_extensions": "false",
            "memory_limit": memory,
            "temp_directory": str(self.folder / "spill"),
            "preserve_insertion_order": "false",
            "threads": "2",
        }
        self._connection = duckdb.connect(str(self.folder / "log.duckdb"), config=config)

    def __enter__(self) -> Self:
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the tables and their folder."""
        if hasattr(self, "_connection"):
            self._connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        names = [self._user, self._item, self._rating, self._time if self._timed else None, self._split]
        self._types = self.source.provide([name for name in names if name is not None])
        if not self._one("SELECT count(*) FROM logs"):
            raise InputError("The logs hold no interactions: the table is empty.")
        self._where = self._check_ratings()
        users, self.user_ids = self._map_ids(self._user, "users")
        items, self.item_ids = self._map_ids(self._item, "items")
        columns = ["users.code AS user", "items.code AS item"]
        if self._timed:
            columns.append(f"{self._times()} AS time")
        if self._split is not None:
            columns.append(f"{self._parts()} AS part")
        self.source.run(
            f"CREATE TABLE log AS SELECT {', '.join(columns)} FROM logs JOIN users ON users.id = {users} "
            f"JOIN items ON items.id = {items} {self._where} ORDER BY users.code"
        )
        self._run("DROP TABLE users")
        self._run("DROP TABLE items")
        counted = self._run("SELECT user, count(*) AS rows FROM log GROUP BY user ORDER BY user").fetchnumpy()
        self.counts = np.asarray(counted["rows"], dtype=np.int64)

    def _check_ratings(self) -> str:
        """What is asked of the rows, as an SQL clause, once the ratings are known to be finite numbers."""
        if self._rating is None:
            return ""
        column = quoted(self._rating)
        if self.source.matrix and self._least is None:
            negative = self._one(f"SELECT count(*) FROM logs WHERE {column} < 0")
            require(
                not negative,
                "The matrix has negative entries; give min_rating to say from which value on an entry is an interaction.",
            )
            return ""
        value = f"TRY_CAST({column} AS DOUBLE)"
        name = "matrix" if self.source.matrix else self._rating
        self._refuse_missing(self._rating, "values")
        row, found = self._first(f"{value} IS NULL", column)
        require(row is None, f"Column {name!r} must hold numbers, but row {row} holds {found!r}.")
        row, found = self._first(f"NOT isfinite({value})", column)
        require(row is None, f"The ratings in column {name!r} must be finite; entry {row} is {found}.")
        where = f"WHERE {value} >= {float(self._least or 0)!r}"
        if not self._one(f"SELECT count(*) FROM logs {where}"):
            low, high = self._run(f"SELECT min({value}), max({value}) FROM logs").fetchall()[0]
            raise InputError(
                f"min_rating={self._least} leaves no interaction: the ratings in {name!r} go from {low} to {high}."
            )
        return where

    def _map_ids(self, name: str, table: str) -> tuple[str, np.ndarray]:
        """Make the table of ids and positions; gives the SQL of a row's id, and the ids in order."""
        column, kind = quoted(name), self._types[name]
        self._refuse_missing(name, "ids")
        if kind in _REAL or kind.startswith("DECIMAL"):
            row, _ = self._first(f"{column} != floor({column}) OR NOT isfinite({column}::DOUBLE)", column)
            require(row is None, f"Column {name!r} has ids that are not whole numbers, the first in row {row}.")
        elif kind not in _WHOLE and kind not in ("VARCHAR", "UUID") and not kind.startswith("ENUM"):
            raise InputError(f"Column {name!r} must hold strings or integers, got {kind.lower()}.")
        whole = kind in _WHOLE or kind in _REAL or kind.startswith("DECIMAL")
        if self.source.text:
            written = f"regexp_full_match({column}, '0|-?[1-9][0-9]*') AND length({column}) <= 18"
            whole = bool(
                self._one(f"SELECT bool_and({written}) FROM (SELECT DISTINCT {column} FROM logs {self._where})")
            )
        value = f"{column}::{'BIGINT' if whole else 'VARCHAR'}"
        self.source.run(
            f"CREATE TABLE {table} AS SELECT id, (row_number() OVER (ORDER BY id) - 1)::INTEGER AS code "
            f"FROM (SELECT DISTINCT {value} AS id FROM logs {self._where})"
        )
        if whole:
            least = self._one(f"SELECT min(id) FROM {table}")
            if least < 0:
                raise InputError(
                    f"Column {name!r} has negative ids, the least being {least}; such ids often mark unknowns: drop these rows."
                )
        else:
            if self._one(f"SELECT count(*) FROM {table} WHERE id = ''"):
                raise InputError(f"Column {name!r} has an empty string as id; drop these rows.")
            if self._one(f"SELECT count(*) FROM {table} WHERE contains(id, chr(0))"):
                raise InputError(f"Column {name!r} has an id with a NUL character; drop these rows.")
        return value, self._ids(table, np.int64 if whole else str)

    def _ids(self, table: str, dtype: Any) -> np.ndarray:
        reader = self._connection.sql(f"SELECT id FROM {table} ORDER BY code").to_arrow_reader(_BATCH)
        parts = [np.asarray(batch.column(0).to_numpy(zero_copy_only=False)).astype(dtype) for batch in reader]
        return np.concatenate(parts)

    def _times(self) -> str:
        """Times as DOUBLE: numbers as they are, dates in microseconds."""
        assert self._time is not None
        column, kind = quoted(self._time), self._types[self._time]
        self._refuse_missing(self._time, "values")
        if kind.startswith(("TIMESTAMP", "DATE")):
            return f"epoch_us({column})::DOUBLE"
        value = f"TRY_CAST({column} AS DOUBLE)"
        if kind == "VARCHAR":
            row, _ = self._first(f"{value} IS NULL", column)
            if row is not None:
                value = f"epoch_us(TRY_CAST({column} AS TIMESTAMP))::DOUBLE"
        row, found = self._first(f"{value} IS NULL OR NOT isfinite({value})", column)
        require(
            row is None,
            f"Column {self._time!r} must hold numbers or dates such as 2024-05-31; row {row} holds {found!r}.",
        )
        return value

    def _parts(self) -> str:
        assert self._split is not None
        column = f"{quoted(self._split)}::VARCHAR"
        found = {row[0] for row in self.source.run(f"SELECT DISTINCT {column} FROM logs").fetchall()}
        unknown = sorted(str(value) for value in found - set(PARTS))
        if unknown:
            raise InputError(
                f"Column {self._split!r} must hold train, validation or test; it also holds {', '.join(unknown[:5])}."
            )
        cases = " ".join(f"WHEN '{name}' THEN {number}" for name, number in PARTS.items())
        return f"(CASE {column} {cases} END)::TINYINT"

    def _refuse_missing(self, name: str, what: str) -> None:
        missing = self._one(f"SELECT count(*) FROM logs WHERE {quoted(name)} IS NULL")
        if missing:
            row, _ = self._first(f"{quoted(name)} IS NULL", quoted(name))
            hint = "; drop these rows" if what == "ids" else ""
            raise InputError(f"Column {name!r} has {missing} missing {what}, the first in row {row}{hint}.")

    def _first(self, condition: str, column: str) -> tuple[int | None, Any]:
        """The first row (from 0) where a condition holds, and the column's value there; None if there is none."""
        if not self._one(f"SELECT count(*) FROM logs WHERE {condition}"):
            return None, None
        self._run("SET preserve_insertion_order = true")
        numbered = f"SELECT row_number() OVER () - 1 AS place, {column} AS value FROM logs"
        inside = condition.replace(column, "value")
        row = self._run(f"SELECT place, value FROM ({numbered}) WHERE {inside} ORDER BY place LIMIT 1").fetchall()[0]
        return int(row[0]), row[1]

    def _one(self, query: str) -> Any:
        return self.source.run(query).fetchall()[0][0]

    def _run(self, query: str) -> Any:
        return self._connection.execute(query)

    # --- the coded log ------------------------------------------------------------------------------------------------

    def any_in(self, part: int) -> bool:
        """Whether a row is marked as of that part."""
        return self._split is not None and bool(self._one(f"SELECT count(*) FROM log WHERE part = {part}"))

    @property
    def marked(self) -> bool:
        """Whether the logs say which part a row is of."""
        return self._split is not None

    def chunks(self, rows: int) -> Iterator[Log]:
        """All rows, by ascending user, in chunks of whole users with about `rows` rows each."""
        ends = np.cumsum(self.counts)
        low, users = 0, len(self.counts)
        while low < users:
            before = int(ends[low - 1]) if low else 0
            high = max(low + 1, int(np.searchsorted(ends, before + rows, side="right")))
            yield self._between(low, high)
            low = high

    def _between(self, low: int, high: int) -> Log:
        found = self._run(f"SELECT * FROM log WHERE user >= {low} AND user < {high}").fetchnumpy()
        time, part = found.get("time"), found.get("part")
        return Log(
            np.asarray(found["user"], dtype=np.int32),
            np.asarray(found["item"], dtype=np.int32),
            None if time is None else np.asarray(time, dtype=np.float64),
            None if part is None else np.asarray(part, dtype=np.int8),
        )
