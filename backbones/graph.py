"""Learners of nodes. They read `Nodes`: a real sparse graph, or a synthetic one, dense or without edges.

Propagation of constant features is never repeated: `Nodes` keeps A^k X of a constant graph.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill import memory
from datastill.backbones.base import Learner, LinearLearner
from datastill.backbones.dropout import dropout
from datastill.backbones.nodes import Nodes

_ROWS = 16384  # nodes whose hidden units are in memory together where no gradients are needed, at most
_FEW = 2**18  # numbers for which asking how much memory there is would take longer than computing them


class SGC(LinearLearner):
    """Simple graph convolution: a linear layer on A^hops X (Wu et al. 2019, arXiv 1902.07153)."""

    couples_points: ClassVar[bool] = True

    def __init__(self, width: int, outputs: int, hops: int = 2) -> None:
        super().__init__()
        self.hops = hops
        self.head = nn.Linear(width, outputs)

    def embed(self, inputs: Nodes) -> Tensor:
        """A^hops X at the rows, (m, width)."""
        return inputs.propagated(self.hops)


class GCN(Learner):
    """A two-layer graph convolutional network, A relu(A X W + b) V + c (Kipf & Welling, arXiv 1609.02907).

    Layers start as PyG's `GCNConv` do, Glorot-uniform weights and no bias, and `embed` is what the second one reads:
    the hidden units after the second propagation.
    """

    couples_points: ClassVar[bool] = True

    def __init__(self, width: int, outputs: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = _glorot(width, hidden)
        self.head: nn.Linear = _glorot(hidden, outputs)

    def _hidden(self, nodes: Nodes) -> Tensor:
        hidden: Tensor = F.relu(self.first(nodes.propagated(1)))
        return hidden

    def embed(self, inputs: Nodes) -> Tensor:
        """Hidden units received by the rows, (m, hidden)."""
        inner, pull = inputs.pull()
        return pull(dropout(self._hidden(inner), self.dropout, self.training))

    def forward(self, inputs: Nodes) -> Tensor:
        """Outputs (m, c). Propagation is linear, so it comes after the last weights: c columns travel instead of `hidden`."""
        inner, pull = inputs.pull()
        return pull(self._sent(inner)) + self.head.bias

    def _sent(self, nodes: Nodes) -> Tensor:
        """What the rows send in the second propagation, (m, c); without gradients, in blocks of rows, so that hidden units of a
        large graph are never in memory together."""
        if torch.is_grad_enabled() or self.training:
            return F.linear(dropout(self._hidden(nodes), self.dropout, self.training), self.head.weight)
        parts = nodes.rows.split(self._at_once(nodes))
        if len(parts) == 1:
            return F.linear(self._hidden(nodes), self.head.weight)
        return torch.cat([F.linear(self._hidden(nodes.at(rows)), self.head.weight) for rows in parts])

    def _at_once(self, nodes: Nodes) -> int:
        """Rows whose features, and hidden units before and after their ReLU, are in memory together."""
        numbers = self.first.in_features + 2 * self.first.out_features
        if len(nodes) * numbers <= _FEW:
            return max(1, len(nodes))
        return memory.chunk(self.first.weight.element_size() * numbers, nodes.rows.device, most=_ROWS)

    def layers(self, inputs: Nodes) -> list[Tensor]:
        """The first layer at the rows, and `embed`; (m, hidden) each."""
        return [self._hidden(inputs), self.embed(inputs)]


class NodeMLP(Learner):
    """The same two layers without propagation: what the features alone are worth."""

    def __init__(self, width: int, outputs: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = _glorot(width, hidden)
        self.head = _glorot(hidden, outputs)

    def embed(self, inputs: Nodes) -> Tensor:
        """Hidden units of the rows, (m, hidden)."""
        hidden = F.relu(self.first(inputs.propagated(0)))
        return dropout(hidden, self.dropout, self.training)


def _glorot(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
