"""Ranking metrics of recommenders: HR@k and nDCG@k, vectorised over users.

Toolkits give different numbers under these names. Here, as in Distill-CF (Sachdeva et al. 2022, arXiv 2206.02626), with P
the held-out items of a user: HR@k = |top-k and P| / min(|P|, k), which others call calibrated recall; nDCG@k has gain 1 for
an item of P and discount 1 / log2(rank + 1), and is divided by its value for the best ranking: min(|P|, k) hits on top.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datastill.backbones.recommender import SparseRows


def ranking_metrics(
    scores: Tensor, seen: SparseRows | None, relevant: SparseRows, cutoffs: Sequence[int]
) -> dict[str, Tensor]:
    """HR@k and nDCG@k of each user.

    Args:
        scores: (n, items), higher is better; unchanged.
        seen: items of each user that are not to be recommended; None ranks all of them. Where a user has fewer than `k`
            other items, the ranking ends with seen ones, which count as misses unless they are relevant.
        relevant: held-out items of each user, at least one for every user.
        cutoffs: the values of k; one above the number of items is the number of items.

    Returns:
        "hr@k" and "ndcg@k" for every k, each (n,) float64 in [0, 1].
    """
    users, items = scores.shape
    scores = scores.clone()
    if seen is not None:
        scores[seen.owners, seen.columns] = -torch.inf
    longest = min(max(cutoffs), items)
    top = scores.topk(longest, dim=1).indices
    wanted = torch.zeros(users, items, dtype=torch.bool, device=scores.device)
    wanted[relevant.owners, relevant.columns] = True
    hits = wanted.gather(1, top).double()
    counts = relevant.starts.diff()
    discounts = 1 / torch.arange(2, longest + 2, dtype=torch.float64, device=scores.device).log2()
    best = discounts.cumsum(0)
    found: dict[str, Tensor] = {}
    for cutoff in cutoffs:
        k = min(cutoff, longest)
        attainable = counts.clamp(max=k)
        found[f"hr@{cutoff}"] = hits[:, :k].sum(1) / attainable
        found[f"ndcg@{cutoff}"] = hits[:, :k] @ discounts[:k] / best[attainable - 1]
    return found
