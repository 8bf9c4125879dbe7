"""`Graphs`: what learners of whole graphs read. Real graphs are one sparse block-diagonal graph, synthetic ones a dense batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from datastill.backbones.graph_kinds import Kinds, find_kinds
from datastill.backbones.nodes import Csr

Pool = Literal["mean", "sum"]


@dataclass(frozen=True)
class Known:
    """What does not change as long as the graphs do not, so that no step computes it again.

    Attributes:
        received: A X, (n, d); None where `kinds` have it.
        profile: pooled A^k X for k = 0, 1, ..., (m, hops + 1, d), means.
        kinds: of the nodes, where there are far fewer than nodes.
    """

    received: Tensor | None
    profile: Tensor
    kinds: Kinds | None = None


@dataclass(frozen=True)
class Layers:
    """What a network of convolutions computes on: rows of units for each of its layers, block after block.

    A row is a node, or a kind of nodes.

    Attributes:
        received: A X, (u_1, d).
        operators: what the rows of layer k + 1 receive from those of layer k, for k = 1, 2, ...: sparse (u_{k+1}, u_k), dense
            (m, N, N) for graphs of N rows each, or None for the identity.
        pools: for every layer, sparse (m, u_k), how many nodes of each graph a row stands for.
        nodes: (m,) nodes of each graph, of the units' type.
        sizes: for every layer, the rows of each block.
    """

    received: Tensor
    operators: tuple[Csr | Tensor | None, ...]
    pools: tuple[Csr, ...]
    nodes: Tensor
    sizes: tuple[list[int], ...]

    def receive(self, layer: int, values: Tensor) -> Tensor:
        """What the rows of layer `layer + 1` receive from values (u, h) of those of layer `layer`, counted from 0."""
        return _through(self.operators[layer], values)

    def send_back(self, layer: int, values: Tensor) -> Tensor:
        """The adjoint of `receive`."""
        operator = self.operators[layer]
        if isinstance(operator, Csr):
            return operator.transposed @ values
        return _through(None if operator is None else operator.mT, values)

    def pool(self, layer: int, values: Tensor, how: Pool) -> Tensor:
        """The mean or the sum of values (u, h) over each graph's nodes, (m, h)."""
        sums = self.pools[layer] @ values
        return sums if how == "sum" else sums / self.nodes[:, None]

    def unpool(self, layer: int, values: Tensor, how: Pool) -> Tensor:
        """The adjoint of `pool`."""
        return self.pools[layer].transposed @ (values if how == "sum" else values / self.nodes[:, None])


def _through(operator: Csr | Tensor | None, values: Tensor) -> Tensor:
    if operator is None:
        return values
    if isinstance(operator, Csr):
        return operator @ values
    return (operator @ values.reshape(*operator.shape[:2], -1)).reshape(values.shape)


@dataclass(frozen=True)
class Graphs:
    """m graphs with n nodes in all.

    Attributes:
        features: X, (n, d), the nodes of one graph after those of another.
        owner: (n,) int64, the graph of each node, ascending.
        count: m.
        adjacency: the normalised propagation operators A, none of which links two graphs: one sparse matrix (n, n); or dense
            and differentiable (m, n / m, n / m), where every graph takes the same number of rows; or None for no edges.
        present: (n,) bool, false on rows that only fill a dense graph up: they are in no pool. None means all true.
        known: of graphs that are constant. Whoever replaces `features` or `adjacency` has to drop it.
    """

    features: Tensor
    owner: Tensor
    count: int
    adjacency: Csr | Tensor | None = None
    present: Tensor | None = None
    known: Known | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def sizes(self) -> Tensor:
        """(m,) int64, nodes of each graph."""
        return self._rows if self.present is None else torch.bincount(self.owner[self.present], minlength=self.count)

    @cached_property
    def _rows(self) -> Tensor:
        """(m,) int64, rows of each graph, fillers included."""
        return torch.bincount(self.owner, minlength=self.count)

    def take(self, index: Tensor) -> Graphs:
        """The graphs at `index`, in that order; a graph may come more than once."""
        rows_of = self._rows
        counts, before = rows_of[index], (rows_of.cumsum(0) - rows_of)[index]
        owner = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        shift = (before - (counts.cumsum(0) - counts))[owner]  # from the place of a row here to its place there
        rows = torch.arange(len(owner), device=index.device) + shift
        known = self.known
        if known is not None:
            kinds = known.kinds and known.kinds.of(rows)
            received = known.received if known.received is None else known.received[rows]
            known = Known(received, known.profile[index], kinds)
        present = None if self.present is None else self.present[rows]
        adjacency = self.adjacency
        if isinstance(adjacency, Csr):
            adjacency = adjacency.rows(rows)
            # A node's neighbours are in its own graph, and so move with it.
            columns = adjacency.columns - shift[adjacency.owners()]
            adjacency = replace(adjacency, columns=columns, width=len(rows))
        elif adjacency is not None:
            adjacency = adjacency[index]
        return Graphs(self.features[rows], owner, len(index), adjacency, present, known)

    def propagate(self, values: Tensor) -> Tensor:
        """A V for values V (n, h) of the nodes."""
        return _through(self.adjacency, values)

    def received(self) -> Tensor:
        """A X, (n, d)."""
        if self.known is None:
            return self.propagate(self.features)
        if self.known.received is not None:
            return self.known.received
        assert self.known.kinds is not None
        return self.known.kinds.received[self.known.kinds.members[0]]

    def pool(self, values: Tensor, how: Pool = "mean") -> Tensor:
        """The mean or the sum of the values (n, h) of each graph's nodes, (m, h)."""
        if self.present is not None:
            values = values * self.present[:, None].to(values.dtype)
        sums = values.new_zeros(self.count, values.shape[1]).index_add(0, self.owner, values)
        return sums if how == "sum" else sums / self.sizes[:, None].to(values.dtype)

    def profile(self, hops: int) -> Tensor:
        """The means of A^k X over each graph's nodes for k = 0, ..., hops: (m, hops + 1, d)."""
        if self.known is not None and self.known.profile.shape[1] > hops:
            return self.known.profile[:, : hops + 1]
        moments, values = [self.pool(self.features)], self.features
        for _ in range(hops):
            values = self.propagate(values)
            moments.append(self.pool(values))
        return torch.stack(moments, 1)

    def layers(self, depth: int, graphs: Sequence[int] | None = None) -> Layers:
        """What a network of `depth` convolutions computes on.

        Args:
            depth: at least 1.
            graphs: in how many graphs each block consists, in their order; None is a single block.
        """
        each = self.sizes
        nodes = each.to(self.features.dtype)
        rows = self._rows
        blocks = torch.tensor([self.count] if graphs is None else list(graphs), device=rows.device)
        block = torch.arange(len(blocks), device=rows.device).repeat_interleave(blocks)
        kinds = None if self.known is None else self.known.kinds
        if kinds is None or kinds.rounds < depth:
            sizes = torch.zeros_like(blocks).index_add_(0, block, rows).tolist()
            pool = self._counts(torch.arange(len(self.owner), device=rows.device), len(self.owner))
            return Layers(self.received(), (self.adjacency,) * (depth - 1), (pool,) * depth, nodes, (sizes,) * depth)
        kinds, of_blocks = kinds.compact(depth, block[self.owner] if len(blocks) > 1 else None, len(blocks))
        pools = tuple(self._counts(members, sum(sizes)) for members, sizes in zip(kinds.members, of_blocks))
        return Layers(kinds.received, kinds.operators, pools, nodes, tuple(of_blocks))

    def _counts(self, members: Tensor, width: int) -> Csr:
        """(m, width) how many nodes of each graph are in each place, where node i is in place `members[i]`."""
        owner = self.owner
        if self.present is not None:
            owner, members = owner[self.present], members[self.present]
        ones = torch.ones(len(owner), dtype=self.features.dtype, device=owner.device)
        return Csr.from_entries(owner, members, ones, (self.count, width))

    def constant(self, hops: int, rounds: int = 3) -> Graphs:
        """The same graphs with what is known of constant ones: their profile up to `hops`, kinds of nodes up to `rounds`."""
        with torch.no_grad():
            bare = replace(self, known=None)
            received, kinds = bare.received(), None
            if isinstance(self.adjacency, Csr) and self.present is None:
                kinds = find_kinds(self.features, self.adjacency, received, rounds)
            return replace(self, known=Known(received if kinds is None else None, bare.profile(hops), kinds))


def owners_of(sizes: Tensor) -> Tensor:
    """The graph (n,) of each node, for graphs of these sizes (m,)."""
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
