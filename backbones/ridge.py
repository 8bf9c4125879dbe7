"""Ridge regression in a reproducing-kernel space, differentiable in the Gram matrix, the targets and the ridge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LARGE = 2048
"""Points up to which float64 costs too little to think about."""
_EXACT = 1e-3
"""Bound on the relative error of float32 up to which it is used above; what is met is a hundred times smaller."""


def ridge_solve(gram: Tensor, targets: Tensor, ridge: float | Tensor) -> Tensor:
    """Solve (K + ridge * tr(K)/n * I) A = Y for A.

    The factorisation runs in float64: in float32 a small ridge makes K numerically indefinite, above all where two points
    are equal. Many points with a ridge that is large enough, and no gradients, are left in float32: K's largest eigenvalue is at
    most its trace, so that the condition number is at most 1 + n / ridge. The result has the dtype of `targets`. Gradients are
    by the same factor, with as many columns as there are targets.

    Args:
        gram: K, (n, n), symmetric.
        targets: Y, (n, c).
        ridge: at least 0, relative to the mean of K's diagonal (as in KIP, arXiv 2107.13034).
    """
    n = len(gram)
    if not torch.is_grad_enabled() and n > _LARGE and n * torch.finfo(gram.dtype).eps <= _EXACT * float(ridge):
        regularised = gram.clone()
        regularised.diagonal().add_(float(ridge) * gram.diagonal().mean())
        return torch.cholesky_solve(targets.to(gram.dtype), torch.linalg.cholesky(regularised)).to(targets.dtype)
    relative = torch.as_tensor(ridge, dtype=torch.float64, device=gram.device)
    solution: Tensor = _Solve.apply(gram.double(), targets.double(), relative)[0]
    return solution.to(targets.dtype)


def linear_gram(features: Tensor) -> Tensor:
    """F F^T of features (n, d), in float64.

    With more points than features it has eigenvalues of zero, which float32 rounds below what a small ridge makes up for.
    """
    exact = features.double()
    return exact @ exact.T


class _Solve(torch.autograd.Function):
    """A = M^-1 Y with M = (K + K^T)/2 + ridge * tr(K)/n * I.

    The rule of torch's own factorisation takes inverses of the whole factor; here the adjoint is one more solution.
    """

    @staticmethod
    def forward(gram: Tensor, targets: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
        regularised = (gram + gram.T).mul_(0.5)
        regularised.diagonal().add_(ridge * gram.diagonal().mean())
        factor = torch.linalg.cholesky(regularised)
        return torch.cholesky_solve(targets, factor), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], inputs[2], *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gram, ridge, solution, factor = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient will be asked for, and the factor has none
            adjoint = _Solve.apply(gram, gradients[0], ridge)[0]
        else:
            adjoint = torch.cholesky_solve(gradients[0], factor)
        overlap = (adjoint * solution).sum()
        outer = adjoint @ solution.T
        by_gram = -0.5 * (outer + outer.T) - torch.diag_embed((ridge * overlap / len(gram)).expand(len(gram)))
        return by_gram, adjoint, -overlap * gram.diagonal().mean()
