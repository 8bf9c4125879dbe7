"""How well a recommender ranks what is held out of users' histories: the metrics of the field, vectorised over users.

Toolkits give different numbers under the same names. With P the held-out items of a user and the seen ones taken out of the
ranking, this is what the names mean here; gains are 0 or 1, and only users with a held-out item count:

- hr@k = |top-k and P| / min(|P|, k), the hit rate of Distill-CF (Sachdeva et al. 2022, arXiv 2206.02626), which others call
  calibrated recall; recall@k = |top-k and P| / |P|.
- ndcg@k: discount 1 / log2(rank + 1), divided by its value for the best ranking, min(|P|, k) hits on top.
- psp@k, propensity-scored precision: a hit counts p_i, the inverse propensity of `inverse_propensities`; the sum is divided by
  that of the min(|P|, k) items of P which count most. psp-legacy@k is that over min(|P|, k) once more, as the tables of
  Distill-CF have it: their numerator alone is a mean over the attainable hits.
- auc: the share of (held-out, other unseen) pairs of a user's items that are ranked right, ties for half; mean over users.
  `pooled_auc` is the published variant: one list of all users' held-out items and of 50 sampled others each.
- coverage@k: the share of all items that are in somebody's top k.

Where scores are equal, the item of the smaller number ranks higher, wherever they are computed; but for auc and pooled_auc, which
take ties for half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datastill import memory, processes
from datastill.backbones.base import Predictor
from datastill.backbones.recommender import SparseRows, user_rows
from datastill.errors import InputError, check_count, require

BYTES_A_SCORE = 20  # while users are scored: the score, those that are hidden, and the order of the best


class Leading(NamedTuple):
    """The highest of each row, (n, k): their values and columns, the highest first."""

    values: Tensor
    indices: Tensor


def leading(scores: Tensor, k: int) -> Leading:
    """The `k` highest of `scores` (n, items) in each row; of equal ones those of smaller columns, in order.

    That is what `topk` gives where no two are equal, which leaves ties to the device.
    """
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero().squeeze(1)
    values, columns = values[:, :k], columns[:, :k]
    if len(tied) > 0:
        values, columns = values.clone(), columns.clone()
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return Leading(values, columns)


def ranking_metrics(
    scores: Tensor,
    seen: SparseRows | None,
    relevant: SparseRows,
    cutoffs: Sequence[int],
    propensities: Tensor | None = None,
    missing: Tensor | None = None,
) -> dict[str, Tensor]:
    """HR@k, nDCG@k and recall@k of each user, and PSP@k if propensities are given.

    Args:
        scores: (n, items), higher is better; unchanged.
        seen: items of each user that are not to be recommended; None ranks all of them. Where a user has fewer than `k`
            other items, the ranking ends with seen ones, which count as misses unless they are relevant.
        relevant: held-out items of each user, at least one for every user.
        cutoffs: the values of k; one above the number of items is the number of items.
        propensities: (items,) inverse propensities, see `inverse_propensities`.
        missing: (n,) how many items are held out of a user beside those that are ranked; each is a miss in HR, nDCG and recall.

    Returns:
        "hr@k", "ndcg@k", "recall@k", and "psp@k" and "psp-legacy@k", for every k, each (n,) float64 in [0, 1].
    """
    items = scores.shape[1]
    longest = min(max(cutoffs), items)
    top = leading(_hide(scores, seen), longest).indices
    hits = _mask(relevant).gather(1, top).double()
    counts = relevant.starts.diff()
    counts = counts if missing is None else counts + missing
    discounts = 1 / torch.arange(2, longest + 2, dtype=torch.float64, device=scores.device).log2()
    best = discounts.cumsum(0)
    found: dict[str, Tensor] = {}
    for cutoff in cutoffs:
        k = min(cutoff, longest)
        attainable = counts.clamp(max=k)
        found[f"hr@{cutoff}"] = hits[:, :k].sum(1) / attainable
        found[f"ndcg@{cutoff}"] = hits[:, :k] @ discounts[:k] / best[attainable - 1]
        found[f"recall@{cutoff}"] = hits[:, :k].sum(1) / counts
        if propensities is not None:
            worth = (hits[:, :k] * propensities.double()[top[:, :k]]).sum(1) / _most(relevant, propensities.double(), k)
            found[f"psp@{cutoff}"] = worth
            found[f"psp-legacy@{cutoff}"] = worth / attainable
    return found


def inverse_propensities(counts: Tensor) -> Tensor:
    """How much a hit of each item counts in PSP: 1 / propensity by the model of Jain et al. (KDD 2016), a = 0.55, b = 1.5.

    1 + C (f_i + b)^-a with C = (ln N - 1) (b + 1)^a, where item i has f_i of all N training interactions.

    Args:
        counts: (items,) training interactions of each item.
    """
    counts = counts.double()
    total = float(counts.sum())
    return 1 + (math.log(total) - 1) * 2.5**0.55 * (counts + 1.5) ** -0.55


def auc(scores: Tensor, seen: SparseRows | None, relevant: SparseRows) -> Tensor:
    """Each user's share of (held-out, other unseen) pairs of items in the right order, ties for half; (n,) float64.

    A user without other unseen items gets 1/2.
    """
    hidden = _hide(scores, seen)
    wanted = _mask(relevant)
    among = hidden > -torch.inf
    wanted &= among
    ordered, order = hidden.sort(1)
    # The mean rank of equal scores, so that a tie counts for half.
    low = torch.searchsorted(ordered, ordered, side="left")
    high = torch.searchsorted(ordered, ordered, side="right")
    ranks = torch.empty_like(ordered, dtype=torch.float64).scatter_(1, order, (low + high + 1).double() / 2)
    positives = wanted.sum(1).double()
    excluded = (~among).sum(1).double()
    others = among.sum(1).double() - positives
    above = ((ranks - excluded[:, None]) * wanted).sum(1) - positives * (positives + 1) / 2
    pairs = positives * others
    return torch.where(pairs > 0, above / pairs.clamp(min=1), 0.5)


class Holdout:
    """Users as a recommender reads them, and the items that it should find for them; users without such items are left out.

    Args:
        histories: (users, items) SciPy sparse matrix or `SparseRows`; a user's items are not recommended again.
        wanted: (users, items) likewise, the held-out items.
        metric: the key of `ranking_metrics` by which models are chosen.
        chunk: users scored at once, at most; fewer where 20 bytes for each of their items do not fit into memory.
        missing: (users,) see `ranking_metrics`.
    """

    def __init__(
        self,
        histories: Any,
        wanted: Any,
        metric: str = "ndcg@10",
        chunk: int = 1024,
        missing: Tensor | None = None,
    ) -> None:
        read, found = user_rows(histories), user_rows(wanted)
        if not isinstance(read, SparseRows) or not isinstance(found, SparseRows):
            raise InputError("histories and wanted must be sparse matrices (users, items).")
        same = len(read) == len(found) and read.width == found.width
        require(same, "histories and wanted must have the same users and items.")
        counts = found.starts.diff() if missing is None else found.starts.diff() + missing
        users = counts.nonzero().squeeze(1)
        require(len(users) > 0, "Nobody has held-out items, so there is nothing to score a recommender by.")
        self.histories, self.wanted = read.take(users), found.take(users)
        self.missing = None if missing is None else missing[users]
        self.metric = metric
        self.chunk = check_count("chunk", chunk)

    def __len__(self) -> int:
        return len(self.wanted)

    @property
    def cutoff(self) -> int:
        """The k of `metric`."""
        return int(self.metric.partition("@")[2])

    def __iter__(self) -> Iterator[tuple[SparseRows, SparseRows]]:
        """Chunks of users: what they are read through, and what is to be found."""
        for users in self._chunks(torch.arange(len(self), device=self.wanted.starts.device)):
            yield self.histories.take(users), self.wanted.take(users)

    def _chunks(self, users: Tensor) -> Sequence[Tensor]:
        size = memory.chunk(BYTES_A_SCORE * self.wanted.width, users.device, most=self.chunk)
        return users.split(size) if len(users) > 0 else ()

    def score(self, predictor: Predictor | Tensor, cutoffs: Sequence[int] = (10, 100)) -> dict[str, float]:
        """HR, nDCG and recall, means over users; of several processes each scores a share of them.

        Args:
            predictor: rows of users to scores (n, items), or the scores (users, items) of all of them.
            cutoffs: the values of k.
        """
        sums = {f"{name}@{k}": 0.0 for k in cutoffs for name in ("hr", "ndcg", "recall")}
        # Users are shared out, not chunks: processes that find more or less memory cut into other chunks.
        mine = torch.tensor(processes.mine(range(len(self))), dtype=torch.int64, device=self.wanted.starts.device)
        for users in self._chunks(mine):
            histories, wanted = self.histories.take(users), self.wanted.take(users)
            missing = None if self.missing is None else self.missing[users]
            scores = predictor[users] if isinstance(predictor, Tensor) else predictor(histories)
            found = ranking_metrics(scores, histories, wanted, cutoffs, missing=missing)
            for name, values in found.items():
                sums[name] += float(values.sum())
        totals = processes.total(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        return {name: total / len(self) for name, total in zip(sums, totals)}


def all_metrics(
    predictor: Predictor,
    holdout: Holdout,
    item_counts: Tensor,
    cutoffs: Sequence[int] = (10, 100),
    *,
    negatives: int = 50,
    rng: torch.Generator | None = None,
) -> dict[str, float]:
    """Every metric of this module for a predictor; see the head of the module for what they are.

    Args:
        predictor: rows of users to scores (n, items).
        holdout: the users and what is to be found for them.
        item_counts: (items,) training interactions of each item, for the propensities of PSP.
        cutoffs: the values of k.
        negatives: items that are sampled for each user in the pooled AUC.
        rng: of that sample; None is a fixed seed.

    Returns:
        hr, ndcg, recall, psp, psp-legacy and coverage at each k; auc and pooled-auc. All in [0, 1].
    """
    rng = rng or torch.Generator().manual_seed(0)
    propensities = inverse_propensities(item_counts).to(holdout.wanted.starts.device)
    items = holdout.wanted.width
    shown = {k: torch.zeros(items, dtype=torch.bool) for k in cutoffs}
    sums: dict[str, float] = {"auc": 0.0}
    pooled: list[tuple[Tensor, Tensor]] = []
    for histories, wanted in holdout:
        scores = predictor(histories)
        for name, values in ranking_metrics(scores, histories, wanted, cutoffs, propensities).items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
        sums["auc"] += float(auc(scores, histories, wanted).sum())
        top = leading(_hide(scores, histories), min(max(cutoffs), items)).indices.cpu()
        for k in cutoffs:
            shown[k][top[:, :k].unique()] = True
        pooled.append(_sample_pairs(scores, histories, wanted, negatives, rng))
    found = {name: total / len(holdout) for name, total in sums.items()}
    found.update({f"coverage@{k}": float(seen.float().mean()) for k, seen in shown.items()})
    found["pooled-auc"] = _area(*(torch.cat(part) for part in zip(*pooled)))
    return found


def _sample_pairs(
    scores: Tensor, seen: SparseRows, wanted: SparseRows, negatives: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores of the held-out items, and those of `negatives` sampled items of each user that are neither held out nor seen."""
    free = torch.ones(scores.shape, device=scores.device)
    free[seen.owners, seen.columns] = 0
    free[wanted.owners, wanted.columns] = 0
    kept = free.sum(1) > 0
    drawn = torch.multinomial(free[kept].cpu(), negatives, replacement=True, generator=rng).to(scores.device)
    return scores[wanted.owners, wanted.columns].cpu(), scores[kept].gather(1, drawn).flatten().cpu()


def _area(positive: Tensor, negative: Tensor) -> float:
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, side="left") + torch.searchsorted(ordered, positive, side="right")
    return float(below.double().mean() / 2 / max(1, len(negative)))


def _hide(scores: Tensor, seen: SparseRows | None) -> Tensor:
    scores = scores.clone()
    if seen is not None:
        scores[seen.owners, seen.columns] = -torch.inf
    return scores


def _mask(rows: SparseRows) -> Tensor:
    mask = torch.zeros(len(rows), rows.width, dtype=torch.bool, device=rows.starts.device)
    mask[rows.owners, rows.columns] = True
    return mask


def _most(rows: SparseRows, worth: Tensor, k: int) -> Tensor:
    """For each row the sum of the `k` highest `worth` of its items."""
    values = worth[rows.columns]
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(rows.owners[order], stable=True)]  # by row, the most worthy first
    place = torch.arange(len(order), device=order.device) - torch.repeat_interleave(
        rows.starts[:-1], rows.starts.diff()
    )
    kept = torch.where(place < k, values[order], 0)
    return torch.zeros(len(rows), dtype=torch.float64, device=worth.device).index_add_(0, rows.owners[order], kept)
