"""`Graphs`: what learners of whole graphs read. Real graphs are one sparse block-diagonal graph, synthetic ones a dense batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from datastill.backbones.nodes import Csr

Pool = Literal["mean", "sum"]


@dataclass(frozen=True)
class Known:
    """What does not change as long as the graphs do not, so that no step computes it again.

    Attributes:
        received: A X, (n, d).
        profile: pooled A^k X for k = 0, 1, ..., (m, hops + 1, d), means.
    """

    received: Tensor
    profile: Tensor


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
        owner = self.owner if self.present is None else self.owner[self.present]
        return torch.bincount(owner, minlength=self.count)

    def take(self, index: Tensor) -> Graphs:
        """The graphs at `index`, in that order; a graph may come more than once."""
        rows_of = torch.bincount(self.owner, minlength=self.count)  # fillers included
        counts, before = rows_of[index], (rows_of.cumsum(0) - rows_of)[index]
        owner = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        shift = (before - (counts.cumsum(0) - counts))[owner]  # from the place of a row here to its place there
        rows = torch.arange(len(owner), device=index.device) + shift
        known = self.known and Known(self.known.received[rows], self.known.profile[index])
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
        if self.adjacency is None:
            return values
        if isinstance(self.adjacency, Csr):
            return self.adjacency @ values
        blocks = values.reshape(self.count, -1, values.shape[1])
        return (self.adjacency @ blocks).reshape(values.shape)

    def received(self) -> Tensor:
        """A X, (n, d)."""
        return self.propagate(self.features) if self.known is None else self.known.received

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

    def constant(self, hops: int) -> Graphs:
        """The same graphs with what is known of constant ones, their profile up to `hops`."""
        with torch.no_grad():
            bare = replace(self, known=None)
            return replace(self, known=Known(bare.received(), bare.profile(hops)))


def owners_of(sizes: Tensor) -> Tensor:
    """The graph (n,) of each node, for graphs of these sizes (m,)."""
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
