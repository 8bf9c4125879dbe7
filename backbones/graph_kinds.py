"""Kinds of nodes: what no graph network of a few layers can tell apart is computed once.

A network of k convolutions gives two nodes the same units if colour refinement (the 1-dimensional Weisfeiler-Leman test) gives
them the same colour after k rounds. Molecules have few colours: in NCI1's 122,747 nodes there are 927 after one round, 12,310
after two. So units are computed for kinds, and nodes are only counted when they are pooled. This is exact, not sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from datastill.backbones.nodes import Csr

_WORTHWHILE = 0.5  # of as many kinds as nodes, after a single round; with more of them nothing would be gained


@dataclass(frozen=True)
class Kinds:
    """The kinds of the nodes of constant graphs after 1, 2, ... rounds.

    Attributes:
        received: A X of each kind of the first round, (u_1, d).
        operators: (u_k, u_{k-1}) sparse, for k = 2, 3, ...: what a kind receives from those of the round before.
        members: for every round (n,) int64, the kind of each node.
    """

    received: Tensor
    operators: tuple[Csr, ...]
    members: tuple[Tensor, ...]

    @property
    def rounds(self) -> int:
        """How many convolutions they suffice for."""
        return len(self.members)

    def of(self, nodes: Tensor) -> Kinds:
        """The same kinds with other members: those of `nodes`, (m,) ids."""
        return replace(self, members=tuple(kinds[nodes] for kinds in self.members))

    def compact(self, rounds: int, blocks: Tensor | None = None, count: int = 1) -> tuple[Kinds, list[list[int]]]:
        """The kinds that have members or that those receive from, in as many rounds as asked for.

        Args:
            rounds: from the first on, at most those there are.
            blocks: (n,) int64, ascending from 0: nodes of different blocks are never of one kind then, and kinds stand block
                after block.
            count: blocks there are.

        Returns:
            The kinds, and for every round how many of them there are in each block.
        """
        members = list(self.members[:rounds])
        widths = [len(self.received), *(operator.shape[0] for operator in self.operators)]
        operators: list[Csr] = []
        sizes: list[list[int]] = []
        above: Csr | None = None  # the operator that the kinds of this round are columns of
        for level in reversed(range(len(members))):
            width = widths[level]
            keys = members[level] if blocks is None else members[level] + blocks * width
            marked = torch.zeros(count * width, dtype=torch.bool, device=keys.device)
            marked[keys] = True
            if above is not None:
                marked[above.columns.long()] = True
            used = marked.nonzero().squeeze(1)
            places = torch.empty(count * width, dtype=torch.int64, device=keys.device)
            places[used] = torch.arange(len(used), device=keys.device)
            members[level] = places[keys]
            sizes.append(torch.bincount(used // width, minlength=count).tolist())
            if above is not None:
                columns = places[above.columns.long()].to(above.starts.dtype)
                operators.append(Csr(above.starts, columns, above.values, len(used)))
            if level == 0:
                return Kinds(self.received[used % width], tuple(operators[::-1]), tuple(members)), sizes[::-1]
            above = self.operators[level - 1].rows(used % width)
            if count > 1:
                columns = above.columns + (used // width)[above.owners().long()] * widths[level - 1]
                above = Csr(above.starts, columns, above.values, count * widths[level - 1])
        raise AssertionError("unreachable: there is at least one round")


def find_kinds(features: Tensor, adjacency: Csr, received: Tensor, rounds: int) -> Kinds | None:
    """The kinds of nodes with these features and this operator, or None where nearly every node is of a kind of its own.

    Args:
        features: X, (n, d).
        adjacency: A.
        received: A X.
        rounds: at least 1.
    """
    members: list[Tensor] = []
    operators: list[Csr] = []
    representatives = torch.empty(0, dtype=torch.int64)
    kinds = _equal_rows(features.detach().cpu().numpy())
    for _ in range(rounds):
        below = kinds
        kinds, first = _equal_lists(adjacency, below)
        if not members:
            if len(first) > _WORTHWHILE * len(features):
                return None
            representatives = torch.from_numpy(first).to(features.device)
        else:
            rows = adjacency.rows(torch.from_numpy(first).to(features.device))
            columns = members[-1][rows.columns.long()]
            operators.append(Csr.from_entries(rows.owners(), columns, rows.values, (len(first), int(below.max()) + 1)))
        members.append(torch.from_numpy(kinds).to(features.device))
    return Kinds(received[representatives], tuple(operators), tuple(members))


def _equal_rows(rows: np.ndarray) -> np.ndarray:
    """A number for each row of floats, the same for equal ones."""
    hashes = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T:
        hashes = _mix(hashes ^ _bits(column))
    return _numbered(hashes, lambda first: (rows == rows[first]).all(1))[0]


def _equal_lists(adjacency: Csr, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for what each node receives, which is weights from nodes of the kinds `below`, in any order; and the first node
    of each number."""
    starts, columns = adjacency.starts.cpu().numpy().astype(np.int64), adjacency.columns.cpu().numpy()
    lengths = np.diff(starts)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    kinds, bits = below[columns], _bits(adjacency.values.cpu().numpy())
    hashes = lengths.astype(np.uint64)
    np.add.at(hashes, owners, _mix(_mix(kinds.astype(np.uint64)) ^ bits))
    order = np.lexsort((bits, kinds, owners))
    kinds, bits = kinds[order], bits[order]

    def same(first: np.ndarray) -> np.ndarray:
        equal = lengths == lengths[first]
        mine = np.flatnonzero(equal[owners])
        theirs = starts[first[owners[mine]]] + mine - starts[owners[mine]]
        wrong = (kinds[mine] != kinds[theirs]) | (bits[mine] != bits[theirs])
        equal[owners[mine[wrong]]] = False
        return equal

    return _numbered(hashes, same)


def _numbered(hashes: np.ndarray, same: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A number for each hash, and the first place of each number; who is not the `same` as the first one has a number alone."""
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    chance = np.flatnonzero(~same(first[numbers]))
    numbers[chance] = len(first) + np.arange(len(chance))
    return numbers, np.concatenate([first, chance])


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32 if values.itemsize == 4 else np.uint64).astype(np.uint64)


def _mix(words: np.ndarray) -> np.ndarray:
    """A hash of 64 bits: the finaliser of splitmix64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
