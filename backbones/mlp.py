"""A fully connected ReLU network for points that are vectors, or that can be flattened into vectors."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from datastill.backbones.base import Learner
from datastill.errors import check_count


class MLP(Learner):
    """`depth` hidden layers of `width` ReLU units and a linear head.

    Args:
        features: numbers per point, after flattening.
        outputs: classes, or output dimensions.
        depth: hidden layers, at least 0 (0 is linear).
        width: units of every hidden layer.
    """

    def __init__(self, features: int, outputs: int, *, depth: int = 2, width: int = 128) -> None:
        super().__init__()
        check_count("features", features)
        check_count("outputs", outputs)
        check_count("depth", depth, least=0)
        check_count("width", width)
        sizes = [features] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], outputs)

    def layers(self, inputs: Tensor) -> list[Tensor]:
        """Activations (n, width) of each hidden layer; the flattened inputs alone where there is none."""
        flat = inputs.reshape(len(inputs), -1)
        activations = []
        for layer in self.hidden:
            flat = layer(flat).relu()
            activations.append(flat)
        return activations or [flat]

    def embed(self, inputs: Tensor) -> Tensor:
        """Activations (n, width) of the last hidden layer for inputs (n, ...)."""
        return self.layers(inputs)[-1]
