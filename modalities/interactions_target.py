"""A target dataset of recommender logs: its users, and the learners, kernels and recommenders that read them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datastill import processes
from datastill.backbones.als import ALS
from datastill.backbones.base import Kernel, Predictor
from datastill.backbones.batch import map_tensors
from datastill.backbones.multvae import MultVAE
from datastill.backbones.ranking import Holdout
from datastill.backbones.recommender import SparseRows, UserAutoencoder, UserRows, matrix, sparse_rows
from datastill.backbones.recommenders import EASE, InfiniteAutoencoder, Popularity, Recommender
from datastill.backbones.training import Protocol
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.base import Batch, Modality, Split
from datastill.modalities.interactions_io import read_interactions
from datastill.modalities.interactions_popular import most_popular
from datastill.modalities.interactions_rows import Held, entries, hide
from datastill.modalities.interactions_store import Splits, blocks_of, count_items
from datastill.modalities.interactions_table import popularity_curve
from datastill.modalities.interactions_teacher import SHARPNESS, Taught, Teacher, feasible
from datastill.rng import fork, generator

CUTOFFS = (10, 100)
RECOMMENDERS: dict[str, type[Recommender]] = {"ease": EASE, "popularity": Popularity, "mult-vae": MultVAE, "als": ALS}
Wanted: TypeAlias = UserRows | Held | Taught


class InteractionsTarget(Modality):
    """User-item implicit feedback, through the items that each user has; `InteractionsModality` has the summaries.

    Users are one group. Inputs are rows over all items, `SparseRows` for real users and dense for synthetic ones; a learner
    gives every item a score. `real(size)` holds out a part of each user's training items (afresh at each call): the others are
    the input, and the loss asks for those held out. `real()` has whole rows as inputs and as targets, whatever `holdout` and
    `teacher` are: it is for training on all users.

    Scores follow Distill-CF (Sachdeva et al. 2022, arXiv 2206.02626), see `backbones.ranking`: a user is read through the
    training items, and for the test split also the validation items; these are not recommended again; users with held-out
    items are averaged. Keys: hr@10, ndcg@10, hr@100, ndcg@100.

    Args:
        splits: as `read_interactions` gives them.
        holdout: fraction of a real user's items that `real(size)` hides, in [0, 1): a user with n >= 2 items has
            max(1, round(holdout * n)) hidden. 0 hides nothing: the input row is the target, as in Distill-CF.
        teacher: "ease": `real(size)` holds nothing out, and the loss asks for the scores that EASE, fitted to all training
            interactions, gives to the items that a user does not have; for up to 10,000 items. None asks for held-out items.
        metric: by which summaries, ridges and moments are chosen: "hr@10", "ndcg@10", "hr@100" or "ndcg@100".
        ridges: ridges of the infinite-width autoencoder to choose from.
        width: hidden units of the finite autoencoder.
        chunk: users scored at once, at most; fewer where 20 bytes for each of their items do not fit into memory.
        score_users: at most so many users with held-out items are scored: always the same random ones, of validation and test
            each. Nor do "kmeans" starts and `full`, the baseline of all data, take more users than that.
    """

    metric: ClassVar[str] = "ndcg@10"
    learners: ClassVar[tuple[str, ...]] = ("autoencoder",)
    fitted: ClassVar[tuple[str, ...]] = tuple(RECOMMENDERS)
    evaluator: ClassVar[str | None] = "ntk"
    ridges: ClassVar[tuple[float, ...]] = InfiniteAutoencoder.RIDGES

    def __init__(
        self,
        splits: Splits,
        *,
        holdout: float = 0.2,
        teacher: str | None = None,
        metric: str = metric,
        ridges: Sequence[float] = ridges,
        width: int = 256,
        chunk: int = 1024,
        score_users: int = 10_000,
    ) -> None:
        require(
            isinstance(holdout, int | float) and 0 <= holdout < 1,
            f"holdout must be a number in [0, 1), got {holdout!r}.",
        )
        metrics = [f"{name}@{cutoff}" for name in ("hr", "ndcg") for cutoff in CUTOFFS]
        if metric not in metrics:
            raise unknown_name("metric", metric, metrics)
        self.metric, self.ridges = metric, tuple(ridges)  # type: ignore[misc]
        self.splits = splits
        self.holdout = float(holdout)
        self.width = check_count("width", width)
        self.chunk = check_count("chunk", chunk)
        self.score_users = check_count("score_users", score_users)
        self.items = len(splits.item_ids)
        self._teacher: Teacher | None = None
        known = feasible(teacher, self.items)
        if known is not None:
            self._teacher = Teacher(known, sparse_rows(splits.train[:]), self.held_out("validation"))
        self.trained = np.flatnonzero(np.diff(splits.train.indptr))

    @classmethod
    def from_logs(
        cls,
        logs: Any,
        *,
        holdout: float = 0.2,
        teacher: str | None = None,
        metric: str = "ndcg@10",
        ridges: Sequence[float] = InfiniteAutoencoder.RIDGES,
        width: int = 256,
        chunk: int = 1024,
        score_users: int = 10_000,
        max_items: int | None = 20_000,
        **options: Any,
    ) -> Self:
        """Read, clean and split logs.

        Args:
            logs: files, tables or a sparse matrix, see `read_interactions`.
            holdout, teacher, metric, ridges, width, chunk, score_users: see the class.
            max_items: where a log has more items, the most popular ones alone are distilled and recommended, see
                `most_popular`; None is for all of them, at users * items * 16 bytes of summary, gradient and optimiser.
            options: of `read_interactions`.
        """
        shared = None
        if options.get("store") is None and processes.size() > 1:  # one process reads the logs for all
            shared = Path(processes.agree(tempfile.mkdtemp(prefix="datastill-") if processes.is_main() else None))
            options["store"] = shared / "log"
        with processes.main_first():
            splits = read_interactions(logs, **options)
        if shared is not None and processes.is_main():
            weakref.finalize(splits.train, shutil.rmtree, shared, ignore_errors=True)
        splits = most_popular(splits, max_items)
        settings: dict[str, Any] = {"teacher": teacher, "metric": metric, "ridges": ridges, "score_users": score_users}
        return cls(splits, holdout=holdout, width=width, chunk=chunk, **settings)

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    def group_sizes(self) -> list[int]:
        return [len(self.trained)]

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        users = self._drawn(size, groups, rng)
        return self._batch(users, np.arange(len(users)), None if size is None else rng)

    def draw_share(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        users = self._drawn(size, groups, rng)
        return self._batch(users, processes.share(len(users)).numpy(), None if size is None else rng)

    def _drawn(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> np.ndarray:
        """Positions of the users of a batch."""
        parts = []
        for group in groups:
            if group != 0:
                raise InputError(f"Recommender logs have one group, 0; got group {group!r}.")
            users = self.trained
            if size is not None:
                users = users[torch.randperm(len(users), generator=rng)[:size].numpy()]
            parts.append(users)
        return np.concatenate(parts) if parts else self.trained[:0]

    def _batch(self, users: np.ndarray, part: np.ndarray, rng: torch.Generator | None) -> Batch:
        """Those at `part` (ascending) of a batch of users; nobody else's row is read. No `rng`: the rows are the targets."""
        mine, zeros = users[part], torch.zeros(len(part), dtype=torch.int64)
        if rng is not None and self._teacher is not None:
            taught = self._teacher(mine)
            return Batch(taught.seen, taught, zeros)
        rows = self.splits.train[mine]
        if rng is None or self.holdout == 0:
            whole = sparse_rows(rows)
            return Batch(whole, whole, zeros)
        starts = self.splits.train.indptr
        counts = starts[users + 1] - starts[users]
        members = np.zeros(len(users), dtype=bool)
        members[part] = True
        hidden = hide(counts, self.holdout, rng)[np.repeat(members, counts)]
        single = np.repeat(
            counts[part] < 2, counts[part]
        )  # a user's only item is both what is read and what is to be found
        read, seen = entries(rows, ~hidden | single), entries(rows, ~hidden)
        return Batch(sparse_rows(read), Held(sparse_rows(entries(rows, hidden)), sparse_rows(seen)), zeros)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for ids in (self.splits.user_ids, self.splits.item_ids):
            digest.update("\x1f".join(map(str, ids[:].tolist())).encode() + b"\x1e")
        for part in (self.splits.train, self.splits.validation, self.splits.test):
            digest.update(part.indptr.astype("<i8").tobytes())
            for rows in blocks_of(part):
                digest.update(rows.indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Under "popularity", how large a share of all training interactions items of some ranks have: [[rank, share], ...]."""
        return {"popularity": popularity_curve(count_items(self.splits.train))}

    def _some(self, most: int) -> np.ndarray:
        """Positions of all users with training items, or of so many random ones, always the same."""
        if len(self.trained) <= most:
            return self.trained
        kept = torch.randperm(len(self.trained), generator=generator("some users"))[:most]
        return self.trained[np.sort(kept.numpy())]

    @property
    def full_sizes(self) -> list[int]:
        return [min(len(self.trained), self.score_users)]

    def full(self) -> Batch:
        """All users, or `score_users` random ones where there are more."""
        rows = self._placed(self.splits.train[self._some(self.score_users)])
        return Batch(rows, rows, torch.zeros(len(rows), dtype=torch.int64, device=self.device))

    def scope(self) -> str:
        """What part of the log is distilled and scored, in words; "" where it is all of it."""
        said = []
        if self.splits.all_items:
            said.append(
                f"the {self.items:,} most popular of {self.splits.all_items:,} items, which carry {self.splits.share:.1%} of the "
                "training interactions; held-out interactions with others count as misses"
            )
        if len(self.trained) > self.score_users:
            said.append(
                f"scores are those of {self.score_users:,} of {len(self.trained):,} users, and full data stands for as many"
            )
        return "; ".join(said)

    # --- learners and kernels -----------------------------------------------------------------------------------------

    def build(self, name: str) -> UserAutoencoder:
        return UserAutoencoder(self.items, self.width)

    def vectors(self, inputs: UserRows) -> Tensor:
        """Rows over all items, sparse for real users."""
        return matrix(inputs)

    @torch.no_grad()
    def correct(self, outputs: Tensor, targets: UserRows | Held) -> Tensor:
        """Whether the item with the highest score is one that is to be found."""
        return self.encode(targets).gather(1, outputs.argmax(1, keepdim=True)).squeeze(1) > 0

    def loss(self, outputs: Tensor, targets: Wanted) -> Tensor:
        """Multinomial negative log-likelihood of the targets, for each interaction.

        With p_u the softmax of user u's outputs over the items that are not `seen`, and t the targets' weights, this is
        -sum_ui t_ui log p_ui / sum_ui t_ui. So a user counts as much as there are items to be found. With a teacher, t_u is
        softmax(5 * its scores) over the same items, and all users count alike.
        """
        if isinstance(targets, Taught):
            return targets.loss(outputs)
        if isinstance(targets, Held):
            seen = torch.zeros(outputs.shape, dtype=torch.bool, device=outputs.device)
            seen[targets.seen.owners, targets.seen.columns] = True
            return self.loss(outputs.masked_fill(seen, -torch.inf), targets.rows)
        spread = outputs.logsumexp(1)
        if isinstance(targets, SparseRows):
            owners, values = targets.owners, targets.values
            gaps = (spread[owners] - outputs[owners, targets.columns]) * values
            return gaps.sum() / values.sum()
        mass = targets.sum(1)
        return ((spread * mass).sum() - (targets * outputs).sum()) / mass.sum()

    def weight(self, batch: Batch) -> float:
        """The weights of the items to be found; the users, if there is a teacher."""
        if isinstance(batch.targets, Taught):
            return float(len(batch))
        rows = batch.targets.rows if isinstance(batch.targets, Held) else batch.targets
        return float((rows.values if isinstance(rows, SparseRows) else rows).sum(dtype=torch.float64))

    def encode(self, targets: Wanted) -> Tensor:
        """The rows of items to be found, or the teacher's scores, dense (n, items)."""
        if isinstance(targets, Taught):
            return targets.scores
        rows = targets.rows if isinstance(targets, Held) else targets
        return rows.dense() if isinstance(rows, SparseRows) else rows

    def ridge_loss(self, predictions: Tensor, targets: Wanted) -> Tensor:
        """The same as `loss`, with predictions as logits, as in Distill-CF; with a teacher, 5 times them."""
        return targets.loss(predictions, SHARPNESS) if isinstance(targets, Taught) else self.loss(predictions, targets)

    # --- training and scores ------------------------------------------------------------------------------------------

    def protocol(self, learner: str) -> Protocol:
        # It over-fits within a few hundred steps on real users, and later on synthetic ones: the best moment is kept.
        return Protocol(steps=300, optimizer="adam", lr=1e-3, batch_size=256, schedule="constant", validate_every=20)

    def fit(
        self,
        batch: Batch,
        learner: str | None = None,
        *,
        rng: torch.Generator,
        protocol: Protocol | None = None,
        ridges: Sequence[float] = (),
    ) -> Predictor:
        if learner not in RECOMMENDERS:
            return super().fit(batch, learner, rng=rng, protocol=protocol, ridges=ridges)
        return RECOMMENDERS[learner]().fit(batch.inputs, self.held_out("validation"), seed=fork(rng))

    def fit_kernel(self, batch: Batch, kernel: Kernel, ridges: Sequence[float] = ()) -> Predictor:
        """Ridge regression with the ridge of `ridges` (or of the modality's) that is best on the validation split."""
        machine = InfiniteAutoencoder(kernel=kernel, ridge=ridges or self.ridges)
        return machine.fit(batch.inputs, self.held_out("validation"), targets=self.encode(batch.targets))

    def check_split(self, split: Split) -> None:
        self.held_out(split)

    @torch.no_grad()
    def score(self, predictor: Predictor, split: Split) -> dict[str, float]:
        found = self.held_out(split).score(predictor, CUTOFFS)
        return {name: value for name, value in found.items() if not name.startswith("recall")}

    def held_out(self, split: Split) -> Holdout:
        """The users with items held out for validation or test, on `device` and in `dtype`.

        Args:
            split: "validation": users are read through their training items. "test": also through their validation items.

        Raises:
            InputError: an unknown split, or one without interactions.
        """
        if split not in ("validation", "test"):
            raise unknown_name("split", split, ("validation", "test"))
        wanted = self.splits.validation if split == "validation" else self.splits.test
        require(wanted.nnz > 0, f"There are no {split} interactions; make some with {split}=0.1 or a split column.")
        beside = self.splits.missing.get(split)
        users = np.flatnonzero(np.diff(wanted.indptr) + (0 if beside is None else beside))
        if len(users) > self.score_users:
            kept = torch.randperm(len(users), generator=generator("scored users", split))[: self.score_users]
            users = users[np.sort(kept.numpy())]
        context = self.splits.train[users]
        if split == "test":
            context = context + self.splits.validation[users]
        missing = None if beside is None else torch.as_tensor(beside[users].astype(np.int64), device=self.device)
        return Holdout(self._placed(context), self._placed(wanted[users]), self.metric, self.chunk, missing)

    def _placed(self, rows: sp.csr_matrix) -> SparseRows:
        """Users on `device` and in `dtype`."""
        found: SparseRows = map_tensors(
            lambda tensor: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None), sparse_rows(rows)
        )
        return found
