"""Small synthetic graphs: free node features, with or without free edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datastill.backbones.graph_batch import Graphs, owners_of
from datastill.backbones.nodes import normalised_dense
from datastill.errors import check_count
from datastill.modalities.base import Batch, Summary
from datastill.modalities.codec import Codec
from datastill.modalities.graph_adjacency import BernoulliEdges
from datastill.modalities.graph_native import decoded_features, encoded_features
from datastill.modalities.graphs_data import GraphSet
from datastill.modalities.graphs_features import NodeFeatures
from datastill.modalities.graphs_native import StoredGraphs, to_list


class GraphsSummary(Summary):
    """Graphs of at most N nodes with free features.

    Args:
        features: (b, N, d) initial encoded features; rows behind a graph's end are left out.
        sizes: (b,) int64, nodes of each graph, from 1 to N.
        labels: (b,) int64 classes, in blocks.
        scale: typical size of what `codec` makes features of; the parameters are in units of it, so that learning rates mean
            the same for every dataset.
        codec: makes features of free parameters, and gives the exported form of features.
        label_shape: of an exported y.
        anneal: steps until what becomes discrete in the export nearly is.
        edges: of the structure, or None for none.
        numbers: by which features that are numbers are stored; learners read them as they are after that rounding. None stores
            them in full.
    """

    labels: Tensor
    present: Tensor
    sizes: Tensor
    steps: Tensor

    def __init__(
        self,
        features: Tensor,
        sizes: Tensor,
        labels: Tensor,
        *,
        scale: float,
        codec: NodeFeatures,
        label_shape: tuple[int, ...],
        anneal: int = 200,
        edges: BernoulliEdges | None = None,
        numbers: Codec | None = None,
    ) -> None:
        super().__init__()
        self.numbers, self.coded = numbers, numbers is not None
        self.scale, self.codec, self.label_shape, self.edges = scale, codec, label_shape, edges
        self.anneal = check_count("anneal", anneal)
        present = torch.arange(features.shape[1]) < sizes[:, None]
        self.features = nn.Parameter(codec.free(features.detach()[present]) / scale)
        steps = torch.zeros((), dtype=torch.int64)
        for name, value in (("labels", labels), ("sizes", sizes), ("present", present), ("steps", steps)):
            self.register_buffer(name, value.clone())

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """All graphs, in blocks of classes."""
        features = self._vectors()
        if self.edges is None:
            graphs = Graphs(features, owners_of(self.sizes), self.num_points)
            return Batch(graphs, self.labels, self.labels)
        count, most = self.present.shape
        filled = features.new_zeros(count, most, features.shape[1])
        filled[self.present] = features
        owner = torch.arange(count, device=features.device).repeat_interleave(most)
        adjacency = normalised_dense(self._within(self.edges(features, rng)))
        present = None if bool(self.present.all()) else self.present.flatten()
        return Batch(Graphs(filled.flatten(0, 1), owner, count, adjacency, present), self.labels, self.labels)

    def _vectors(self) -> Tensor:
        vectors = self.codec.relax(self.features * self.scale, min(1.0, int(self.steps) / self.anneal))
        return vectors if self.numbers is None else self.numbers.through(vectors)

    def _within(self, weights: Tensor) -> Tensor:
        """Edges (b, N, N) without those of absent nodes."""
        return weights * (self.present[:, :, None] & self.present[:, None, :]).to(weights.dtype)

    @torch.no_grad()
    def export(self) -> list[Any]:
        """A PyG `Data` for each graph: x as the data have it, edge_index (both directions), y.

        With a codec they are `StoredGraphs`, which also have the bytes that x is decoded from.
        """
        edge_index = torch.empty(2, 0, dtype=torch.int64)
        if self.edges is not None:
            graph, target, source = self._within(self.edges.discrete(self.features)).cpu().nonzero(as_tuple=True)
            starts = (self.sizes.cumsum(0) - self.sizes).cpu()
            edge_index = torch.stack([source, target]) + starts[graph]
        coded = None
        if self.numbers is None:
            x = self.codec.decode(self._vectors().cpu())
        else:
            coded = encoded_features(self.numbers, self.features * self.scale)
            x = decoded_features(coded, tuple(self.features.shape))
        found = to_list(GraphSet(x, edge_index, self.sizes.cpu(), self.labels.cpu(), self.label_shape))
        return found if coded is None else StoredGraphs(found, coded)

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored, with coded features where there is a codec."""
        if self.numbers is None:
            return super().nbytes
        coded = encoded_features(self.numbers, self.features * self.scale)
        return super().nbytes - self.features.numel() * self.features.element_size() + len(coded)

    def project_(self) -> None:
        """Notes that a step is done; the parameters are free."""
        self.steps += 1
        if self.edges is not None:
            self.edges.stepped()

    def penalty(self) -> Tensor | None:
        """What the edges ask of their own parameters."""
        return None if self.edges is None else self.edges.penalty()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Roles: "features" and, where edges are learned, "adjacency"."""
        groups = {"features": [self.features]}
        if self.edges is not None:
            groups["adjacency"] = list(self.edges.parameters())
        return groups

    @property
    def num_points(self) -> int:
        """Synthetic graphs."""
        return len(self.labels)


class RoundedGraphsSummary(GraphsSummary):
    """The same, where an export is not the summary: edges become 0 or 1, or features become categories."""

    exact_export = False
