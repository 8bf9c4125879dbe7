"""Learners made of PyG's own layers, so that a summary is judged by the very networks that its users train."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.dropout import dropout
from datastill.backbones.nodes import Links, Nodes
from datastill.errors import load_extra, unknown_name

LAYERED = ("sage", "appnp", "cheb", "gat", "transformer")
_HEADS = 8


class LayeredGNN(Learner):
    """Two layers of a kind with ReLU and dropout between them, as PyG's documentation stacks them.

    "sage" is SAGEConv (mean), "cheb" ChebConv (K = 2), "gat" GATConv and "transformer" TransformerConv (8 heads side by
    side, then one), "appnp" two linear layers and APPNP (10 steps, restart 0.1). Layers that take scalar edge weights get
    them; SAGEConv, GATConv and TransformerConv take none.

    Args:
        kind: one of `LAYERED`.
        width: features of a node.
        outputs: classes.
        hidden: units between the layers, of all heads together; at least 8 for those that have heads.
        dropout: in training, between the layers; in GAT also of the attention.
    """

    couples_points: ClassVar[bool] = True

    def __init__(self, kind: str, width: int, outputs: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        if kind not in LAYERED:
            raise unknown_name("layer", kind, LAYERED)
        layers = load_extra("torch_geometric.nn", "graphs")
        self.dropout = dropout
        self.weighted = kind in ("appnp", "cheb")
        self.spread: nn.Module | None = None
        self.mixes = True
        if kind == "sage":
            self.first, self.head = layers.SAGEConv(width, hidden), layers.SAGEConv(hidden, outputs)
        elif kind == "cheb":
            self.first, self.head = layers.ChebConv(width, hidden, 2), layers.ChebConv(hidden, outputs, 2)
        elif kind == "appnp":
            self.first, self.head = layers.Linear(width, hidden), layers.Linear(hidden, outputs)
            self.spread, self.mixes = layers.APPNP(10, 0.1), False
        else:
            conv = layers.GATConv if kind == "gat" else layers.TransformerConv
            options: dict[str, Any] = {"dropout": dropout} if kind == "gat" else {}
            units = max(1, hidden // _HEADS)
            self.first = conv(width, units, _HEADS, **options)
            self.head = conv(units * _HEADS, outputs, **options)

    def _arguments(self, links: Links) -> tuple[Tensor | None, ...]:
        return (links.edge_index, links.edge_weight) if self.weighted else (links.edge_index,)

    def _hidden(self, nodes: Nodes, links: Links) -> Tensor:
        """Of all nodes: what a row hears may be any of them."""
        edges = self._arguments(links) if self.mixes else ()
        hidden: Tensor = F.relu(self.first(nodes.features, *edges))
        return dropout(hidden, self.dropout, self.training)

    def embed(self, inputs: Nodes) -> Tensor:
        """Hidden units of the rows, (m, hidden)."""
        return self._hidden(inputs, inputs.edges())[inputs.rows]

    def forward(self, inputs: Nodes) -> Tensor:
        """Outputs (m, c)."""
        links = inputs.edges()
        edges = self._arguments(links)
        outputs: Tensor = self.head(self._hidden(inputs, links), *(edges if self.mixes else ()))
        if self.spread is not None:
            outputs = self.spread(outputs, *edges)
        return outputs[inputs.rows]
