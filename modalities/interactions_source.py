"""Where recommender logs come from: files, tables and sparse matrices of any kind, as one relation of a DuckDB connection."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datastill.errors import InputError, load_extra, require

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
_DIALECTS = {
    ".csv": "delim = ',', quote = '\"'",
    ".tsv": "delim = '\t', quote = '\"'",
    ".inter": "delim = '\t', quote = ''",
}


class Source:
    """Logs as a relation `logs` of named columns, of which only those that are asked for are read.

    Args:
        logs: a path, a folder, a glob pattern or a list of paths of .parquet, .csv, .tsv and .inter files (the text ones with
            a header, possibly ending in .gz or .zst); a pandas, polars or Arrow table; a mapping of column names to arrays;
            an `Interactions` table; or a SciPy sparse matrix (users, items), whose stored non-zeros are interactions.
        connection: of DuckDB, where the relation is made.

    Attributes:
        names: of the columns.
        text: whether ids come from text, where an integer and a string look alike.
        matrix: whether it is a sparse matrix: its columns are then "row", "column" and "value".
        identity: what tells these logs from others without reading them, JSON-able; None for tables in memory.

    Raises:
        InputError: logs of no known kind, files that are not there, empty, cut off or of several kinds.
    """

    def __init__(self, logs: Any, connection: Any) -> None:
        self.connection = connection
        self.text = False
        self.matrix = hasattr(logs, "tocoo")
        self.identity: list[Any] | None = None
        self._where = "the logs"
        if self.matrix:
            self._columns = _matrix_columns(logs)
        elif _are_files(logs):
            self._open_files(_paths(logs))
            return
        else:
            self._columns = _table_columns(logs)
        self.names = {str(name): name for name in self._columns}

    def _open_files(self, paths: list[Path]) -> None:
        endings = {_ending(path) for path in paths}
        if len(endings) > 1:
            raise InputError(f"The logs must be files of one kind, got {', '.join(sorted(endings))}.")
        ending = endings.pop()
        self._paths = [str(path) for path in paths]
        self._where = _some(self._paths)
        self.identity = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        self.text = ending in TEXT_ENDINGS
        if self.text:
            # skip = 0: without it DuckDB passes over whatever first lines do not look like the others.
            options = f"header = true, all_varchar = true, skip = 0, union_by_name = true, {_DIALECTS[ending]}"
            self._scan = f"read_csv({_literals(self._paths)}, {options})"
        else:
            self._scan = f"read_parquet({_literals(self._paths)}, union_by_name = true)"
        self.names = {row[0]: row[0] for row in self.run(f"DESCRIBE SELECT * FROM {self._scan}").fetchall()}

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

    def provide(self, names: Sequence[str]) -> dict[str, str]:
        """Make the relation `logs` of these columns, and give their DuckDB types.

        Text is parsed once, into a table; typed files and tables in memory are read where they lie.
        """
        names = list(dict.fromkeys(names))
        if self.identity is None:
            lengths = {name: _length(self._columns[self.names[name]]) for name in names}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
                raise InputError(f"The columns of the logs must have equal lengths, but {told}.")
            arrow = load_extra("pyarrow", "interactions")
            arrays = {name: _to_arrow(self._columns[self.names[name]], name) for name in names}
            self.connection.register("logs", arrow.table(arrays))
        else:
            if not self.text:
                self._refuse_mixed_files(names)
            kind = "TEMP TABLE" if self.text else "TEMP VIEW"
            self.run(f"CREATE {kind} logs AS SELECT {', '.join(map(quoted, names))} FROM {self._scan}")
        return {row[0]: row[1] for row in self.run("DESCRIBE SELECT * FROM logs").fetchall()}

    def _refuse_mixed_files(self, names: Sequence[str]) -> None:
        """DuckDB would unite integers of one file with strings of another as strings."""
        if len(self._paths) == 1:
            return
        scan = f"parquet_schema({_literals(self._paths)})"
        for name in names:
            rows = self.run(f"SELECT file_name, type FROM {scan} WHERE name = {_literal(name)}").fetchall()
            kinds = {"strings" if kind == "BYTE_ARRAY" else "numbers": file for file, kind in rows}
            if len(kinds) > 1:
                raise InputError(
                    f"Column {name!r} holds strings in {kinds['strings']} and numbers in {kinds['numbers']}; "
                    "write it with one type in all files."
                )

    def run(self, query: str) -> Any:
        """The result of a query; an `InputError` says what DuckDB could not read."""
        duckdb = load_extra("duckdb", "interactions")
        try:
            return self.connection.execute(query)
        except duckdb.IOException as error:
            if "No space left" in str(error) or "temp_directory" in str(error):
                raise
            raise InputError(self._unreadable(error)) from error
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise InputError(self._unreadable(error)) from error

    def _unreadable(self, error: Exception) -> str:
        reason = " ".join(str(error).split("\n\n")[0].split())[:300].rstrip(". ")
        return f"The logs could not be read ({self._where}): {reason}."


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _literals(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_literal, texts))}]"


# --- files ------------------------------------------------------------------------------------------------------------


def _are_files(logs: Any) -> bool:
    return isinstance(logs, str | Path) or (
        isinstance(logs, list | tuple) and all(isinstance(path, str | Path) for path in logs)
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


def _plain(name: str) -> str:
    return re.sub(r":[a-z_]+$", "", name.lower()).replace("_", "").replace(" ", "")


def _some(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


# --- memory -----------------------------------------------------------------------------------------------------------


class _Lazy(Mapping[Any, Any]):
    """Columns that are fetched when they are asked for."""

    def __init__(self, names: Sequence[Any], fetch: Callable[[Any], Any]) -> None:
        self._names, self._fetch = list(names), fetch

    def __getitem__(self, name: Any) -> Any:
        return self._fetch(name)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _table_columns(logs: Any) -> Mapping[Any, Any]:
    if isinstance(logs, Mapping):
        return logs
    if callable(getattr(logs, "columns", None)):  # Interactions
        found: Mapping[Any, Any] = logs.columns()
        return found
    if hasattr(logs, "column_names"):  # Arrow
        return _Lazy(logs.column_names, logs.column)
    if hasattr(logs, "columns") and hasattr(logs, "__getitem__"):  # pandas, polars
        return _Lazy(list(logs.columns), lambda name: logs[name])
    raise InputError(
        "logs must be a path, a list of paths, a pandas, polars or Arrow table, a mapping of columns, or a SciPy sparse "
        f"matrix; got {type(logs).__name__}."
    )


def _matrix_columns(logs: Any) -> Mapping[Any, Any]:
    entries = logs.tocoo()
    values = np.asarray(entries.data, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise InputError(f"The ratings in the matrix must be finite; entry {broken[0]} is {values[broken[0]]}.")
    stored = values != 0
    if not stored.any():
        raise InputError("The logs hold no interactions: the matrix has no non-zero entry.")
    return {"row": entries.row[stored], "column": entries.col[stored], "value": values[stored]}


def _length(column: Any) -> int:
    try:
        return len(column)
    except TypeError as error:
        raise InputError(f"A column of the logs must be an array, got {type(column).__name__}.") from error


def _to_arrow(column: Any, name: str) -> Any:
    """A column as an Arrow array; NaN of floats is missing, as in pandas."""
    arrow = load_extra("pyarrow", "interactions")
    if isinstance(column, arrow.Array | arrow.ChunkedArray):
        return column
    if hasattr(column, "to_arrow"):  # polars
        return column.to_arrow()
    try:
        return arrow.array(column, from_pandas=True)
    except (arrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = sorted({type(value).__name__ for value in column if value is not None})
        raise InputError(
            f"Column {name!r} must hold values of one type, strings or numbers; it holds {', '.join(kinds[:5])}."
        ) from error
