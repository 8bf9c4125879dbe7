"""Recommender logs: users are points, a user's row of items is both input and target, synthetic users are rows of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datastill.backbones.recommender import sparse_rows
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.base import Batch, Size
from datastill.modalities.interactions_init import cluster_means, positive_weights
from datastill.modalities.interactions_summary import TEMPERATURE, InteractionsSummary
from datastill.modalities.interactions_table import Interactions
from datastill.modalities.interactions_target import InteractionsTarget
from datastill.modalities.interactions_weights import WeightedUsers

SAMPLED_OPTIONS = ("init_scale", "export_length", "draws", "temperature", "weighted", "cardinality")
WEIGHTED_OPTIONS = ("interactions", "anneal")
PAIR_BYTES = 8
"""A stored interaction: user and item as two 32-bit integers. A weight takes 4 bytes more."""


class InteractionsModality(InteractionsTarget):
    """Recommender logs, what learns from them, and summaries of them.

    Arguments, learners, kernels and scores are those of `InteractionsTarget`.
    """

    kind: ClassVar[str] = "interactions"

    def summary(
        self,
        counts: Sequence[int],
        *,
        rng: torch.Generator,
        init: str | Tensor = "real",
        sampler: Literal["meanfield", "gumbel", "weights"] = "meanfield",
        **options: Any,
    ) -> Any:
        """Synthetic users as logits over items (`InteractionsSummary`) or as weights of items (`WeightedUsers`).

        Args:
            counts: one number, of users; not more than there are real ones.
            rng: of the initial values.
            init: "real" (rows of random real users), "active" (those of the users with most items), positions of real users in
                `full`, "kmeans" (mean rows of clusters of users, see `cluster_means`: a good summary before any training), or
                "noise".
            sampler: "meanfield" or "gumbel", see `InteractionsSummary`, or "weights", see `WeightedUsers`.
            options: of "weights": `interactions` (default: as many as so many real users have on average) and `anneal`. Of
                the others: `init_scale` (how far a real user's items start above the others, default 4); `export_length`, how
                many items each user exports (default: the mean of real users); `draws` (default: the same, but at most a
                quarter of the items); and those of `InteractionsSummary`.
        """
        users = self._check_counts(counts)
        known = WEIGHTED_OPTIONS if sampler == "weights" else SAMPLED_OPTIONS
        for name in options:
            if name not in known:
                raise unknown_name(f"option of a summary of interactions with sampler {sampler!r}", name, known)
        rows = self._initial(init, counts, rng)
        mean = max(1, round(self.splits.train.nnz / len(self.trained)))
        if sampler == "weights":
            total = options.pop("interactions", None) or min(users * mean, users * self.items)
            if rows is None:
                weights = mean / self.items * torch.randn(users, self.items, generator=rng).exp()
            else:
                weights = positive_weights(rows)
            return WeightedUsers(weights, self.splits.item_ids, interactions=total, **options)
        scale = options.pop("init_scale", 4.0)
        require(isinstance(scale, int | float) and scale > 0, f"init_scale must be a positive number, got {scale!r}.")
        if rows is None:
            logits = torch.randn(users, self.items, generator=rng)
        elif isinstance(init, str) and init == "kmeans":
            masses = rows.sum(1)
            temperature = float(options.get("temperature", TEMPERATURE))
            logits = temperature * (positive_weights(rows) / masses[:, None]).log()
            logits = logits - logits.mean(1, keepdim=True)
            if "draws" not in options:
                options["masses"] = masses
        else:
            logits = scale * rows
        length = min(check_count("export_length", options.pop("export_length", mean)), self.items)
        options.setdefault("draws", max(1, min(mean, self.items // 4)))
        return InteractionsSummary(logits, self.splits.item_ids, np.full(users, length), sampler=sampler, **options)

    def _initial(self, init: str | Tensor, counts: Sequence[int], rng: torch.Generator) -> Tensor | None:
        """Rows of real users or means of clusters, (users, items); None for noise."""
        users = self._check_counts(counts)
        if not isinstance(init, str):
            picked = self._some(self.score_users)[self.check_chosen(init, counts).numpy()]
        elif init == "noise":
            return None
        elif init == "kmeans":
            return torch.from_numpy(
                cluster_means(self.splits.train[self._some(max(users, self.score_users))], users, rng)
            )
        elif init in ("real", "active"):
            picked = self._pick(users, init, rng)
        else:
            raise unknown_name("init", init, ("real", "active", "noise", "kmeans"))
        return sparse_rows(self.splits.train[picked]).dense()

    def read(self, dataset: Interactions) -> Batch:
        found, _, _ = dataset.to_csr(self.splits.item_ids)
        rows = self._placed(found)
        return Batch(rows, rows, torch.zeros(len(rows), dtype=torch.int64, device=self.device))

    def pick(self, index: Tensor) -> Interactions:
        return self._table(self._some(self.score_users)[index.numpy()])

    def check_supply(self, counts: Sequence[int]) -> None:
        self._check_counts(counts)

    def size(self, dataset: Interactions) -> Size:
        return Size(dataset.num_users, len(dataset) * (PAIR_BYTES + 4 * (dataset.weights is not None)))

    def full_size(self) -> Size:
        return Size(len(self.trained), self.splits.train.nnz * PAIR_BYTES)

    @staticmethod
    def pack(dataset: Interactions) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {}
        for name, column in (("users", dataset.users), ("items", dataset.items)):
            if column.dtype.kind in "iu":
                tensors[name] = torch.as_tensor(column.astype(np.int64))
            else:
                ids, codes = np.unique(column, return_inverse=True)
                meta[name] = ids.tolist()
                tensors[name] = torch.as_tensor(codes.astype(np.int64))
        if dataset.weights is not None:
            tensors["weights"] = torch.as_tensor(dataset.weights.copy())
        return tensors, meta

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Interactions:
        columns = {name: tensors[name].numpy() for name in ("users", "items")}
        for name, ids in meta.items():
            columns[name] = np.array(ids)[columns[name]]
        return Interactions(**columns, weights=tensors["weights"].numpy() if "weights" in tensors else None)

    def _check_counts(self, counts: Sequence[int]) -> int:
        require(len(counts) == 1, f"counts must be one number, of users, because logs have one group; got {counts!r}.")
        users = check_count("users", int(counts[0]))
        if users > len(self.trained):
            raise InputError(
                f"users must be at most {len(self.trained)}, the number of real users with training items; got {users}."
            )
        return users

    def _pick(self, users: int, how: str, rng: torch.Generator) -> np.ndarray:
        """Positions of real users: random ones, or those with most training items (ties in the order of ids)."""
        if how == "active":
            lengths = np.diff(self.splits.train.indptr)
            return np.argsort(-lengths, kind="stable")[:users]
        return self.trained[torch.randperm(len(self.trained), generator=rng)[:users].numpy()]

    def _table(self, users: np.ndarray) -> Interactions:
        rows = self.splits.train[users]
        owners = np.repeat(self.splits.user_ids[users], np.diff(rows.indptr))
        return Interactions(owners, self.splits.item_ids[rows.indices])
