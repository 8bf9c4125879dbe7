"""`Interactions`: a table of (user, item[, weight]) rows with original ids, the native type of recommender logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from datastill.errors import InputError, load_extra


@dataclass(frozen=True)
class Interactions:
    """Recommender logs as parallel columns.

    Attributes:
        users: (n,) user ids, integers or strings; synthetic users are 0, 1, ...
        items: (n,) original item ids, integers or strings.
        weights: (n,) float32 > 0, how much each row counts; None if every row counts as 1.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.users, self.items, self.weights) if column is not None}
        if len(lengths) != 1:
            raise InputError("users, items and weights must have equal lengths.")

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        return f"Interactions({len(self)} rows, {self.num_users} users, {self.num_items} items{weighted})"

    @property
    def num_users(self) -> int:
        """Distinct users."""
        return len(np.unique(self.users))

    @property
    def num_items(self) -> int:
        """Distinct items."""
        return len(np.unique(self.items))

    def columns(self) -> dict[str, np.ndarray]:
        """The columns by name: user_id, item_id and, if there are weights, weight."""
        found = {"user_id": self.users, "item_id": self.items}
        return found if self.weights is None else {**found, "weight": self.weights}

    def to_pandas(self) -> Any:
        """A pandas DataFrame with the columns of `columns`."""
        return load_extra("pandas", "test").DataFrame(self.columns())

    def to_arrow(self) -> Any:
        """A pyarrow Table with the columns of `columns`."""
        return load_extra("pyarrow", "interactions").table(self.columns())

    def to_csr(self, item_ids: np.ndarray | None = None) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
        """A float32 CSR matrix (users, items) with the user ids of its rows and the item ids of its columns.

        Args:
            item_ids: distinct ids of the wanted columns, in order; None takes the table's own items, sorted.

        Raises:
            InputError: a (user, item) pair occurs twice, or an item is not in `item_ids`.
        """
        user_ids, rows = np.unique(self.users, return_inverse=True)
        if item_ids is None:
            item_ids, columns = np.unique(self.items, return_inverse=True)
        else:
            columns = positions(self.items, item_ids)
        values = np.ones(len(self), dtype=np.float32) if self.weights is None else self.weights
        found = sp.csr_matrix((values, (rows, columns)), shape=(len(user_ids), len(item_ids)), dtype=np.float32)
        if found.nnz != len(self):
            raise InputError(
                f"The interactions hold {len(self) - found.nnz} repeated (user, item) pairs; keep one row of each."
            )
        found.sort_indices()
        return found, user_ids, item_ids

    def save(self, path: str | Path) -> None:
        """Write the table; the ending of `path` decides the format.

        Args:
            path: .parquet, .csv, .tsv, or .inter (RecBole's tab-separated file with types in its header).
        """
        path = Path(path)
        if path.suffix == ".parquet":
            load_extra("pyarrow.parquet", "interactions").write_table(self.to_arrow(), path)
        elif path.suffix in (".csv", ".tsv"):
            options = load_extra("pyarrow.csv", "interactions")
            style = options.WriteOptions(delimiter="," if path.suffix == ".csv" else "\t", quoting_style="needed")
            options.write_csv(self.to_arrow(), path, style)
        elif path.suffix == ".inter":
            _write_inter(self.columns(), path)
        else:
            raise InputError(f"path must end in .parquet, .csv, .tsv or .inter, got {str(path)!r}.")


def positions(ids: np.ndarray, catalogue: np.ndarray) -> np.ndarray:
    """Where each of `ids` is in `catalogue` (distinct ids of the same kind, in any order), as int64.

    Raises:
        InputError: an id is not in the catalogue, or is of another kind (integers against strings).
    """
    if len(ids) and (ids.dtype.kind in "iu") != (catalogue.dtype.kind in "iu"):
        kinds = ["integers" if array.dtype.kind in "iu" else "strings" for array in (ids, catalogue)]
        raise InputError(f"The item ids are {kinds[0]}, but those of the target dataset are {kinds[1]}; convert them.")
    order = np.argsort(catalogue, kind="stable")
    at = np.searchsorted(catalogue, ids, sorter=order).clip(max=len(catalogue) - 1)
    found = order[at]
    unknown = catalogue[found] != ids
    if unknown.any():
        raise InputError(
            f"{len(np.unique(ids[unknown]))} item ids are not in the target dataset, the first being "
            f"{ids[unknown].tolist()[0]!r}; drop these rows."
        )
    return found


def _write_inter(columns: dict[str, np.ndarray], path: Path) -> None:
    types = {"user_id": "token", "item_id": "token", "weight": "float"}
    cells = [[str(value) for value in values] for values in columns.values()]
    if any(mark in cell for column in cells for cell in column for mark in "\t\r\n"):
        raise InputError("An id contains a tab or a line break, which a .inter file cannot hold; save as .parquet.")
    lines = ["\t".join(f"{name}:{types[name]}" for name in columns), *map("\t".join, zip(*cells))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def popularity_curve(counts: np.ndarray, points: int = 100) -> list[list[float]]:
    """[rank, share of all counts] of items from the most popular one on, at so many ranks, spread evenly in the logarithm.

    Args:
        counts: (items,) interactions or weights of each item; items without any are left out.
        points: at most so many.
    """
    ordered = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), points).round().astype(int))
    return [[int(rank), float(ordered[rank - 1] / ordered.sum())] for rank in ranks]
