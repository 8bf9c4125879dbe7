"""Ridge regression in a reproducing-kernel space, differentiable in the Gram matrix and the targets."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_solve(gram: Tensor, targets: Tensor, ridge: float | Tensor) -> Tensor:
    """Solve (K + ridge * tr(K)/n * I) A = Y for A.

    The factorisation runs in float64: in float32 a small ridge makes K numerically indefinite, above all where two points
    are equal. The result has the dtype of `targets`.

    Args:
        gram: K, (n, n), symmetric.
        targets: Y, (n, c).
        ridge: at least 0, relative to the mean of K's diagonal (as in KIP, arXiv 2107.13034).
    """
    wide = gram.double()
    size = wide.shape[0]
    scale = wide.diagonal().mean()
    regularised = 0.5 * (wide + wide.T) + ridge * scale * torch.eye(size, dtype=wide.dtype, device=wide.device)
    factor = torch.linalg.cholesky(regularised)
    return torch.cholesky_solve(targets.double(), factor).to(targets.dtype)
