"""Label solve: the labels of synthetic points with which ridge regression on them has the least squared error on real points.

Nguyen, Chen & Lee (ICLR 2021), arXiv 2011.00050: predictions are M Y with M = K_ts (K_ss + ridge)^-1, linear in the labels Y, so
that the best are the pseudo-inverse of M times the real targets. Only M^T M and M^T Y_t are needed, sums over real points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill import processes
from datastill.backbones.ridge import ridge_solve
from datastill.backbones.simplex import nearest_distributions

_STEPS = 1000  # of the projected gradient method, where labels have to be distributions


@dataclass
class NormalEquations:
    """The quadratic function of the labels that the squared error is, up to a constant.

    Attributes:
        square: M^T M, (n, n), float64.
        right: M^T Y_t, (n, c), float64.
        noise: relative rounding error of M.
    """

    square: Tensor
    right: Tensor
    noise: float

    @classmethod
    def of(cls, gram: Tensor, crosses: Iterable[tuple[Tensor, Tensor]], ridge: float) -> NormalEquations:
        """Of K_ss (n, n) and, for each part of the real points, K_ts (m, n) and Y_t (m, c); all processes' parts together."""
        inverse = ridge_solve(gram, torch.eye(len(gram), dtype=torch.float64, device=gram.device), ridge)
        square: Tensor | float = 0.0
        right: Tensor | float = 0.0
        for cross, targets in crosses:
            predicted = cross.double() @ inverse
            square, right = square + predicted.T @ predicted, right + predicted.T @ targets.double()
        assert isinstance(square, Tensor)
        assert isinstance(right, Tensor)
        return cls(processes.total(square), processes.total(right), torch.finfo(gram.dtype).eps)

    def solve(self) -> Tensor:
        """The best labels, encoded, (n, c); those of least norm where several are."""
        values, vectors = torch.linalg.eigh(self.square)
        kept = values > len(values) * self.noise * values[-1]
        inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), torch.zeros_like(values))
        return vectors @ (inverse[:, None] * (vectors.T @ self.right))

    def solve_distributions(self, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]) -> Tensor:
        """The best labels that are distributions, (n, c), by the accelerated projected gradient method (Beck & Teboulle 2009)."""
        largest = torch.linalg.eigvalsh(self.square)[-1]
        found = ahead = nearest_distributions(decode(self.solve()))
        momentum = 1.0
        for _ in range(_STEPS):
            slope = self.square @ encode(ahead) - self.right
            new = nearest_distributions(ahead - slope / largest)
            later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead, found, momentum = new + (momentum - 1) / later * (new - found), new, later
        return found
