"""Recommenders that are fitted in closed form: the infinite-width autoencoder, EASE and item popularity.

All read users as rows of items with weights of at least 0, sparse or dense, and give every item a score for a user. A row may
belong to a user who was not there when the recommender was fitted: what is learned is how items go together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datastill import memory, processes
from datastill.backbones.base import Kernel, KernelMachine, Predictor, VectorKernel
from datastill.backbones.batch import map_tensors
from datastill.backbones.infinite import InfiniteReLU, KernelKind, products
from datastill.backbones.ranking import BYTES_A_SCORE, Holdout, leading
from datastill.backbones.recommender import SparseRows, UserRows, matrix, user_rows
from datastill.backbones.ridge import ridge_solve
from datastill.errors import InputError, check_count, require

Ridges = float | Sequence[float]
_USERS = 50_000
"""Whose products of items are summed at a time: sparse, with no more entries than the dense sum that they go to."""


class Recommender(ABC):
    """What is fitted to a matrix of users and items and then ranks the items for any user."""

    items: int = 0
    """Items of the matrix that it was fitted to; 0 before."""

    @abstractmethod
    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0) -> Self:
        """Learn from users.

        Args:
            users: (users, items), a SciPy sparse matrix, a dense tensor or `SparseRows`; entries are weights of at least 0.
            validate: held-out items by which a hyper-parameter, or the moment to stop, is chosen. Needed where there is a choice.
            seed: of whatever is random; closed forms have nothing random.

        Returns:
            The recommender itself.
        """

    @abstractmethod
    def __call__(self, histories: UserRows) -> Tensor:
        """Scores (users, items), higher is better, also of the items that a user has."""

    def recommend(self, histories: Any, k: int = 10, *, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The best new items of each user.

        Args:
            histories: (users, items) as `fit` takes them; a user's own items are not recommended.
            k: items a user.
            chunk: users scored at once, at most; fewer where memory is short.

        Returns:
            Columns of the matrix (users, k), best first, and their scores, which are -inf where a user has fewer new items.

        Raises:
            InputError: before `fit`, or for another number of items.
        """
        check_count("k", k)
        check_count("chunk", chunk)
        rows = user_rows(histories)
        self._check_fitted(rows)
        require(k <= self.items, f"k must be at most {self.items}, the number of items, got {k}.")
        rows = map_tensors(lambda tensor: tensor.to(self._device), rows)
        best = []
        with torch.no_grad():
            size = memory.chunk(BYTES_A_SCORE * self.items, self._device, most=chunk)
            for users in torch.arange(len(rows), device=self._device).split(size):
                some = rows.take(users) if isinstance(rows, SparseRows) else rows[users]
                scores = self(some).masked_fill(matrix(some).to_dense() > 0, -torch.inf)
                best.append(leading(scores, k))
        items = torch.cat([part.indices for part in best]) if best else torch.zeros(0, k, dtype=torch.int64)
        values = torch.cat([part.values for part in best]) if best else torch.zeros(0, k)
        return items.cpu().numpy(), values.cpu().numpy()

    def _check_fitted(self, rows: UserRows) -> None:
        require(self.items > 0, f"This {type(self).__name__} has not been fitted; call fit first.")
        width = rows.width if isinstance(rows, SparseRows) else rows.shape[1]
        require(width == self.items, f"It was fitted to {self.items} items, but these users have {width}.")

    def _start(self, users: Any) -> UserRows:
        rows = user_rows(users)
        self.items = rows.width if isinstance(rows, SparseRows) else rows.shape[1]
        require(len(rows) > 0 and self.items > 0, "There are no users, or no items, to fit a recommender to.")
        values = rows.values if isinstance(rows, SparseRows) else rows
        require(bool((values >= 0).all()), "Weights of interactions must be numbers of at least 0.")
        self._device = values.device
        return rows


class Popularity(Recommender):
    """Every user gets the items with the largest sum of weights."""

    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0) -> Self:
        """Count; there is nothing to validate."""
        rows = self._start(users)
        if isinstance(rows, SparseRows):
            empty = torch.zeros(rows.width, dtype=rows.values.dtype, device=rows.values.device)
            self.counts = empty.index_add(0, rows.columns, rows.values)
        else:
            self.counts = rows.sum(0)
        return self

    def __call__(self, histories: UserRows) -> Tensor:
        """The same scores for every user: the items' sums of weights."""
        return self.counts.expand(len(histories), -1)


class InfiniteAutoencoder(Recommender):
    """The infinite-width autoencoder of Sachdeva et al. (NeurIPS 2022, arXiv 2206.02626): kernel ridge regression of rows.

    scores(x) = k(x, X) (K + ridge tr(K)/n I)^-1 X with the kernel of a fully connected ReLU network on raw rows. For n users it
    takes in the order of n^2 items + n^3 operations and n^2 * 12 bytes.

    Args:
        depth: hidden layers.
        kind: "ntk", as published, or "nngp".
        ridge: one number of at least 0, relative to the mean diagonal of the Gram matrix, or several, of which `fit` takes
            the best on `validate`.
        kernel: in place of the ReLU network's.
    """

    RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 5.0, 20.0, 50.0)

    def __init__(
        self, depth: int = 1, kind: KernelKind = "ntk", ridge: Ridges = RIDGES, kernel: Kernel | None = None
    ) -> None:
        self.kernel = kernel or VectorKernel(matrix, InfiniteReLU(depth, kind))
        self.ridges = _checked(ridge)

    @torch.no_grad()
    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0, targets: Tensor | None = None) -> Self:
        """Solve for the coefficients; Gram matrices are formed once for all ridges.

        Args:
            users: see `Recommender`.
            validate, seed: see `Recommender`.
            targets: (users, items) what to answer to the rows; None is the rows themselves.

        Raises:
            InputError: several ridges but no `validate`, or none that makes the Gram matrix positive definite.
        """
        self.support = self._start(users)
        if targets is None:
            targets = matrix(self.support).to_dense()
        gram, answers = self.kernel(self.support, self.support), targets
        places = None if validate is None else _places(validate.histories, self.support)

        def solve(ridge: float) -> KernelMachine:
            return KernelMachine(self.kernel, self.support, ridge_solve(gram, answers, ridge), ridge)

        def outputs(machine: KernelMachine) -> Predictor | Tensor:
            """Of users that it was fitted to, K A = Y - ridge tr(K)/n A needs neither a kernel nor a product."""
            if places is None:
                return machine
            shift = float(machine.ridge or 0.0) * gram.diagonal().mean()
            return torch.addcmul(answers[places], machine.coefficients[places], shift, value=-1)

        self.ridge, self._machine = _choose(self.ridges, solve, validate, outputs)
        return self

    def __call__(self, histories: UserRows) -> Tensor:
        """Scores (users, items)."""
        return self._machine(histories)


class EASE(Recommender):
    """Embarrassingly shallow autoencoder (Steck, WWW 2019, arXiv 1905.03375): linear item-to-item weights with a zero diagonal.

    B = I - P diag(P)^-1 with P = (X^T X + ridge I)^-1. Where there are fewer users than items, P is never formed: with
    M = (X X^T + ridge I)^-1 X and h = diag(X^T M), the scores of a row x are (x X^T M - h x) / (1 - h), which costs as much as
    inverting a matrix of the users' size.

    Args:
        ridge: one positive number, absolute as in the paper, or several, of which `fit` takes the best on `validate`.
    """

    RIDGES = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
    LARGEST = 30_000
    """Users or items, whichever are fewer, up to which it can be fitted: the inverse of that size has 7 GB."""

    def __init__(self, ridge: Ridges = RIDGES) -> None:
        self.ridges = _checked(ridge)
        require(min(self.ridges) > 0, "ridge of EASE must be positive.")

    @torch.no_grad()
    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0) -> Self:
        """Solve for the weights in float64.

        Raises:
            InputError: several ridges but no `validate`, or more than 30,000 users and items.
        """
        rows = matrix(self._start(users))
        size = min(rows.shape)
        require(
            size <= self.LARGEST,
            f"EASE inverts a matrix of {size:,} x {size:,} here, and {self.LARGEST:,} is the most; keep to the popular items.",
        )
        solve = _few_users(rows.to_dense()) if rows.shape[0] < self.items else _few_items(rows)
        self.ridge, self._scores = _choose(self.ridges, solve, validate)
        return self

    @torch.no_grad()
    def __call__(self, histories: UserRows) -> Tensor:
        """Scores (users, items)."""
        return self._scores(histories)


def _few_items(rows: Tensor) -> Callable[[float], Predictor]:
    gram = _item_gram(rows)

    def solve(ridge: float) -> Predictor:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(_shifted(gram, ridge)))
        weights = -inverse / inverse.diagonal()
        weights = weights.fill_diagonal_(0).to(rows.dtype)
        return lambda histories: matrix(histories) @ weights

    return solve


def _item_gram(rows: Tensor) -> Tensor:
    """X^T X in float64, of some users at a time; of several processes each takes a share of them, and the sum is everybody's."""
    counts, columns, values = (part.cpu() for part in _csr(rows))
    users = sp.csr_matrix((values.double().numpy(), columns.numpy(), counts.numpy()), shape=tuple(rows.shape))
    gram = np.zeros((rows.shape[1], rows.shape[1]))
    for first in processes.mine(range(0, rows.shape[0], _USERS)):
        some = users[first : first + _USERS]
        found = (some.T @ some).tocoo()
        gram[found.row, found.col] += found.data  # each place is there once
    return processes.total(torch.from_numpy(gram)).to(rows.device)


def _csr(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sparse = rows if rows.layout == torch.sparse_csr else rows.to_sparse_csr()
    return sparse.crow_indices(), sparse.col_indices(), sparse.values()


def _shifted(gram: Tensor, ridge: float) -> Tensor:
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _few_users(rows: Tensor) -> Callable[[float], Predictor]:
    wide = rows.double()
    gram = wide @ wide.T

    def solve(ridge: float) -> Predictor:
        solution = torch.cholesky_solve(wide, torch.linalg.cholesky(_shifted(gram, ridge)))
        leverage = (solution * wide).sum(0)
        rest = 1 - leverage  # positive, because the ridge is
        coefficients, own = (solution / rest).to(rows.dtype), (leverage / rest).to(rows.dtype)

        def scores(histories: UserRows) -> Tensor:
            read = matrix(histories)
            return products(read, rows) @ coefficients - read.to_dense() * own

        return scores

    return solve


def _places(users: SparseRows, among: UserRows) -> Tensor | None:
    """Where each of these users is among those, or None if one is not, or those are dense."""
    if not isinstance(among, SparseRows) or among.width != users.width:
        return None
    weights = torch.rand(users.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # On the processor, where equal rows have equal sums: on a GPU the order of a sum may depend on the whole matrix.
    marks, wanted = (rows.csr().cpu().double() @ weights for rows in (among, users))
    ordered, order = marks.sort(stable=True)
    places = order[torch.searchsorted(ordered, wanted).clamp(max=len(order) - 1)].to(among.values.device)
    found = among.take(places)
    pairs = ((found.starts, users.starts), (found.columns, users.columns), (found.values, users.values))
    return places if all(torch.equal(one, other) for one, other in pairs) else None


def _checked(ridge: Ridges) -> tuple[float, ...]:
    ridges = (ridge,) if isinstance(ridge, int | float) else tuple(ridge)
    known = ridges and all(isinstance(value, int | float) and 0 <= value < float("inf") for value in ridges)
    require(bool(known), f"ridge must be a number of at least 0, or several of them, got {ridge!r}.")
    return tuple(float(value) for value in ridges)


P = TypeVar("P", bound=Predictor)


def _choose(
    ridges: Sequence[float],
    solve: Callable[[float], P],
    validate: Holdout | None,
    outputs: Callable[[P], Predictor | Tensor] = lambda found: found,
) -> tuple[float, P]:
    """The ridge that is best on held-out items, and what it gives.

    `outputs` says what `validate` scores of what `solve` gives. From the middle ridge they are tried in the direction in which
    the score rises, until it falls. One that leaves the matrix singular, as a small one does where users are equal, is passed
    over.
    """
    if len(ridges) > 1 and validate is None:
        raise InputError(
            "Several ridges need validate, the held-out items to choose by: a Holdout(histories, wanted); or give one ridge."
        )
    ordered = sorted(ridges)
    best: tuple[float, float, P] | None = None

    def improves(place: int) -> bool:
        nonlocal best
        try:
            found = solve(ordered[place])
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return False
        score = 0.0
        if validate is not None and len(ordered) > 1:
            score = validate.score(outputs(found), [validate.cutoff])[validate.metric]
        if best is not None and score <= best[0]:
            return False
        best = score, ordered[place], found
        return True

    middle = len(ordered) // 2
    improves(middle)
    above = middle + 1
    while above < len(ordered) and improves(above):
        above += 1
    below = middle - 1 if above == middle + 1 else -1
    while below >= 0 and improves(below):
        below -= 1
    if best is None:
        raise InputError(f"The Gram matrix of these users is singular at ridge {ordered[-1]}; use more.")
    return best[1], best[2]
