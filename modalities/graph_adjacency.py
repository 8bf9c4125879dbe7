"""Structures of a synthetic graph, as modules that give symmetric edge weights in [0, 1] with an empty diagonal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.errors import check_count, require
from datastill.modalities.graph_pairs import EPSILON, pair_scores


class SyntheticEdges(nn.Module, ABC):
    """The edges among the nodes of a summary."""

    @abstractmethod
    def forward(self, features: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Weights (n, n) in [0, 1], differentiable; with `rng` a sample where the edges are random, else the mean.

        Args:
            features: (n, d), of the nodes, in the summary's own scale.
            rng: of the sample.
        """

    @abstractmethod
    def discrete(self, features: Tensor) -> Tensor:
        """Weights (n, n) as they are exported, with zeros where there is no edge."""

    def stepped(self) -> None:
        """Called after every step of the optimiser. Default: nothing."""

    def penalty(self) -> Tensor | None:
        """A prior on the edges, to be added to the loss. Default: none."""
        return None


class PairMLP(SyntheticEdges):
    """GCond's structure (arXiv 2110.07580): A_ij = sigmoid((m(x_i, x_j) + m(x_j, x_i)) / 2), m a perceptron on pairs.

    m is Linear, BatchNorm, ReLU, Linear, BatchNorm, ReLU, Linear. Batch norm always uses the statistics of the n * n
    pairs at hand. The first layer is W [x_i; x_j] = W_1 x_i + W_2 x_j, so the pairs are never laid out: its mean over
    all pairs is the sum of two means over nodes, and so is its variance. Memory is O(n * n * hidden), not O(n * n * 2
    width).

    Args:
        width: features of a node.
        hidden: units of both hidden layers.
        threshold: exported edges have a larger weight than this.
        start: logit of all weights to begin with, about. -3 is a weight of 0.05, with which features act at first as they do
            without edges; at 0, the usual start of a perceptron, every node would hear all others.
    """

    def __init__(self, width: int, hidden: int = 128, threshold: float = 0.05, start: float = -3.0) -> None:
        super().__init__()
        check_count("hidden", hidden)
        require(0 <= threshold < 1, f"threshold must be in [0, 1), got {threshold!r}.")
        self.threshold = threshold
        self.pair = nn.Linear(2 * width, hidden, bias=False)  # batch norm would take a bias out again
        self.second = nn.Linear(hidden, hidden, bias=False)
        self.last = nn.Linear(hidden, 1)
        nn.init.constant_(self.last.bias, start)
        self.gains = nn.ParameterList([torch.ones(hidden), torch.ones(hidden)])
        self.shifts = nn.ParameterList([torch.zeros(hidden), torch.zeros(hidden)])

    def forward(self, features: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Weights (n, n); they are not random."""
        count, width = features.shape
        # Rows 2k and 2k + 1 are what unit k makes of the first and of the second node.
        sides = F.linear(features, self.pair.weight.view(-1, width)).view(count, -1, 2)
        sides = sides - sides.mean(0)
        scale = self.gains[0] * (sides.square().mean(0).sum(1) + EPSILON).rsqrt()
        left, right = (sides * scale[:, None]).unbind(2)
        scores = pair_scores(
            left + self.shifts[0], right, self.second.weight, self.gains[1], self.shifts[1], self.last.weight[0]
        )
        return _hollow(torch.sigmoid((scores + scores.T) / 2 + self.last.bias))

    @torch.no_grad()
    def discrete(self, features: Tensor) -> Tensor:
        """Weights above the threshold."""
        weights = self(features)
        return torch.where(weights > self.threshold, weights, 0)


class BernoulliEdges(SyntheticEdges):
    """Each pair of nodes has an edge with its own learned probability, as in DosCond (arXiv 2206.07746).

    A sample is the binary concrete sigmoid((logit + logistic noise) / t), whose temperature t falls geometrically with
    the steps taken; an exported edge is one whose probability is above a half.

    Args:
        initial: edges (..., n, n) to start from, 0 or 1; leading dimensions are graphs of their own.
        temperature: the first and the last t, both above 0.
        anneal: steps from the first to the last.
        sparsity_weight: at least 0; `penalty` is this times the excess of the mean probability over that at the start.
        start: logit of an initial edge, above 0; the other pairs start at minus that. 2 is a probability of 0.88.
    """

    steps: Tensor

    def __init__(
        self,
        initial: Tensor,
        temperature: tuple[float, float] = (1.0, 0.1),
        anneal: int = 200,
        sparsity_weight: float = 0.1,
        start: float = 2.0,
    ) -> None:
        super().__init__()
        check_count("anneal", anneal)
        require(start > 0, f"start must be above 0, got {start!r}.")
        require(sparsity_weight >= 0, f"sparsity_weight must be at least 0, got {sparsity_weight!r}.")
        require(
            len(temperature) == 2 and min(temperature) > 0,
            f"temperature must be two numbers above 0, the first and the last, got {temperature!r}.",
        )
        self.first, self.final, self.anneal = float(temperature[0]), float(temperature[1]), anneal
        self.count = initial.shape[-1]
        upper = torch.triu_indices(self.count, self.count, 1)
        self.logits = nn.Parameter((initial[..., upper[0], upper[1]] * 2 - 1) * start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.sparsity_weight = sparsity_weight
        self.density = float(torch.sigmoid(self.logits.detach()).mean()) if self.count > 1 else 0.0

    def current_temperature(self) -> float:
        """t after the steps taken so far."""
        return self.first * (self.final / self.first) ** min(1.0, int(self.steps) / self.anneal)

    def forward(self, features: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """A relaxed sample, or, without `rng`, the probabilities; (..., n, n)."""
        if rng is None:
            return self._full(torch.sigmoid(self.logits))
        uniform = torch.rand(self.logits.shape, generator=rng, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        noise = uniform.logit().to(self.logits.device, self.logits.dtype)
        return self._full(torch.sigmoid((self.logits + noise) / self.current_temperature()))

    @torch.no_grad()
    def discrete(self, features: Tensor) -> Tensor:
        """1 where an edge is more likely than not, else 0."""
        return self._full((self.logits > 0).to(self.logits.dtype))

    def stepped(self) -> None:
        """The temperature falls."""
        self.steps += 1

    def penalty(self) -> Tensor | None:
        """`sparsity_weight` times the mean probability in excess of its start."""
        if self.sparsity_weight == 0 or self.count < 2:
            return None
        return self.sparsity_weight * torch.relu(torch.sigmoid(self.logits).mean() - self.density)

    def _full(self, values: Tensor) -> Tensor:
        upper = torch.triu_indices(self.count, self.count, 1, device=values.device)
        full = values.new_zeros(*values.shape[:-1], self.count, self.count)
        full[..., upper[0], upper[1]] = values
        return full + full.mT


def _hollow(weights: Tensor) -> Tensor:
    return weights * (1 - torch.eye(len(weights), dtype=weights.dtype, device=weights.device))
