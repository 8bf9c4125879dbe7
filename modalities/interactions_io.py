"""Reading recommender logs: from files, tables and matrices to users' items, split, with ids mapped, in memory or on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datastill import processes
from datastill.bundle import has_bundle
from datastill.errors import InputError, check_count, require
from datastill.modalities.interactions_coded import CodedLog
from datastill.modalities.interactions_log import TRAIN, VALIDATION, Log, SplitRule, distinct, k_core
from datastill.modalities.interactions_store import Shard, ShardFolder, Splits, in_memory, open_store, read_meta

LOADED = 2**24
"""Logs with more pairs than this stay on disk."""
SHARD_ROWS = 2**20


def read_interactions(
    logs: Any,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    split: str = "random",
    core: int = 1,
    duplicates: str = "once",
    unseen: str = "keep",
    seed: int = 0,
    store: str | Path | None = None,
    memory: str = "400MB",
    **columns: Any,
) -> Splits:
    """Read, clean and split logs of any size.

    DuckDB maps the ids and brings rows together by user, out of core; everything after that works on a million rows at a
    time. Logs of more than `LOADED` pairs stay on disk, as shards that are mapped into memory.

    Args:
        logs: see `Source`.
        validation, test, split, seed: see `SplitRule` (`split` is its `order`).
        core: every user and item keeps at least this many interactions, see `k_core`.
        duplicates: of a (user, item) pair: "once" keeps one, see `distinct`; "refuse" is an error.
        unseen: of held-out items that nobody has in training, which no recommender can find: "keep" scores them as misses,
            "drop" takes these interactions away, "refuse" is an error that names one.
        store: a folder for the log in its final form, which is found there the next time; None keeps it in memory, or for a
            large log in a temporary folder for as long as it is used.
        memory: what DuckDB may take.
        columns: names of columns, and `min_rating`: see `CodedLog`.

    Raises:
        InputError: logs that cannot be read or used; an option out of range; a store that holds something else.
        ArtifactError: a damaged file of the store, which is named.
        MissingExtraError: without the packages duckdb and pyarrow.
    """
    check_count("core", core)
    require(duplicates in ("once", "refuse"), f"duplicates must be 'once' or 'refuse', got {duplicates!r}.")
    require(unseen in ("keep", "drop", "refuse"), f"unseen must be 'keep', 'drop' or 'refuse', got {unseen!r}.")
    rule = SplitRule(validation, test, split, seed)  # type: ignore[arg-type]
    path = None if store is None else Path(store)
    place = f".work{processes.rank() or ''}"  # several processes read the logs at the same time
    work = None if path is None else path.resolve().with_name(f".{path.name}{place}")
    coded = CodedLog(logs, timed=split == "time", folder=work, memory=memory, **columns)
    if split == "time" and not coded.has_times:
        coded.close()
        raise InputError("split='time' needs a column of times; name it with time_column, or use split='random'.")
    chosen = {"rule": repr(rule), "core": core, "duplicates": duplicates, "unseen": unseen}
    identity = {"source": coded.source.identity, "columns": repr(sorted(columns.items())), **chosen}
    found_before = coded.source.identity is not None or not processes.is_main()
    if path is not None and found_before and has_bundle(path):
        coded.close()
        return _reopen(path, identity)
    with coded:
        return _Preparation(coded, rule, core, duplicates, unseen).run(path, identity)


def _reopen(path: Path, identity: dict[str, Any]) -> Splits:
    meta = read_meta(path)
    other = sorted(name for name in identity if meta.get("identity", {}).get(name) != identity[name])
    if other:
        raise InputError(
            f"store={str(path)!r} holds logs that were read from other files or with other options (they differ in: "
            f"{', '.join(other)}); delete it, or choose another folder."
        )
    return open_store(path, meta, mapped=meta["pairs"] > LOADED)


class _Preparation:
    """From a coded log to splits."""

    def __init__(self, coded: CodedLog, rule: SplitRule, core: int, duplicates: str, unseen: str) -> None:
        self.coded, self.rule, self.core, self.duplicates, self.unseen = coded, rule, core, duplicates, unseen
        self.users = np.ones(len(coded.user_ids), dtype=bool)
        self.items = np.ones(len(coded.item_ids), dtype=bool)
        self.totals = np.zeros(3, dtype=np.int64)
        self.lost = np.zeros(len(coded.item_ids), dtype=bool)

    def run(self, path: Path | None, identity: dict[str, Any]) -> Splits:
        self._check_items()
        if self.core > 1:
            self.users, self.items = self._core()
            self._check_items()
        if self.unseen != "keep":
            self._settle_unseen()
        user_ids, item_ids = self.coded.user_ids[self.users], self.coded.item_ids[self.items & ~self.lost]
        large = int(self.coded.counts.sum()) > LOADED
        if path is None and not large:
            shards = list(self._shards())
            self._check_parts()
            return in_memory(shards, user_ids, item_ids)
        folder = ShardFolder(self.coded.folder)
        for shard in self._shards():
            folder.add(shard)
        self._check_parts()
        pairs = int(self.totals.sum())
        temporary = path is None
        path = path or Path(tempfile.mkdtemp(prefix="datastill-")) / "log"
        folder.store(path, user_ids, item_ids, {"identity": identity, "pairs": pairs})
        found = open_store(path, read_meta(path), mapped=pairs > LOADED)
        if temporary:
            weakref.finalize(found.train, shutil.rmtree, path.parent, ignore_errors=True)
        return found

    def _check_items(self) -> None:
        items = int(self.items.sum())
        require(
            items >= 2,
            f"The log has {items} item; recommending needs at least 2 distinct items: check item_column.",
        )

    def _check_parts(self) -> None:
        if not self.totals[TRAIN]:
            raise InputError("The log has no training interactions: its split column marks every row as held out.")
        if not self.totals[VALIDATION]:
            raise InputError("No user has 3 distinct items, so nothing can be held out to choose a summary by.")

    # --- passes over the log ------------------------------------------------------------------------------------------

    def _distinct(self) -> Iterator[Log]:
        for log in self.coded.chunks(SHARD_ROWS):
            once = distinct(log)
            if self.duplicates == "refuse" and len(once) < len(log):
                self._refuse_repeats(log)
            yield once

    def _refuse_repeats(self, log: Log) -> None:
        order = np.lexsort((log.items, log.users))
        users, items = log.users[order], log.items[order]
        at = int(np.flatnonzero((users[1:] == users[:-1]) & (items[1:] == items[:-1]))[0])
        user, item = self.coded.user_ids[users[at]], self.coded.item_ids[items[at]]
        raise InputError(
            f"The log has repeated (user, item) pairs, the first being ({user}, {item}); duplicates='once' keeps one of each."
        )

    def _core(self) -> tuple[np.ndarray, np.ndarray]:
        files: list[tuple[Path, Path]] = []
        for number, log in enumerate(self._distinct()):
            pair = (self.coded.folder / f"users-{number}.npy", self.coded.folder / f"items-{number}.npy")
            for file, column in zip(pair, (log.users, log.items)):
                np.save(file, column)
            files.append(pair)

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for users, items in files:
                yield np.load(users), np.load(items)

        return k_core(chunks, len(self.users), len(self.items), self.core)

    def _split(self) -> Iterator[tuple[Log, np.ndarray]]:
        """Users who stay, every pair once, and the part of each interaction."""
        marks = self.coded.any_in(VALIDATION)
        for log in self._distinct():
            inside = self.users[log.users] & self.items[log.items]
            kept = log if inside.all() else log.keep(inside)
            parts = self.rule.parts(kept, marks)
            found = ~self.lost[kept.items]
            yield (kept, parts) if found.all() else (kept.keep(found), parts[found])

    def _settle_unseen(self) -> None:
        trained = np.zeros(len(self.items), dtype=bool)
        for log, parts in self._split():
            trained[log.items[parts == TRAIN]] = True
        lost = self.items & ~trained
        if self.unseen == "refuse" and lost.any():
            raise InputError(
                f"{int(lost.sum())} held-out items occur in no training interaction, the first being "
                f"{self.coded.item_ids[lost][:1].tolist()[0]!r}; unseen='keep' scores them as misses, 'drop' leaves them out."
            )
        self.lost = lost

    def _shards(self) -> Iterator[Shard]:
        """The splits of all users, in final positions."""
        item_at = np.cumsum(self.items & ~self.lost) - 1
        user_at = np.cumsum(self.users) - 1
        done, low = int(self.users.sum()), 0
        for log, parts in self._split():
            if not len(log):
                continue
            users, items = user_at[log.users], item_at[log.items].astype(np.int32)
            high = int(users[-1]) + 1
            counts = np.stack([np.bincount(users[parts == part] - low, minlength=high - low) for part in range(3)])
            self.totals += counts.sum(1)
            order = np.argsort(parts, kind="stable")
            yield Shard(counts.astype(np.int32), items[order])
            low = high
        if low < done:  # users whose every interaction was dropped
            yield Shard(np.zeros((3, done - low), dtype=np.int32), np.zeros(0, dtype=np.int32))
