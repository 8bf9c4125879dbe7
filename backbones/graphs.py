"""Learners of whole graphs. They read `Graphs`, real and sparse or synthetic and dense alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner, constant
from datastill.backbones.batch import Batch
from datastill.backbones.graph_batch import Graphs, Layers, Pool
from datastill.backbones.losses import Loss, slopes_of
from datastill.backbones.outer import by_block
from datastill.errors import check_count


class PooledGCN(Learner):
    """Graph convolutions relu(A H W + b), pooled over the nodes, and a linear head: the network of DosCond (arXiv 2206.07746).

    Args:
        width: features of a node.
        outputs: classes.
        depth: convolutions, at least 1.
        hidden: units of each.
        pool: how the nodes of a graph become one vector.
    """

    def __init__(self, width: int, outputs: int, *, depth: int = 3, hidden: int = 128, pool: Pool = "mean") -> None:
        super().__init__()
        check_count("depth", depth)
        check_count("hidden", hidden)
        self.pool: Pool = pool
        self.first = _glorot(width, hidden)
        self.others = nn.ModuleList(_glorot(hidden, hidden) for _ in range(depth - 1))
        self.head: nn.Linear = nn.Linear(hidden, outputs)

    def _units(self, layers: Layers, convolutions: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Units of every convolution, of these weights and biases; a row for each row of `layers`."""
        # Features propagate before the first weights, since A X of a constant graph is known; units propagate after the weights,
        # since there are fewer kinds of nodes before a round than after it.
        found = [F.relu(F.linear(layers.received, *convolutions[0]))]
        for number, (weight, bias) in enumerate(convolutions[1:]):
            found.append(F.relu(layers.receive(number, F.linear(found[-1], weight)) + bias))
        return found

    def _convolutions(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.weight, layer.bias) for layer in (self.first, *cast(Sequence[nn.Linear], self.others))]

    def embed(self, inputs: Graphs) -> Tensor:
        """Pooled units of the last convolution, (m, hidden)."""
        layers = inputs.layers(1 + len(self.others))
        return layers.pool(len(self.others), self._units(layers, self._convolutions())[-1], self.pool)

    def layers(self, inputs: Graphs) -> list[Tensor]:
        """Pooled units of each convolution, (m, hidden)."""
        layers = inputs.layers(1 + len(self.others))
        return [
            layers.pool(number, units, self.pool)
            for number, units in enumerate(self._units(layers, self._convolutions()))
        ]

    def group_gradients(self, batch: Batch, groups: Sequence[int], loss: Loss, *, create_graph: bool) -> list[Tensor]:
        """As every learner's, by the chain rule written out: all groups are one pass, as no edge links their graphs.

        Only the last step, the sum over nodes that makes a gradient of weights, is by groups. What autograd keeps with
        `create_graph` are these few products, of first order in the features and edges.
        """
        order, sizes = batch.in_blocks(groups)
        if order is not None:
            batch = batch.take(order)
        with torch.set_grad_enabled(create_graph):
            layers = batch.inputs.layers(1 + len(self.others), sizes)
            weights = [(weight.detach(), bias.detach()) for weight, bias in self._convolutions()]
            units = self._units(layers, weights)
            last = len(self.others)
            pooled = layers.pool(last, units[-1], self.pool)
            slopes = slopes_of(loss, constant(self.head)(pooled), batch.targets, sizes, differentiable=create_graph)
            found = [by_block(slopes, None, sizes), by_block(slopes, pooled, sizes)]  # in reverse order
            slopes = layers.unpool(last, slopes @ self.head.weight.detach(), self.pool)
            for number in range(last, 0, -1):
                slopes = _gated(slopes, units[number])
                found.append(by_block(slopes, None, layers.sizes[number]))
                slopes = layers.send_back(number - 1, slopes)
                found.append(by_block(slopes, units[number - 1], layers.sizes[number - 1]))
                slopes = slopes @ weights[number][0]
            slopes = _gated(slopes, units[0])
            found += [by_block(slopes, None, layers.sizes[0]), by_block(slopes, layers.received, layers.sizes[0])]
        return found[::-1]


class ProfileMLP(Learner):
    """One hidden ReLU layer on a graph's profile, the mean node of X, A X, ..., A^hops X.

    Whatever it does to the nodes is linear, so a real graph is one vector that is computed once.
    """

    def __init__(self, width: int, outputs: int, *, hops: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.hops = check_count("hops", hops, least=0)
        check_count("hidden", hidden)
        self.first = nn.Linear(width * (hops + 1), hidden)
        self.head = nn.Linear(hidden, outputs)

    def embed(self, inputs: Graphs) -> Tensor:
        """Hidden units, (m, hidden)."""
        return F.relu(self.first(inputs.profile(self.hops).flatten(1)))


def _glorot(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _gated(slopes: Tensor, units: Tensor) -> Tensor:
    """Slopes of what a ReLU read, from those of what it gave, `units`; in one pass, as autograd has it."""
    gated: Tensor = torch.ops.aten.threshold_backward(slopes, units, 0)
    return gated
