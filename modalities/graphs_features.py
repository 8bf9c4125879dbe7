"""How the nodes of a set of graphs become vectors, and how synthetic vectors become nodes that the data could have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.errors import InputError, require, unknown_name

Integers = Literal["onehot", "number"]


class NodeFeatures(ABC):
    """A map from the nodes of a user's graphs to vectors of length `width`."""

    width: int
    exact: ClassVar[bool] = True
    """Whether `encode(decode(v), ...)` is v for any v."""

    @abstractmethod
    def encode(self, x: Tensor | None, degrees: Tensor) -> Tensor:
        """Vectors (n, width), float32, of nodes with features `x` (n, columns) or without any, and of these degrees (n,)."""

    def decode(self, vectors: Tensor) -> Tensor:
        """What a user gets as x for synthetic vectors (n, width). Default: the vectors."""
        return vectors

    def relax(self, free: Tensor, progress: float = 0.0) -> Tensor:
        """Synthetic vectors (n, width) of free parameters (n, width), differentiable. Default: the parameters.

        Args:
            free: the parameters.
            progress: from 0 at the start of distillation to 1, when `decode` should change little.
        """
        return free

    def free(self, vectors: Tensor) -> Tensor:
        """Parameters of which `relax` makes these vectors, or what comes near them. Default: the vectors."""
        return vectors


class Numbers(NodeFeatures):
    """Features that are numbers already; integers become floats."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, x: Tensor | None, degrees: Tensor) -> Tensor:
        require(
            x is not None and x.dim() == 2 and x.shape[1] == self.width,
            f"Every graph must have x of shape (nodes, {self.width}), like the target dataset.",
        )
        assert x is not None
        return x.float()


class Categories(NodeFeatures):
    """Columns of integers that name categories, such as OGB's atom features: one-hot over the values that each column has.

    A value that the training graphs do not have becomes zeros; a synthetic vector becomes the largest entry's category.
    Synthetic vectors are softmax(free logits / t), where t falls while a summary is distilled, as it does for edges: learners
    end on nearly the categories that they will be given.

    Args:
        columns: the values of each column, ascending.
    """

    exact = False
    _DOUBT = 0.1  # share of a column of a real node that all categories divide at first, so that logits are finite
    _LAST = 0.1  # t at the end; it begins at 1

    def __init__(self, columns: list[Tensor]) -> None:
        self.columns = columns
        self.width = sum(map(len, columns))

    @classmethod
    def of(cls, x: Tensor) -> Categories:
        """The categories that are in x (n, columns)."""
        return cls([column.unique() for column in x.T])

    def encode(self, x: Tensor | None, degrees: Tensor) -> Tensor:
        require(
            x is not None and x.dim() == 2 and x.shape[1] == len(self.columns) and not x.is_floating_point(),
            f"Every graph must have integer x of shape (nodes, {len(self.columns)}), like the target dataset.",
        )
        assert x is not None
        return torch.cat([(column[:, None] == known).float() for column, known in zip(x.T, self.columns)], 1)

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        return vectors.split([len(known) for known in self.columns], 1)

    def decode(self, vectors: Tensor) -> Tensor:
        parts = self._split(vectors)
        return torch.stack([known[part.argmax(1)] for known, part in zip(self.columns, parts)], 1)

    def relax(self, free: Tensor, progress: float = 0.0) -> Tensor:
        sharper = free / self._LAST**progress
        return torch.cat([part.softmax(1) for part in self._split(sharper)], 1)

    def free(self, vectors: Tensor) -> Tensor:
        doubt = self._DOUBT
        parts = [(1 - doubt) * part.clamp(min=0) + doubt / part.shape[1] for part in self._split(vectors)]
        return torch.cat(parts, 1).log()


class Degrees(NodeFeatures):
    """For graphs without features: a node is its degree, one-hot; degrees above the largest in training count as that."""

    def __init__(self, largest: int) -> None:
        self.width = largest + 1

    def encode(self, x: Tensor | None, degrees: Tensor) -> Tensor:
        if x is not None:  # what a synthetic graph brings
            return Numbers(self.width).encode(x, degrees)
        return F.one_hot(degrees.clamp(max=self.width - 1), self.width).float()


def features_for(x: Tensor | None, degrees: Tensor, integers: Integers) -> NodeFeatures:
    """The map that suits the training graphs' x (n, columns), or None, and degrees (n,)."""
    if integers not in ("onehot", "number"):
        raise unknown_name("reading of integers", integers, ("onehot", "number"))
    if x is None:
        return Degrees(int(degrees.max()))
    if x.is_floating_point() or integers == "number":
        return Numbers(x.shape[1])
    found = Categories.of(x)
    if found.width > 4096:
        raise InputError(
            f"The integer features of the nodes have {found.width} values in all, too many to be categories; "
            "read them as numbers by integers='number', or convert x to floats."
        )
    return found
