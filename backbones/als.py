"""Weighted matrix factorisation by alternating least squares (Hu, Koren & Volinsky, ICDM 2008), by the package `implicit`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datastill.backbones.ranking import Holdout
from datastill.backbones.recommender import SparseRows, UserRows
from datastill.backbones.recommenders import Recommender
from datastill.errors import InputError, check_count, load_extra, require


class ALS(Recommender):
    """Factors of users and items such that their products are 1 where there is an interaction and 0 elsewhere, weighted.

    An interaction of weight w counts 1 + alpha w, an absent one 1. A new user gets factors by one least-squares solve.

    Args:
        factors: of every user and item.
        alpha: how much more an interaction counts than an absent one; several numbers: the best on `validate`.
        regularization: L2 penalty of the factors.
        iterations: sweeps over users and items.
    """

    def __init__(
        self,
        factors: int = 64,
        alpha: float | Sequence[float] = (1.0, 5.0, 20.0),
        regularization: float = 0.1,
        iterations: int = 15,
    ) -> None:
        self.factors, self.iterations = check_count("factors", factors), check_count("iterations", iterations)
        self.alphas = (alpha,) if isinstance(alpha, int | float) else tuple(alpha)
        require(len(self.alphas) > 0 and min(self.alphas) > 0, f"alpha must be positive, got {alpha!r}.")
        require(regularization >= 0, f"regularization must be at least 0, got {regularization!r}.")
        self.regularization = regularization

    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0) -> Self:
        """Factorise, once for each `alpha`.

        Raises:
            InputError: several values of `alpha` but no `validate`.
            MissingExtraError: without `implicit`.
        """
        als = load_extra("implicit.als", "als")
        rows = _scipy(self._start(users))
        if len(self.alphas) > 1 and validate is None:
            raise InputError("Several values of alpha need validate, the held-out items to choose by; or give one.")
        fitted = []
        for alpha in self.alphas:
            with warnings.catch_warnings():  # about the threads of the BLAS, which are the caller's business
                warnings.simplefilter("ignore")
                model = als.AlternatingLeastSquares(
                    factors=self.factors,
                    regularization=self.regularization,
                    alpha=1.0,
                    iterations=self.iterations,
                    num_threads=torch.get_num_threads(),
                    random_state=seed,
                    use_gpu=False,
                )
                model.fit(_confidences(rows, alpha), show_progress=False)
            fitted.append(_Fold(alpha, model))
        if validate is None or len(fitted) == 1:
            self._fold = fitted[0]
        else:
            self._fold = max(fitted, key=lambda fold: validate.score(fold, [validate.cutoff])[validate.metric])
        self.alpha = self._fold.alpha
        return self

    def __call__(self, histories: UserRows) -> Tensor:
        """Scores (users, items), by folding the users in."""
        return self._fold(histories)


class _Fold:
    """Scores of users who are folded into fitted factors."""

    def __init__(self, alpha: float, model: Any) -> None:
        self.alpha = alpha
        self.model = model

    def __call__(self, histories: UserRows) -> Tensor:
        rows = _scipy(histories)
        factors = self.model.recalculate_user(np.arange(rows.shape[0]), _confidences(rows, self.alpha))
        scores = torch.from_numpy(np.asarray(factors) @ np.asarray(self.model.item_factors).T)
        return scores.to(histories.values if isinstance(histories, SparseRows) else histories)


def _confidences(rows: sp.csr_matrix, alpha: float) -> sp.csr_matrix:
    return sp.csr_matrix((1 + alpha * rows.data, rows.indices, rows.indptr), shape=rows.shape, dtype=np.float32)


def _scipy(rows: UserRows) -> sp.csr_matrix:
    if isinstance(rows, Tensor):
        return sp.csr_matrix(rows.detach().cpu().numpy())
    values, columns, starts = (tensor.detach().cpu().numpy() for tensor in (rows.values, rows.columns, rows.starts))
    return sp.csr_matrix((values, columns, starts), shape=(len(rows), rows.width))
