"""From free vectors to tokens: the nearest rows of an embedding table, by cosine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill import memory
from datastill.errors import check_count


@torch.no_grad()
def nearest_rows(
    queries: Tensor, vectors: Tensor, allowed: Tensor, *, count: int = 1, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The `count` allowed rows of a table that are most alike to each query, best first; ties go to the lower row.

    The table is read in chunks, so memory grows with `queries * chunk`, not with the vocabulary; where
    it is short, chunks are smaller.

    Args:
        queries: (n, d).
        vectors: (rows, d).
        allowed: (rows,) bool, at least `count` of them true.
        count: neighbours of each query.
        chunk: rows compared at a time, at most.

    Returns:
        Cosines (n, count) and row ids (n, count) int64. A zero vector has cosine 0 with everything.
    """
    check_count("count", count)
    check_count("chunk", chunk)
    candidates = allowed.nonzero().squeeze(1)
    queries = F.normalize(queries, dim=1)
    best = queries.new_full((len(queries), 0), 0.0)
    rows = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    # A cosine, a row id and a place in the order, each of them twice; and the rows themselves, as found and normalised.
    each = 2 * (len(queries) * (queries.element_size() + 16) + vectors.shape[1] * queries.element_size())
    for part in candidates.split(memory.chunk(each, queries.device, most=chunk)):
        part = part.to(queries.device)
        cosine = queries @ F.normalize(vectors[part.to(vectors.device)].to(queries), dim=1).T
        best = torch.cat([best, cosine], dim=1)
        rows = torch.cat([rows, part.expand(len(queries), -1)], dim=1)
        # A stable sort, not topk: the earlier, lower row wins a tie, whatever the chunk.
        order = best.argsort(dim=1, descending=True, stable=True)[:, :count]
        best, rows = best.gather(1, order), rows.gather(1, order)
    return best, rows


def nearest_row(queries: Tensor, normalised: Tensor) -> Tensor:
    """Positions (n,) of the most alike rows of an already normalised table: quick enough for every optimisation step."""
    return (queries @ normalised.T).argmax(1)
