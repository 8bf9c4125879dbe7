"""Learners of recommender logs: a user is a row of items, and a learner gives every item a score for that user."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import scipy.sparse as sp
import torch
from torch import Tensor, nn

from datastill.backbones.base import Learner
from datastill.backbones.infinite import squared_norms
from datastill.errors import InputError, check_count


@dataclass(frozen=True)
class SparseRows:
    """A batch of `n` users as the items that each of them has: compressed sparse rows, of plain tensors.

    (A sparse CSR tensor itself can be neither indexed by rows nor compared; `csr` gives one where products are formed.)

    Attributes:
        starts: (n + 1,) int64; user `u` owns the entries `starts[u]:starts[u + 1]`.
        columns: (entries,) int64 item positions, ascending within a user.
        values: (entries,) floats, 1 for an interaction without a weight.
        width: how many items there are.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def owners(self) -> Tensor:
        """(entries,) int64: the user of each entry."""
        users = torch.arange(len(self), device=self.starts.device)
        return torch.repeat_interleave(users, self.starts.diff())

    def take(self, index: Tensor) -> SparseRows:
        """The users at `index` (int64 positions), in that order."""
        counts = self.starts.diff()[index]
        starts = torch.zeros(len(index) + 1, dtype=torch.int64, device=index.device)
        torch.cumsum(counts, 0, out=starts[1:])
        shift = torch.repeat_interleave(self.starts[:-1][index] - starts[:-1], counts)
        entries = torch.arange(len(shift), device=index.device) + shift
        return SparseRows(starts, self.columns[entries], self.values[entries], self.width)

    def csr(self) -> Tensor:
        """The sparse CSR tensor (n, width) of these users."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.starts, self.columns, self.values, (len(self), self.width), check_invariants=False
            )

    def dense(self) -> Tensor:
        """The dense tensor (n, width) of these users."""
        rows = torch.zeros(len(self), self.width, dtype=self.values.dtype, device=self.values.device)
        return rows.index_put((self.owners, self.columns), self.values)


UserRows: TypeAlias = Tensor | SparseRows
"""Users (n, items): dense, as synthetic ones are, or sparse, as real ones are."""


def sparse_rows(rows: sp.csr_matrix) -> SparseRows:
    """A SciPy CSR matrix as `SparseRows`, on the CPU, float32."""
    return SparseRows(
        torch.as_tensor(rows.indptr.astype("int64")),
        torch.as_tensor(rows.indices.astype("int64")),
        torch.as_tensor(rows.data.astype("float32")),
        rows.shape[1],
    )


def user_rows(rows: Any) -> UserRows:
    """Users in any form, a SciPy sparse matrix among them, as a tensor or `SparseRows`.

    Raises:
        InputError: for anything else.
    """
    if sp.issparse(rows):
        found = sp.csr_matrix(rows, copy=True)
        found.sum_duplicates()  # which also sorts the items of each user
        return sparse_rows(found)
    if isinstance(rows, SparseRows) or (isinstance(rows, Tensor) and rows.layout == torch.strided and rows.dim() == 2):
        return rows
    raise InputError(
        f"Users must be a SciPy sparse matrix, a dense tensor (users, items) or SparseRows, got {type(rows)}."
    )


def matrix(rows: UserRows) -> Tensor:
    """Users as one tensor (n, items), dense or sparse CSR."""
    return rows.csr() if isinstance(rows, SparseRows) else rows


class UserAutoencoder(Learner):
    """An autoencoder of users with one hidden ReLU layer: a row of items in, a score (logit) of every item out.

    A row is first brought to unit length, so that long and short histories are read at one scale, as in the denoising
    autoencoder of Liang et al. (2018, arXiv 1802.05814). Inputs are dense rows (n, items) or `SparseRows`, outputs (n, items).
    The encoder starts at small weights, with which the hidden units move far in training; at the scale of standard normals
    they hardly move, and it recommends much worse.

    Args:
        items: width of the rows.
        width: hidden units.
    """

    def __init__(self, items: int, width: int = 256) -> None:
        super().__init__()
        check_count("items", items)
        check_count("width", width)
        self.encoder = nn.Linear(items, width)
        nn.init.normal_(self.encoder.weight, std=0.1)
        nn.init.zeros_(self.encoder.bias)
        self.head = nn.Linear(width, items)

    def embed(self, inputs: UserRows) -> Tensor:
        """Hidden features (n, width)."""
        rows, weight = matrix(inputs), self.encoder.weight
        # The floor keeps the slope of the length finite at a row without items.
        lengths = (squared_norms(rows) + 1e-12).sqrt()
        hidden = rows @ weight.T if rows.layout == torch.strided else torch.sparse.mm(rows, weight.T)
        return torch.relu(hidden / lengths[:, None] + self.encoder.bias)
