"""Learners of whole graphs. They read `Graphs`, real and sparse or synthetic and dense alike."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.graph_batch import Graphs, Pool
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
        self.head = nn.Linear(hidden, outputs)

    def _nodes(self, graphs: Graphs) -> list[Tensor]:
        # Features propagate before the weights: A X of a constant graph is known.
        found = [F.relu(self.first(graphs.received()))]
        for layer in self.others:
            found.append(F.relu(layer(graphs.propagate(found[-1]))))
        return found

    def embed(self, inputs: Graphs) -> Tensor:
        """Pooled units of the last convolution, (m, hidden)."""
        return inputs.pool(self._nodes(inputs)[-1], self.pool)

    def layers(self, inputs: Graphs) -> list[Tensor]:
        """Pooled units of each convolution, (m, hidden)."""
        return [inputs.pool(units, self.pool) for units in self._nodes(inputs)]


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
