"""Synthetic users as weighted items, thinned out while they are learned, until only the rows of the exported log are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datastill.errors import check_count, require
from datastill.modalities.base import Batch, Summary
from datastill.modalities.interactions_table import Interactions

_GONE = -1e4
"""The logarithm of a weight that is not there."""
_FAINT = -40.0
"""Logarithms below it count as this one. Such a weight is nothing beside any other, and less would lead to numbers so small that
arithmetic with them is a hundred times slower."""


class _Exponential(torch.autograd.Function):
    """exp, and exactly 0 of what is gone, whose slope is then 0 too."""

    @staticmethod
    def forward(ctx: Any, logs: Tensor) -> Tensor:
        weights = logs.clamp(min=_FAINT).exp_().masked_fill_(logs <= _GONE / 2, 0.0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]


class WeightedUsers(Summary):
    """Positive weights of items for each synthetic user, few enough of them to be exported as they are.

    A weight is the exponential of a free parameter. So a step changes it by a fraction of itself: items that matter little
    fade, and nothing becomes negative. After each step the smallest weights of all users together are dropped for good, such
    that their number falls geometrically from all items of all users to `interactions` at the fraction `anneal` of the run;
    the others take over what the dropped ones did in the steps that are left. A user's largest weight stays, so that no user
    is lost.

    What is optimised in the end is thus the exported log itself, not something that is cut down to it afterwards.

    Args:
        weights: (users, items) initial weights, positive.
        item_ids: (items,) original ids.
        interactions: rows of the exported log, at least one a user.
        anneal: fraction of the run after which no more weights are dropped, in (0, 1]; None drops none before the export.
    """

    _done: Tensor

    def __init__(self, weights: Tensor, item_ids: np.ndarray, *, interactions: int, anneal: float | None = 0.6) -> None:
        super().__init__()
        users = len(weights)
        require(
            check_count("interactions", interactions) >= users,
            f"interactions must be at least the number of users, {users}, or a user would have none; got {interactions}.",
        )
        known = anneal is None or (isinstance(anneal, int | float) and 0 < anneal <= 1)
        require(known, f"anneal must be None or a fraction of the run in (0, 1], got {anneal!r}.")
        self.logs = nn.Parameter(weights.detach().clone().log())
        self.register_buffer("_done", torch.zeros((), dtype=torch.int64))
        self.item_ids = item_ids
        self.interactions = min(interactions, weights.numel())
        self.anneal = anneal
        self._steps: int | None = None

    def plan(self, steps: int) -> None:
        """How many steps the run has, over which the weights are thinned out."""
        self._steps = steps

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """Rows (users, items) of weights as inputs and, the same, as targets."""
        rows = _Exponential.apply(self.logs)
        return Batch(rows, rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))

    @property
    def exact_export(self) -> bool:  # type: ignore[override]
        """Whether as few weights are left as are exported."""
        return self.left() <= self.interactions

    def left(self) -> int:
        """Weights that have not been dropped."""
        return int((self.logs > _GONE / 2).sum())

    @torch.no_grad()
    def project_(self) -> None:
        """Count a step and drop the weights that are due."""
        self._done += 1
        if self.anneal is None or self._steps is None:
            return
        passed = min(1.0, int(self._done) / (self.anneal * self._steps))
        self.logs.copy_(self._thinned(round(self.logs.numel() ** (1 - passed) * self.interactions**passed)))

    def _thinned(self, count: int) -> Tensor:
        """The parameters with the `count` largest left, those of each user's first item among them."""
        if count >= self.left():
            return self.logs
        rank = self.logs.clone()
        rank[torch.arange(len(rank), device=rank.device), self.logs.argmax(1)] = torch.inf
        values = rank.flatten().cpu().numpy()
        least = float(np.partition(values, len(values) - count)[len(values) - count])
        kept = rank >= least
        if surplus := int(kept.sum()) - count:  # the last of those that are equal go
            equal = (rank == least).flatten().nonzero().flatten()
            kept.view(-1)[equal[len(equal) - surplus :]] = False
        return self.logs.masked_fill(~kept, _GONE)

    @torch.no_grad()
    def export(self) -> Interactions:
        """The `interactions` largest weights as rows; users are numbered from 0, a weight is at least the least float32."""
        rows = _Exponential.apply(self._thinned(self.interactions)).cpu()
        users, items = rows.nonzero(as_tuple=True)
        weights = rows[users, items].numpy().astype(np.float32)
        return Interactions(users.numpy(), self.item_ids[items.numpy()], np.maximum(weights, np.finfo(np.float32).tiny))

    @property
    def num_points(self) -> int:
        """Synthetic users."""
        return len(self.logs)
