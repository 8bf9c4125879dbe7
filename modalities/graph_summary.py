"""Synthetic graphs: free node features, with or without learned edges among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datastill.backbones.nodes import Nodes, normalised_dense
from datastill.errors import load_extra
from datastill.modalities.base import Batch
from datastill.modalities.classification import SoftLabelSummary
from datastill.modalities.codec import Codec
from datastill.modalities.graph_adjacency import BernoulliEdges, SyntheticEdges
from datastill.modalities.graph_native import decoded_features, encoded_features


class GraphSummary(SoftLabelSummary):
    """Nodes with free features and no edges: learners read them as already propagated.

    Args:
        features: (n, d) initial features, in the input's scale.
        labels: (n,) int64 classes, in blocks.
        scale: the features' typical size; the parameters are features over `scale`, so that learning rates mean the
            same for every dataset.
        classes: how many classes; needed for soft labels.
        soft_labels: whether each node's class distribution is learned too. It starts with `CONFIDENCE` on its class.
        codec: by which features are stored; learners read them as they are after that rounding. None stores them in full.
    """

    CONFIDENCE = 0.95

    labels: Tensor
    edges: SyntheticEdges | None

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        scale: float,
        classes: int,
        soft_labels: bool = False,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        self.codec = codec
        self.coded = codec is not None
        self.edges = None
        self.scale = scale
        self.features = nn.Parameter(features.detach() / scale)
        self.register_buffer("labels", labels.clone())
        self.label_logits: nn.Parameter | None = None
        if soft_labels:
            rest = (1 - self.CONFIDENCE) / (classes - 1)
            start = torch.full((len(labels), classes), rest, dtype=features.dtype)
            start[torch.arange(len(labels)), labels] = self.CONFIDENCE
            self.label_logits = nn.Parameter(start.log())

    def _targets(self) -> Tensor:
        return self.labels if self.label_logits is None else self.label_logits.softmax(1)

    def _adjacency(self, rng: torch.Generator | None) -> Tensor | None:
        return None

    def _vectors(self) -> Tensor:
        vectors = self.features * self.scale
        return vectors if self.codec is None else self.codec.through(vectors)

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """All nodes, in blocks of classes."""
        rows = torch.arange(self.num_points, device=self.features.device)
        return Batch(Nodes(self._vectors(), self._adjacency(rng), rows), self._targets(), self.labels)

    @torch.no_grad()
    def export(self) -> Any:
        """A PyG `Data`: x in the input's scale, edge_index, y, train_mask (all True), edge_weight if edges have weights.

        A node that no edge reaches has a loop: it hears itself, so that layers which weigh a node and its neighbours apart
        (SAGEConv, TransformerConv) learn both. Without learned edges these are all nodes. y is int64 (n,), or (n, classes)
        floating with learned labels, which PyTorch's cross-entropy takes too. With a codec, `coded` are the bytes (uint8) that x
        is decoded from, which stand for it when the graph is stored and counted.
        """
        data = load_extra("torch_geometric.data", "graphs").Data(
            x=self._vectors().cpu(),
            edge_index=torch.arange(self.num_points).repeat(2, 1),
            y=self._targets().detach().cpu().clone(),
            train_mask=torch.ones(self.num_points, dtype=torch.bool),
        )
        if self.codec is not None:
            data.coded = encoded_features(self.codec, self.features * self.scale)
            data.x = decoded_features(data.coded, tuple(self.features.shape))
        if self.edges is not None:
            weights = self.edges.discrete(self.features).cpu()
            alone = (weights == 0).all(1).nonzero().squeeze(1)
            weights[alone, alone] = 1.0
            target, source = weights.nonzero(as_tuple=True)
            data.edge_index = torch.stack([source, target])
            if not isinstance(self.edges, BernoulliEdges):
                data.edge_weight = weights[target, source]
        return data

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Roles: "features", "adjacency" where edges are learned, "labels" where labels are."""
        groups = {"features": [self.features]}
        if self.edges is not None:
            groups["adjacency"] = list(self.edges.parameters())
        if self.label_logits is not None:
            groups["labels"] = [self.label_logits]
        return groups

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored, with coded features where there is a codec."""
        if self.codec is None:
            return super().nbytes
        coded = encoded_features(self.codec, self.features * self.scale)
        return super().nbytes - self.features.numel() * self.features.element_size() + len(coded)

    @property
    def num_points(self) -> int:
        """Synthetic nodes."""
        return len(self.features)


class StructuredGraphSummary(GraphSummary):
    """Nodes with free features and learned edges. Exported edges are cut off or discrete, so `exact_export` is False.

    Args:
        edges: which nodes are connected, from the features over `scale`.
        others: as for `GraphSummary`.
    """

    exact_export = False

    def __init__(self, features: Tensor, labels: Tensor, edges: SyntheticEdges, **others: Any) -> None:
        super().__init__(features, labels, **others)
        self.edges = edges

    def _adjacency(self, rng: torch.Generator | None) -> Tensor:
        assert self.edges is not None
        return normalised_dense(self.edges(self.features, rng))

    def project_(self) -> None:
        """Tells the edges that a step is done; the parameters are free."""
        assert self.edges is not None
        self.edges.stepped()

    def penalty(self) -> Tensor | None:
        """What the edges ask of their own parameters."""
        assert self.edges is not None
        return self.edges.penalty()
