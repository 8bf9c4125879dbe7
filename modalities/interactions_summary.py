"""Synthetic users: free logits over all items, and how they become rows of interactions."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Batch, Summary
from datastill.modalities.interactions_draws import KeptNoise, multi_draw
from datastill.modalities.interactions_table import Interactions
from datastill.rng import generator

Sampler = Literal["meanfield", "gumbel"]
SAMPLERS = ("meanfield", "gumbel")
TEMPERATURE = 5.0
_LEAST = np.finfo(np.float32).tiny  # a weight is never 0, which would not be an interaction


class InteractionsSummary(Summary):
    """Rows of interactions of synthetic users, differentiable in the users' logits.

    Two samplers turn logits into rows of weights in [0, 1]:

    - "gumbel", as in Distill-CF (Sachdeva et al. 2022, arXiv 2206.02626): each row is the sum of `draws` independent
      Gumbel-softmax draws of one item, with replacement, cut off at 1. Its mean (no `rng`) is that of a fixed set of draws.
    - "meanfield": what that sum comes to for many soft draws, min(1, mass * softmax(logits / temperature)), with as much mass
      as there are draws, unless users differ in it. It takes one pass in place of `draws`, and has no noise.

    Rows are dense and soft, and much of their worth is in small weights. `export` cuts them down to as many items as real
    users have; the weights that it keeps are worth far more than the bare items.

    Args:
        logits: (users, items) initial values.
        item_ids: (items,) original ids.
        lengths: (users,) how many items each user exports.
        draws: draws for each user, which is what a row sums to before it is cut off. Far fewer than items, and fewer in any
            case: where every weight is cut off at 1 there is no gradient.
        sampler: "meanfield" or "gumbel".
        temperature: of the softmax, positive.
        weighted: whether `export` keeps the weight of each item. Without, every row counts as 1.
        masses: (users,) mass of each user for "meanfield"; None is `draws` for all.
        cardinality: weight of Distill-CF's penalty on the mean sum of a row over the mean of `lengths`, in its loss, a sum over
            the items of a user; 0 is none.
    """

    exact_export = False

    def __init__(
        self,
        logits: Tensor,
        item_ids: np.ndarray,
        lengths: np.ndarray,
        *,
        draws: int,
        sampler: Sampler = "meanfield",
        temperature: float = TEMPERATURE,
        weighted: bool = True,
        masses: Tensor | None = None,
        cardinality: float = 0.0,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise unknown_name("sampler", sampler, SAMPLERS)
        check_count("draws", draws)
        require(
            draws < logits.shape[1],
            f"draws must be below the number of items, {logits.shape[1]}, because every weight is cut off at 1; got {draws}.",
        )
        require(
            math.isfinite(temperature) and temperature > 0,
            f"temperature must be a positive number, got {temperature!r}.",
        )
        require(
            math.isfinite(cardinality) and cardinality >= 0, f"cardinality must be at least 0, got {cardinality!r}."
        )
        self.logits = nn.Parameter(logits.detach().clone())
        self.masses: Tensor
        self.register_buffer("masses", torch.full((len(logits),), float(draws)) if masses is None else masses.clone())
        self.item_ids = item_ids
        self.lengths = lengths
        self.sampler = sampler
        self.draws = draws
        self.temperature = temperature
        self.weighted = weighted
        self.cardinality = cardinality
        self._drawn: Tensor | None = None
        self._kept = KeptNoise()

    def rows(self, rng: torch.Generator | None = None) -> Tensor:
        """The users (users, items), weights in [0, 1]."""
        if self.sampler == "meanfield":
            return (self.masses[:, None] * (self.logits / self.temperature).softmax(1)).clamp(max=1)
        rng = rng or generator("interactions", "mean")
        return multi_draw(self.logits, self.draws, self.temperature, rng, self._kept)

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """Rows as inputs and, the same, as targets."""
        rows = self.rows(rng)
        if self.cardinality and rows.requires_grad:
            self._drawn = rows
        return Batch(rows, rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))

    def penalty(self) -> Tensor | None:
        """`cardinality` times the mean sum of a row over the squared mean length, of the rows that `forward` gave last.

        One of the two lengths is Distill-CF's; the other is there because the loss here is a mean over interactions.
        """
        if not self.cardinality:
            return None
        rows = self.rows() if self._drawn is None else self._drawn
        self._drawn = None
        return self.cardinality * rows.sum(1).mean() / float(self.lengths.mean()) ** 2

    @torch.no_grad()
    def export(self) -> Interactions:
        """Each user's highest-weighted items, as many as `lengths` says; users are numbered from 0."""
        rows = self.rows().cpu().numpy()
        order = np.argsort(-rows, axis=1, kind="stable")
        users = np.repeat(np.arange(len(rows)), self.lengths)
        items = np.concatenate([np.sort(best[:length]) for best, length in zip(order, self.lengths)])
        weights = np.maximum(rows[users, items].astype(np.float32), _LEAST) if self.weighted else None
        return Interactions(users, self.item_ids[items], weights)

    @property
    def num_points(self) -> int:
        """Synthetic users."""
        return len(self.logits)
