"""Any summary with one of its parameters as a product of coefficients and bases that all points share.

LinBa (Deng & Russakovsky, NeurIPS 2022, arXiv 2206.02916) stores images so; here it is node features, token embeddings, users'
logits or whatever a summary holds as vectors. Images have it as the storage "bases".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Batch, Summary

By = Literal["points", "vectors"]


def factorise(summary: Summary, bases: int, *, role: str | None = None, by: By = "points") -> FactorisedSummary:
    """`summary` with its largest parameter as coefficients @ bases, which begin as its best approximation of that rank.

    Args:
        summary: a summary with free parameters; it is taken over and must not be used on its own any more.
        bases: rank of the product, at least 1, at most the smaller side of the matrix.
        role: the parameter group to factorise; None takes the one with the most numbers.
        by: whether a row of the matrix is a point with all its numbers ("points"), or each vector of the last dimension, such as
            one token of a sentence ("vectors").

    Raises:
        InputError: for a role that the summary does not have, more bases than rows or columns, or a summary that is coded or
            folds a learned matrix in.
    """
    check_count("bases", bases)
    if by not in ("points", "vectors"):
        raise unknown_name("rows to factorise", by, ("points", "vectors"))
    require(
        not summary.coded, "This summary is stored by a code already; images take storage='bases' for linear bases."
    )
    require(
        not summary.folds, "A summary with storage='preconditioned' cannot be factorised; ask for storage='pixels'."
    )
    groups = summary.parameter_groups()
    if role is not None and role not in groups:
        raise unknown_name("parameter group", role, groups)
    members = groups[role] if role is not None else [value for values in groups.values() for value in values]
    largest = max(members, key=Tensor.numel)
    name = next(name for name, value in summary.named_parameters() if value is largest)
    rows = largest.shape[0] if by == "points" else largest.numel() // largest.shape[-1]
    most = min(rows, largest.numel() // max(rows, 1))
    require(
        largest.dim() > 1 and bases <= most,
        f"bases must be at most {most} for {name} of shape {tuple(largest.shape)} by {by}, got {bases}.",
    )
    role = next(role for role, members in groups.items() if any(value is largest for value in members))
    return FactorisedSummary(summary, name, role, bases, rows)


class FactorisedSummary(Summary):
    """A summary whose parameter `name` is a product; everything else is as the summary itself has it.

    Where that puts the parameter back into an allowed set (`project_`), the nearest product of the same rank takes its place.

    The native export is dense: it holds the product, in as many bytes as without factors, and a budget in bytes counts those.
    `nbytes` are the bytes of coefficients, bases and all else that is not in the product; `evaluate`, given the summary or the
    result of a run on it, scores and reports both forms.

    Args:
        inner: the summary, taken over.
        name: of the parameter in it.
        role: of that parameter.
        bases: rank of the product.
        rows: of the matrix as which the parameter is seen.
    """

    def __init__(self, inner: Summary, name: str, role: str, bases: int, rows: int) -> None:
        super().__init__()
        self.inner, self.role = inner, role
        # What is paid for are the factors, which the dense export does not show.
        self.exact_export = False
        self.signed_labels, self.versions = inner.signed_labels, inner.versions
        path, _, self._attribute = name.rpartition(".")
        self._path = path
        value = inner.get_submodule(path)._parameters.pop(self._attribute)
        assert value is not None
        self.shape, self.rows = value.shape, rows
        coefficients, basis = _factors(value.detach().reshape(rows, -1), bases)
        self.coefficients, self.bases = nn.Parameter(coefficients), nn.Parameter(basis)

    @contextmanager
    def _whole(self) -> Iterator[Tensor]:
        """The inner summary with the product in the place of its parameter."""
        owner = self.inner.get_submodule(self._path)
        value = (self.coefficients @ self.bases).view(self.shape)
        setattr(owner, self._attribute, value)
        try:
            yield value
        finally:
            delattr(owner, self._attribute)

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        with self._whole():
            batch: Batch = self.inner(rng)
            return batch

    def export(self) -> Any:
        with self._whole():
            return self.inner.export()

    @torch.no_grad()
    def project_(self) -> None:
        with self._whole() as value:
            before = value.clone()
            self.inner.project_()
            if torch.equal(before, value):
                return
            coefficients, basis = _factors(value.reshape(self.rows, -1), len(self.bases))
        self.coefficients.copy_(coefficients)
        self.bases.copy_(basis)

    def plan(self, steps: int) -> None:
        self.inner.plan(steps)

    def penalty(self) -> Tensor | None:
        with self._whole():
            return self.inner.penalty()

    def relabel_(self, targets: Any) -> None:
        with self._whole():
            self.inner.relabel_(targets)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the inner summary, with coefficients and bases in the place of the parameter that they make."""
        with self._whole() as value:
            groups = {
                role: [one for one in members if one is not value]
                for role, members in self.inner.parameter_groups().items()
            }
        return {**groups, self.role: [self.coefficients, self.bases, *groups[self.role]]}

    @property
    def num_points(self) -> int:
        with self._whole():
            return self.inner.num_points


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Coefficients (n, rank) and bases (rank, d), the best approximation; each has the root of the singular values."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    return (left[:, :rank] * roots).to(matrix.dtype), (roots[:, None] * right[:rank]).to(matrix.dtype)
