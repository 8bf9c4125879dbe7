"""`Nodes`: what graph learners read. Some rows of a graph's nodes, with the whole graph behind them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor

from datastill import memory
from datastill.backbones.hop_store import HopStore

_NUMBERS = 2**26  # in a stretch of columns that is propagated by itself, at most, or as many as _NARROWEST columns have
_NARROWEST = 8


@dataclass(frozen=True)
class Csr:
    """A sparse matrix by compressed rows, kept as ordinary tensors, so that it moves as any nest of tensors does.

    Attributes:
        starts: (rows + 1,), where each row begins in `columns` and `values`; int32 if that holds all numbers, or int64.
        columns: (entries,), of the same type.
        values: (entries,) floating.
        width: number of columns.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    width: int

    @staticmethod
    def from_entries(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Csr:
        """From entries in any order; those at the same place are added. Columns ascend within a row. O(entries + rows)."""
        entries = values.detach().cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy())
        matrix = sp.coo_matrix(entries, shape=shape).tocsr()  # it chooses int32 where that is enough
        starts, columns, summed = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        return Csr(starts.to(row.device), columns.to(row.device), summed.to(row.device), shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.starts) - 1, self.width

    def owners(self) -> Tensor:
        """(entries,) the row of each entry."""
        rows = torch.arange(self.shape[0], dtype=self.starts.dtype, device=self.starts.device)
        return torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.columns))

    def rows(self, index: Tensor) -> Csr:
        """The rows at `index`, in that order."""
        counts = self.starts.diff()[index]
        starts = self._starts(counts)
        total = int(starts[-1])
        shift = torch.repeat_interleave(self.starts[index] - starts[:-1], counts, output_size=total)
        entries = shift + torch.arange(total, dtype=shift.dtype, device=shift.device)
        return Csr(starts, self.columns[entries], self.values[entries], self.width)

    def block(self, first: int, last: int) -> Csr:
        """The rows from `first` up to `last`, without a copy of their entries."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        starts = self.starts[first : last + 1] - begin
        return Csr(starts, self.columns[begin:end], self.values[begin:end], self.width)

    def compact(self) -> tuple[Csr, Tensor]:
        """The same matrix without its empty columns, and the ids of the columns that are left."""
        used, columns = torch.unique(self.columns, return_inverse=True)
        return replace(self, columns=columns.to(self.columns.dtype), width=len(used)), used.long()

    @cached_property
    def transposed(self) -> Csr:
        """The transpose, made once: every backward pass through a product needs it."""
        if self.columns.device.type == "cpu":
            parts = self.values.detach().numpy(), self.columns.numpy(), self.starts.numpy()
            turned = sp.csr_matrix(parts, shape=self.shape).tocsc()
            starts, rows, values = (torch.from_numpy(part) for part in (turned.indptr, turned.indices, turned.data))
            return Csr(starts, rows, values, self.shape[0])
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns, minlength=self.width)
        return Csr(self._starts(counts), self.owners()[order], self.values[order], self.shape[0])

    def _starts(self, counts: Tensor) -> Tensor:
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(self.starts.dtype)

    def dense(self) -> Tensor:
        """The same matrix (rows, width), dense."""
        full = torch.zeros(self.shape, dtype=self.values.dtype, device=self.values.device)
        return full.index_put_((self.owners(), self.columns), self.values, accumulate=True)

    def __matmul__(self, other: Tensor) -> Tensor:
        """Product with a dense matrix (width, k), differentiable to any order in `other`, not in the values."""
        product: Tensor = _CsrTimesDense.apply(other, self)
        return product


class _CsrTimesDense(torch.autograd.Function):
    """torch's own sparse product has no rule under torch.func, and transposes slowly."""

    @staticmethod
    def forward(dense: Tensor, matrix: Csr) -> Tensor:
        with warnings.catch_warnings():  # torch calls all of its CSR tensors a beta feature, once per process
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            sparse = torch.sparse_csr_tensor(
                matrix.starts, matrix.columns, matrix.values, matrix.shape, check_invariants=False
            )
        return torch.sparse.mm(sparse, dense)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Csr], output: Tensor) -> None:
        ctx.matrix = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.transposed @ gradients[0].contiguous(), None


class Hops:
    """A^k X of a constant graph, each that is asked for computed once, on first use.

    It is shared by all `Nodes` of the graph and is not part of the nest of tensors: `Nodes` drops it when its tensors
    are replaced or moved.

    Args:
        features: X, (n, d).
        adjacency: A.
        store: keeps A^k X in files instead of in memory; for a sparse A on the CPU.
    """

    def __init__(self, features: Tensor, adjacency: Tensor | Csr, store: HopStore | None = None) -> None:
        self.adjacency = adjacency
        self.store = store if isinstance(adjacency, Csr) and features.device.type == "cpu" else None
        self._known = {0: features.detach()}

    def __call__(self, hops: int) -> Tensor:
        if hops not in self._known:
            self._known[hops] = self.once(hops)
        return self._known[hops]

    def once(self, hops: int) -> Tensor:
        """The same for whoever needs it a single time: it is not kept in memory."""
        nearest = max(known for known in self._known if known <= hops)
        values = self._known[nearest]
        for reached in range(nearest + 1, hops + 1):
            if self.store is None:
                values = self.adjacency @ values
            else:
                assert isinstance(self.adjacency, Csr)
                values = self.store.product(self.adjacency, values, reached)
        return values

    def at(self, rows: Tensor, wanted: Sequence[int]) -> dict[int, Tensor]:
        """A^k X at a few rows for several k, in memory for a stretch of columns of X at a time; nothing is kept."""
        features = self._known[0]
        nodes = max(1, len(features))  # each column is there twice: as sent and as received
        most = max(_NARROWEST, _NUMBERS // nodes)
        width = max(_NARROWEST, memory.chunk(2 * features.element_size() * nodes, features.device, most=most))
        found: dict[int, list[Tensor]] = {hops: [] for hops in wanted}
        for columns in features.split(width, dim=1):
            values, reached = columns.contiguous(), 0
            for hops in sorted(found):
                for _ in range(reached, hops):
                    values = self.adjacency @ values
                reached = hops
                found[hops].append(values[rows])
        return {hops: torch.cat(parts, 1) for hops, parts in found.items()}

    def holds(self, features: Tensor, adjacency: Tensor | Csr | None) -> bool:
        """Whether this is the propagation of these very tensors."""
        mine, theirs = _leading(self.adjacency), _leading(adjacency)
        return not features.requires_grad and _same(self._known[0], features) and _same(mine, theirs)


def _leading(adjacency: Tensor | Csr | None) -> Tensor | None:
    return adjacency.values if isinstance(adjacency, Csr) else adjacency


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.shape == b.shape


@dataclass(frozen=True)
class Links:
    """The edges of a graph as its owner has them, for layers that normalise on their own.

    Attributes:
        edge_index: (2, edges) int64, sources and targets.
        edge_weight: (edges,) floating, or None for ones.
    """

    edge_index: Tensor
    edge_weight: Tensor | None = None


@dataclass(frozen=True)
class Nodes:
    """Points of a graph, as learners read them.

    Attributes:
        features: X, (n, d), of all nodes of the graph.
        adjacency: the normalised propagation operator A, (n, n), whose row i weighs what node i receives: None for the
            identity (no structure), dense (differentiable), or sparse.
        rows: (m,) int64, the nodes that are meant: learners give one output for each.
        hops: the cache of A^k X, where the graph is constant.
        links: the edges that A was made of, where the graph is somebody's own.
    """

    features: Tensor
    adjacency: Tensor | Csr | None
    rows: Tensor
    hops: Hops | None = None
    links: Links | None = None
    # What training on the same nodes would compute at every step, of a constant graph only.
    _memo: dict[Any, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.hops is not None and not self.hops.holds(self.features, self.adjacency):
            object.__setattr__(self, "hops", None)

    @staticmethod
    def constant(
        features: Tensor, adjacency: Tensor | Csr | None, links: Links | None = None, store: HopStore | None = None
    ) -> Nodes:
        """All nodes of a graph that will not change, with a cache of its propagated features, in files with a `store`."""
        rows = torch.arange(len(features), device=features.device)
        return Nodes(features, adjacency, rows, None if adjacency is None else Hops(features, adjacency, store), links)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Nodes:
        """Other rows of the same graph: positions among `rows`. Nothing but `rows` is copied."""
        return replace(self, rows=self.rows[index])

    def at(self, rows: Tensor) -> Nodes:
        """Other rows of the same graph: ids of nodes."""
        return replace(self, rows=rows)

    def edges(self) -> Links:
        """`links`, or edges of which A is the operator: the off-diagonal W_ij = A_ij / sqrt(A_ii A_jj), with A_ii > 0.

        A graph without structure has loops instead: each node hears itself, as A = I says.
        """
        if self.links is not None:
            return self.links
        if self.adjacency is None:
            return Links(torch.arange(len(self.features), device=self.rows.device).expand(2, -1))
        if isinstance(self.adjacency, Csr):
            target, source = self.adjacency.owners().long(), self.adjacency.columns.long()
            values = self.adjacency.values
        else:
            target, source = self.adjacency.detach().nonzero(as_tuple=True)
            values = self.adjacency[target, source]
        looped, apart = target == source, target != source
        own = torch.zeros(len(self.features), dtype=values.dtype, device=values.device)
        own = own.index_put((target[looped],), values[looped])
        source, target = source[apart], target[apart]
        return Links(torch.stack([source, target]), values[apart] * (own[source] * own[target]).rsqrt())

    def propagated(self, hops: int) -> Tensor:
        """A^hops X at the rows, (m, d)."""
        if self.adjacency is None or hops == 0:
            return self.features if self._whole() else self.features[self.rows]
        if self.hops is not None:
            if hops not in self._memo:
                self._memo[hops] = self.hops(hops)[self.rows]
            known: Tensor = self._memo[hops]
            return known
        if hops not in self._memo:
            if isinstance(self.adjacency, Tensor) and len(self.features) <= self.features.shape[1]:
                reached = self._power(hops) @ self.features  # wide features are multiplied once
            else:
                inner, pull = self.pull()
                reached = pull(inner.propagated(hops - 1))
            if reached.requires_grad:
                return reached
            self._memo[hops] = reached
        known = self._memo[hops]
        return known

    def _power(self, hops: int) -> Tensor:
        """The rows of A^hops, (m, n), of a dense A."""
        assert isinstance(self.adjacency, Tensor)
        power = self.adjacency if self._whole() else self.adjacency[self.rows]
        for _ in range(hops - 1):
            power = power @ self.adjacency
        return power

    def _whole(self) -> bool:
        """Whether the rows are all nodes in their order, so that nothing has to be copied to get at them."""
        if "whole" not in self._memo:
            count = len(self.features)
            every = torch.arange(count, device=self.rows.device)
            self._memo["whole"] = len(self.rows) == count and torch.equal(self.rows, every)
        whole: bool = self._memo["whole"]
        return whole

    def pull(self) -> tuple[Nodes, Callable[[Tensor], Tensor]]:
        """The nodes whose values the rows receive, and the linear map (k, h) -> (m, h) by which they do.

        So a layer at the rows is computed from the layer before at just these nodes, exactly and without sampling.
        """
        if self.adjacency is None:
            return self, lambda values: values
        if isinstance(self.adjacency, Csr):
            if "pull" not in self._memo:
                weights, sources = self.adjacency.rows(self.rows).compact()
                self._memo["pull"] = weights, self.at(sources)
            weights, inner = self._memo["pull"]
            return inner, lambda values: weights @ values
        received = self.adjacency if self._whole() else self.adjacency[self.rows]
        return self.at(torch.arange(len(self.features), device=self.rows.device)), lambda values: received @ values


def normalised(edge_index: Tensor, weights: Tensor | None, count: int, dtype: torch.dtype = torch.float32) -> Csr:
    """The propagation operator D^-1/2 (A + I) D^-1/2 of Kipf & Welling (arXiv 1609.02907), sparse.

    A node that has a loop keeps its weight instead of getting one of 1. D counts what a node receives, so a directed
    graph is normalised by in-degrees on both sides, as PyG's `gcn_norm` does.

    Args:
        edge_index: (2, edges) int64, sources and targets; repeated edges are added.
        weights: (edges,) at least 0, or None for ones.
        count: nodes.
        dtype: of the result.
    """
    if count < 2**31:
        edge_index = edge_index.int()
    source, target = edge_index
    weights = torch.ones(len(source), dtype=dtype, device=source.device) if weights is None else weights.to(dtype)
    looped = torch.zeros(count, dtype=torch.bool, device=source.device)
    looped[source[source == target]] = True
    bare = (~looped).nonzero().squeeze(1).to(source.dtype)
    graph = Csr.from_entries(
        torch.cat([target, bare]),
        torch.cat([source, bare]),
        torch.cat([weights, torch.ones(len(bare), dtype=dtype, device=source.device)]),
        (count, count),
    )
    owners = graph.owners()
    degree = torch.zeros(count, dtype=dtype, device=source.device).index_add_(0, owners, graph.values)
    scale = torch.where(degree > 0, degree, torch.inf).rsqrt()
    return replace(graph, values=scale[owners].mul_(graph.values).mul_(scale[graph.columns]))


def normalised_dense(weights: Tensor) -> Tensor:
    """The same operator, dense and differentiable, of symmetric matrices of weights (..., n, n) with empty diagonals."""
    looped = weights + torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    scale = looped.sum(-1).rsqrt()
    return scale[..., :, None] * looped * scale[..., None, :]
