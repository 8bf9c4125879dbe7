"""Split logs on disk: compressed sparse rows in shards that are mapped into memory, so that a log may be larger than it.

A store is a bundle (see `datastill.bundle`): written whole or not at all, every byte under a checksum.

    counts.npy           (3, users) int32: how many training, validation and test items each user has
    shard-00000.npy      int32 items of a range of users: first all their training items, then validation, then test
    user_ids.npy ...     the original ids; strings as UTF-8 bytes, with where each begins in user_ids_starts.npy
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from datastill.bundle import locate, read_bundle, write_bundle
from datastill.errors import ArtifactError

CONTENT = "interactions"
PARTS = ("train", "validation", "test")


Ids: TypeAlias = Any
"""Original ids by position: a NumPy array, or `TextIds`. Both have a length and give the ids at `ids[positions]`."""


class TextIds:
    """Strings by position, decoded when they are asked for.

    Args:
        content: all strings' UTF-8 bytes, one after the other.
        starts: (n + 1,) where each begins.
    """

    def __init__(self, content: np.ndarray, starts: np.ndarray) -> None:
        self.content, self.starts = content, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The ids at an array of positions, or at all of `slice(None)`."""
        at = np.arange(len(self))[index]
        low, high = self.starts[at].tolist(), self.starts[at + 1].tolist()
        return np.array([bytes(self.content[a:b]).decode() for a, b in zip(low, high)], dtype=str)


class MappedRows:
    """Users' items as 0/1 rows that lie in shards on disk; what is indexed comes as a SciPy matrix in memory.

    Args:
        blocks: for each shard its items of one part, user by user.
        users: for each shard how many users it has.
        counts: (users,) items of each user.
        width: how many items there are.
    """

    def __init__(self, blocks: Sequence[np.ndarray], users: Sequence[int], counts: np.ndarray, width: int) -> None:
        self.blocks = blocks
        self.firsts = np.concatenate(([0], np.cumsum(np.asarray(users, dtype=np.int64))))
        self.indptr = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self.shape = (len(counts), width)

    @property
    def nnz(self) -> int:
        """Interactions."""
        return int(self.indptr[-1])

    def __getitem__(self, index: Any) -> sp.csr_matrix:
        """The users at an array of positions, or in a slice, as a float32 CSR matrix with sorted columns."""
        users = np.atleast_1d(np.arange(self.shape[0])[index])
        counts = self.indptr[users + 1] - self.indptr[users]
        starts = np.concatenate(([0], np.cumsum(counts)))
        columns = np.empty(starts[-1], dtype=np.int32)
        shards = np.searchsorted(self.firsts, users, side="right") - 1
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            within = _spread(np.zeros(len(mine), dtype=np.int64), counts[mine])
            source = self.indptr[users[mine]] - self.indptr[self.firsts[shard]]
            columns[np.repeat(starts[mine], counts[mine]) + within] = self.blocks[shard][
                np.repeat(source, counts[mine]) + within
            ]
        shape = (len(users), self.shape[1])
        return sp.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, starts), shape=shape)

    def tocsr(self) -> sp.csr_matrix:
        """All of them, in memory."""
        return self[:]


Rows: TypeAlias = Any
"""Users' items: a SciPy CSR matrix in memory, or `MappedRows` on disk. Both have shape, nnz and indptr, and give the users at
`rows[index]`."""


def _spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[u], starts[u] + 1, ... for counts[u] numbers of each u."""
    offsets = np.concatenate(([0], np.cumsum(counts)[:-1])) if len(counts) else counts
    return np.repeat(starts - offsets, counts) + np.arange(int(counts.sum()))


def blocks_of(rows: Rows, size: int = 2**16) -> Iterator[sp.csr_matrix]:
    """All users in their order, so many at a time."""
    for start in range(0, rows.shape[0], size):
        yield rows[start : start + size]


def count_items(rows: Rows) -> np.ndarray:
    """How many users have each item, (items,) int64."""
    counts = np.zeros(rows.shape[1], dtype=np.int64)
    for block in blocks_of(rows):
        counts += np.bincount(block.indices, minlength=len(counts))
    return counts


@dataclass(frozen=True)
class Splits:
    """Every user's items, split into training, validation and test.

    Attributes:
        train, validation, test: (users, items) rows of zeros and ones; no pair is in two of them.
        user_ids: (users,) original ids.
        item_ids: (items,) original ids, in memory.
        missing: by part, "validation" and "test", how many items of each user (users,) are held out beside those of the rows,
            because the rows are over the most popular items only; empty if they are over all.
        share: of all training interactions, how much the rows of `train` have.
        all_items: items of the log, those beside the rows included; 0 if there are no others.
    """

    train: Rows
    validation: Rows
    test: Rows
    user_ids: Ids
    item_ids: np.ndarray
    missing: Mapping[str, np.ndarray] = field(default_factory=dict)
    share: float = 1.0
    all_items: int = 0


@dataclass(frozen=True)
class Shard:
    """A range of users: `counts` (3, users) int32 items of each part, and the `items` themselves, part by part."""

    counts: np.ndarray
    items: np.ndarray


class ShardFolder:
    """Where shards wait on disk until a store is made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: list[np.ndarray] = []
        self.files: dict[str, bytes | Path] = {}

    def add(self, shard: Shard) -> None:
        """Take the next users."""
        name = f"shard-{len(self.counts):05d}.npy"
        np.save(self.folder / name, shard.items)
        self.files[name] = self.folder / name
        self.counts.append(shard.counts)

    def store(self, path: Path, user_ids: np.ndarray, item_ids: np.ndarray, meta: Mapping[str, Any]) -> None:
        """Write the bundle."""
        arrays = {"counts": np.concatenate(self.counts, axis=1)}
        for name, ids in (("user_ids", user_ids), ("item_ids", item_ids)):
            arrays |= _id_arrays(name, ids)
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
            self.files[f"{name}.npy"] = self.folder / f"{name}.npy"
        shards = [int(counts.shape[1]) for counts in self.counts]
        write_bundle(path, {}, {"content": CONTENT, "shards": shards, "items": len(item_ids), **meta}, self.files)


def in_memory(shards: Sequence[Shard], user_ids: np.ndarray, item_ids: np.ndarray) -> Splits:
    """Splits whose rows are SciPy matrices."""
    users = [shard.counts.shape[1] for shard in shards]
    counts = np.concatenate([shard.counts for shard in shards], axis=1)
    return _splits([shard.items for shard in shards], users, counts, user_ids, item_ids, mapped=False)


def read_meta(path: Path) -> dict[str, Any]:
    """What a store says of itself, once every byte of it has been checked.

    Raises:
        ArtifactError: there is none, or a file of it, which is named, is damaged.
    """
    _, meta = read_bundle(path)
    if meta.get("content") != CONTENT:
        raise ArtifactError(f"{path} is a datastill bundle, but holds no logs (its content: {meta.get('content')!r}).")
    return meta


def open_store(path: Path, meta: Mapping[str, Any], *, mapped: bool) -> Splits:
    """The splits of a store: on disk, or read into memory.

    Args:
        path: of the store.
        meta: what `read_meta` gave.
        mapped: whether rows and user ids stay on disk.
    """
    folder = locate(path)
    how = "r" if mapped else None
    counts = _load(folder / "counts.npy", None)
    shards = [_load(folder / f"shard-{number:05d}.npy", how) for number in range(len(meta["shards"]))]
    item_ids = _load_ids(folder, "item_ids", None)[:]
    user_ids = _load_ids(folder, "user_ids", how)
    return _splits(shards, meta["shards"], counts, user_ids if mapped else user_ids[:], item_ids, mapped=mapped)


def _splits(
    shards: Sequence[np.ndarray],
    users: Sequence[int],
    counts: np.ndarray,
    user_ids: Ids,
    item_ids: np.ndarray,
    *,
    mapped: bool,
) -> Splits:
    firsts = np.concatenate(([0], np.cumsum(users))).astype(np.int64)
    blocks: list[list[np.ndarray]] = [[] for _ in PARTS]
    for number, items in enumerate(shards):
        sizes = counts[:, firsts[number] : firsts[number + 1]].sum(1, dtype=np.int64)
        for part, block in enumerate(np.split(items, np.cumsum(sizes)[:-1])):
            blocks[part].append(block)
    made = [MappedRows(blocks[part], users, counts[part], len(item_ids)) for part in range(len(PARTS))]
    rows: list[Rows] = list(made) if mapped else [rows.tocsr() for rows in made]
    return Splits(rows[0], rows[1], rows[2], user_ids, item_ids)


def _id_arrays(name: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    if ids.dtype.kind in "iu":
        return {name: ids}
    encoded = [text.encode() for text in ids.tolist()]
    starts = np.concatenate(([0], np.cumsum([len(text) for text in encoded], dtype=np.int64)))
    return {name: np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}_starts": starts}


def _load_ids(folder: Path, name: str, how: str | None) -> Ids:
    content = _load(folder / f"{name}.npy", how)
    starts = folder / f"{name}_starts.npy"
    return TextIds(content, _load(starts, how)) if starts.exists() else content


def _load(path: Path, how: Any) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=how, allow_pickle=False)
    except ValueError as error:
        if how is not None:  # an array without elements cannot be mapped
            return np.load(path, allow_pickle=False)
        raise ArtifactError(f"{path} is not an array as datastill writes it: {error}.") from error
