"""Logs with more items than a summary's users can have weights for: the most popular items alone, the others counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from datastill.errors import check_count
from datastill.modalities.interactions_store import Rows, Splits, blocks_of, count_items


class NarrowRows:
    """Rows of users over some of the items, read through like the rows that they are part of.

    Args:
        rows: over all items.
        place: (all items,) the position of an item among those that are kept, or -1; ascending.
    """

    def __init__(self, rows: Rows, place: np.ndarray) -> None:
        self.rows, self.place = rows, place
        counts = [np.diff(self._narrow(block).indptr) for block in blocks_of(rows)]
        self.indptr = np.concatenate(([0], np.cumsum(np.concatenate(counts), dtype=np.int64)))
        self.shape = (rows.shape[0], int(place.max()) + 1)

    @property
    def nnz(self) -> int:
        """Interactions with items that are kept."""
        return int(self.indptr[-1])

    def __getitem__(self, index: Any) -> sp.csr_matrix:
        """The users at an array of positions, or in a slice, as a float32 CSR matrix with sorted columns."""
        return self._narrow(self.rows[index])

    def _narrow(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        columns = self.place[rows.indices]
        kept = columns >= 0
        starts = np.concatenate(([0], np.cumsum(kept)))[rows.indptr]
        return sp.csr_matrix((rows.data[kept], columns[kept], starts), shape=(rows.shape[0], int(self.place.max()) + 1))


def most_popular(splits: Splits, items: int | None) -> Splits:
    """The splits over the `items` items with most training interactions (ties in the order of ids); None keeps all.

    What is held out of the others cannot be found by a recommender of these items. It is not forgotten: `missing` of the result
    says how much there is of each user, and scores count it as misses.
    """
    every = len(splits.item_ids)
    if items is None or check_count("max_items", items, least=2) >= every:
        return splits
    counts = count_items(splits.train)
    kept = np.sort(np.argsort(-counts, kind="stable")[:items])
    place = np.full(every, -1, dtype=np.int32)
    place[kept] = np.arange(items)
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    narrow = {name: NarrowRows(rows, place) for name, rows in parts.items()}
    missing = {name: np.diff(parts[name].indptr) - np.diff(narrow[name].indptr) for name in ("validation", "test")}
    share = float(counts[kept].sum() / counts.sum())
    return replace(splits, **narrow, item_ids=splits.item_ids[kept], missing=missing, share=share, all_items=every)
