"""Reading recommender logs: files (parquet, CSV, TSV, RecBole .inter), tables in memory, sparse matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datastill.errors import InputError, load_extra, require
from datastill.modalities.interactions_columns import check_finite, to_ids, to_numbers, to_parts, to_times
from datastill.modalities.interactions_log import Log

TEXT_ENDINGS = (".csv", ".tsv", ".inter")
_COMPRESSED = (".gz", ".zst")
_KNOWN = {
    "user": ("userid", "user", "uid", "useridx", "visitorid", "customerid", "reviewerid"),
    "item": (
        "itemid",
        "item",
        "iid",
        "itemidx",
        "movieid",
        "productid",
        "asin",
        "parentasin",
        "trackid",
        "songid",
        "artistid",
    ),
    "time": ("timestamp", "time", "datetime", "date", "ts"),
    "rating": ("rating", "ratings", "score", "stars"),
}


def read_interactions(
    logs: Any,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    min_rating: float | None = None,
    time_column: str | None = None,
    split_column: str | None = None,
) -> Log:
    """Read logs into memory, with ids mapped to positions.

    Args:
        logs: a path, a folder, a glob pattern or a list of paths of .parquet, .csv, .tsv and .inter files (the text ones with
            a header, possibly ending in .gz or .zst); a pandas, polars or Arrow table; a mapping of column names to arrays;
            an `Interactions` table; or a SciPy sparse matrix (users, items), whose stored non-zeros are interactions and, if
            `min_rating` is given, ratings.
        user_column, item_column: names of the id columns; None finds the usual ones (user_id, userId, user, item_id, movieId
            ...; capitals, underscores and RecBole's ":token" do not matter). Ids are strings or integers that are not negative.
        rating_column: used with `min_rating` only; None finds the usual ones.
        min_rating: keep interactions rated at least this much; None keeps all, whatever their rating.
        time_column: numbers or dates, needed for splits by time only; None finds the usual ones.
        split_column: "train", "validation" (or "valid", "val", "dev") or "test" for each interaction; None has no such column.

    Returns:
        The interactions in their order, repeated ones included. Ids in text files are integers if all of them are written
        as such (no sign, no leading zero), else strings.

    Raises:
        InputError: unreadable or empty logs, missing columns, unusable ids or ratings, nothing rated highly enough.
        MissingExtraError: files need the package duckdb.
    """
    if hasattr(logs, "tocoo"):
        named = {"user_column": user_column, "item_column": item_column, "rating_column": rating_column}
        named |= {"time_column": time_column, "split_column": split_column}
        given = [name for name, value in named.items() if value is not None]
        require(not given, f"A sparse matrix has no columns to name, but {', '.join(given)} was given.")
        return _from_matrix(logs, min_rating)
    if rating_column is not None and min_rating is None:
        raise InputError("rating_column is used with min_rating only; give min_rating, or leave rating_column out.")
    source = _open(logs)
    user = source.find("user", user_column)
    item = source.find("item", item_column)
    rating = None if min_rating is None else source.find("rating", rating_column)
    time = source.find("time", time_column, needed=time_column is not None)
    split = None if split_column is None else source.find("split", split_column)
    columns = source.fetch([name for name in (user, item, rating, time, split) if name is not None])
    if not len(columns[user]):
        raise InputError("The logs hold no interactions: the table is empty.")
    users, user_ids = to_ids(columns[user], user, source.text)
    items, item_ids = to_ids(columns[item], item, source.text)
    times = None if time is None else to_times(columns[time], time)
    parts = None if split is None else to_parts(columns[split], split)
    log = Log(users, items, user_ids, item_ids, times, parts)
    return log if rating is None else _rated(log, to_numbers(columns[rating], rating), rating, min_rating)


# --- sources ----------------------------------------------------------------------------------------------------------


class _Table:
    """Columns in memory."""

    text = False

    def __init__(self, names: Sequence[Any], column: Any) -> None:
        self.names = {str(name): name for name in names}
        self.column = column

    def find(self, role: str, name: str | None, *, needed: bool = True) -> Any:
        """The name of the column that plays `role`, as given or as found; None if it is neither needed nor there."""
        present = ", ".join(map(str, self.names)) or "none"
        if name is not None:
            plain = {re.sub(r":[a-z_]+$", "", known): known for known in self.names}
            if name in self.names or name in plain:
                return name if name in self.names else plain[name]
            raise InputError(f"{role}_column={name!r} is not a column of the logs; there are: {present}.")
        usual = [known for known in self.names if _plain(known) in _KNOWN.get(role, ())]
        if len(usual) == 1:
            return usual[0]
        if not needed:
            return None
        if usual:
            raise InputError(
                f"The logs have several columns for {role}: {', '.join(usual)}; choose with {role}_column."
            )
        raise InputError(
            f"The logs have no column that looks like {role}; name it with {role}_column. There are: {present}."
        )

    def fetch(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns by name; missing values are NaN, NaT, None or masked."""
        found = {name: np.asarray(self.column(self.names[name])) for name in names}
        if len({len(column) for column in found.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(column)}" for name, column in found.items())
            raise InputError(f"The columns of the logs must have equal lengths, but {lengths}.")
        return found


class _Files(_Table):
    """Columns of files, read by DuckDB. Text is read as strings, so that an id like 007 stays what it is."""

    def __init__(self, paths: list[str], ending: str) -> None:
        self.duckdb = load_extra("duckdb", "interactions")
        self.connection = self.duckdb.connect(config={"autoinstall_known_extensions": "false"})
        self.text = ending in TEXT_ENDINGS
        self.paths = paths
        if ending == ".parquet":
            self.scan = "read_parquet($paths, union_by_name = true)"
        else:
            # skip = 0: without it DuckDB passes over whatever first lines do not look like the others.
            dialect = {
                ".csv": "delim = ',', quote = '\"'",
                ".tsv": "delim = '\t', quote = '\"'",
                ".inter": "delim = '\t', quote = ''",
            }
            options = f"header = true, all_varchar = true, skip = 0, union_by_name = true, {dialect[ending]}"
            self.scan = f"read_csv($paths, {options})"
        described = self._run(f"DESCRIBE SELECT * FROM {self.scan}").fetchall()
        super().__init__([row[0] for row in described], None)

    def fetch(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in dict.fromkeys(names))
        found = self._run(f"SELECT {quoted} FROM {self.scan}").fetchnumpy()
        return {name: found[name] for name in names}

    def _run(self, query: str) -> Any:
        try:
            return self.connection.execute(query, {"paths": self.paths})
        except self.duckdb.Error as error:
            reason = " ".join(str(error).split("\n\n")[0].split())[:300].rstrip(". ")
            raise InputError(f"The logs could not be read ({_some(self.paths)}): {reason}.") from error


def _open(logs: Any) -> _Table:
    if isinstance(logs, str | Path) or (
        isinstance(logs, list | tuple) and all(isinstance(p, str | Path) for p in logs)
    ):
        paths = _paths(logs)
        endings = {_ending(path) for path in paths}
        if len(endings) > 1:
            raise InputError(f"The logs must be files of one kind, got {', '.join(sorted(endings))}.")
        return _Files([str(path) for path in paths], endings.pop())
    if isinstance(logs, Mapping):
        return _Table(list(logs), lambda name: logs[name])
    if callable(getattr(logs, "columns", None)):  # Interactions
        columns = logs.columns()
        return _Table(list(columns), lambda name: columns[name])
    if hasattr(logs, "column_names"):  # Arrow
        return _Table(logs.column_names, lambda name: logs.column(name).to_numpy())
    if hasattr(logs, "columns") and hasattr(logs, "__getitem__"):  # pandas, polars
        return _Table(list(logs.columns), lambda name: logs[name].to_numpy())
    raise InputError(
        "logs must be a path, a list of paths, a pandas, polars or Arrow table, a mapping of columns, or a SciPy sparse "
        f"matrix; got {type(logs).__name__}."
    )


def _paths(logs: Any) -> list[Path]:
    found: list[Path] = []
    for given in [logs] if isinstance(logs, str | Path) else logs:
        path = Path(given)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.is_file() and _known_ending(file))
            require(bool(inside), f"The folder {path} holds no .parquet, .csv, .tsv or .inter file.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            matches = sorted(
                file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file()
            )
            require(bool(matches), f"There is no file {str(given)!r}; check the path of the logs.")
            found += matches
    require(bool(found), "logs is an empty list of files; give at least one.")
    for path in found:
        require(
            _known_ending(path),
            f"logs must be .parquet, .csv, .tsv or .inter files (.gz and .zst allowed), got {path}.",
        )
        require(path.stat().st_size > 0, f"The file {path} is empty (0 bytes).")
    return found


def _ending(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return name.suffix.lower()


def _known_ending(path: Path) -> bool:
    return _ending(path) in TEXT_ENDINGS or path.suffix.lower() == ".parquet"


def _from_matrix(logs: Any, min_rating: float | None) -> Log:
    entries = logs.tocoo()
    values = np.asarray(entries.data, dtype=np.float64)
    check_finite(values, "the matrix")
    stored = values != 0
    users, items, values = entries.row[stored].astype(np.int64), entries.col[stored].astype(np.int64), values[stored]
    if not len(users):
        raise InputError("The logs hold no interactions: the matrix has no non-zero entry.")
    log = Log(users, items, np.arange(logs.shape[0]), np.arange(logs.shape[1]))
    if min_rating is not None:
        return _rated(log, values, "matrix", min_rating)
    require(
        bool((values > 0).all()),
        "The matrix has negative entries; give min_rating to say from which value on an entry is an interaction.",
    )
    return log.keep(np.ones(len(users), dtype=bool))


def _rated(log: Log, ratings: np.ndarray, name: str, least: float | None) -> Log:
    chosen = ratings >= least
    if not chosen.any():
        raise InputError(
            f"min_rating={least} leaves no interaction: the ratings in {name!r} go from {ratings.min()} to {ratings.max()}."
        )
    return log.keep(chosen)


def _plain(name: str) -> str:
    return re.sub(r":[a-z_]+$", "", name.lower()).replace("_", "").replace(" ", "")


def _some(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
