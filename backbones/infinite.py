"""Fully connected ReLU networks at infinite width: the NNGP and the NTK of any depth, in closed form.

Only inner products and squared norms of the inputs are needed, so one side may be a sparse CSR matrix. For one hidden layer
they are the arc-cosine kernels of Cho & Saul (2009); the recursion over depth is that of Lee et al. (2019, arXiv 1902.06720).
Networks are in the NTK parametrisation: a layer is sigma_w / sqrt(fan_in) * W x + sigma_b * b, W and b standard normal.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import Kernel
from datastill.errors import check_count, require

_BLOCK = 2**20  # numbers (4 MiB in float32) in a block of rows of a Gram matrix that needs no gradients
_COINCIDENT = 32  # roundings: vectors whose squared sine is no larger are taken as parallel
KernelKind = Literal["ntk", "nngp"]


class InfiniteReLU(Kernel):
    """The kernel of a ReLU network with `depth` hidden layers and a linear output layer.

    Args:
        depth: hidden layers, at least 0 (0 is the linear kernel with bias).
        kind: "ntk" (all layers trained by gradient descent) or "nngp" (only the last one).
        weight_variance: sigma_w^2 > 0 of every layer. With 2 the scale of the activations does not change with depth.
        bias_variance: sigma_b^2 >= 0 of every layer.
    """

    def __init__(
        self,
        depth: int = 1,
        kind: KernelKind = "ntk",
        weight_variance: float = 2.0,
        bias_variance: float = 0.01,
    ) -> None:
        check_count("depth", depth, least=0)
        require(kind in ("ntk", "nngp"), f"kind must be 'ntk' or 'nngp', got {kind!r}.")
        require(weight_variance > 0, f"weight_variance must be positive, got {weight_variance!r}.")
        require(bias_variance >= 0, f"bias_variance must be at least 0, got {bias_variance!r}.")
        self.depth = depth
        self.kind = kind
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Gram matrix (n_a, n_b) of rows of `a` (n_a, d) and `b` (n_b, d), each dense or sparse CSR."""
        width = a.shape[1]
        if torch.is_grad_enabled() or a.layout != torch.strided or len(a) * len(b) <= _BLOCK:
            norms = squared_norms(a) / width
            return self.from_products(products(a, b) / width, norms, norms if a is b else squared_norms(b) / width)
        # Without gradients nothing is kept but the result: the steps on the way to it stay in the processor's cache.
        gram = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
        norms, rows = squared_norms(b) / width, max(1, _BLOCK // len(b))
        for part, its in zip(a.split(rows), gram.split(rows)):
            its.copy_(self.from_products(products(part, b) / width, squared_norms(part) / width, norms))
        return gram

    def kept(self, pairs: int, device: torch.device) -> int:
        """Four matrices for each layer."""
        return 4 * (self.depth + 1) * pairs

    def from_products(self, inner: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The same from inner products (n_a, n_b) and squared norms (n_a,), (n_b,), all divided by the input width."""
        weight, bias = self.weight_variance, self.bias_variance
        covariance = weight * inner + bias
        a, b = weight * a + bias, weight * b + bias
        tangent = covariance
        for _ in range(self.depth):
            step, value = relu_moments(covariance, a[:, None], b[None, :])
            covariance = weight * value + bias
            tangent = covariance + weight * step * tangent
            a, b = weight * a / 2 + bias, weight * b / 2 + bias
        return tangent if self.kind == "ntk" else covariance


def relu_moments(covariance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu'(u) relu'(v)] and E[relu(u) relu(v)] for (u, v) normal with variances `a` and `b` and this covariance.

    The variances have as many dimensions as the covariance, and are broadcast to its shape.
    """
    step, value = _Moments.apply(covariance, a, b)
    return step, value


def _correlation(covariance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cosine of the angle, its squared sine, and the inverse deviations (0 where a variance is) by which it was scaled."""
    ours, theirs = (torch.where(one > 0, one.rsqrt(), 0.0) for one in (a, b))
    cosine = covariance * ours * theirs
    return cosine, torch.addcmul(cosine.new_ones(()), cosine, cosine, value=-1), ours, theirs


def _unless_parallel(squared: Tensor, value: float) -> Tensor:
    """Squared sines, and `value` in place of those that count as zero.

    Near the diagonal a sine is all rounding error; and there the angle as a function of the covariance has an infinite slope,
    which would multiply the rounding errors of the layers below.
    """
    return F.threshold(squared, _COINCIDENT * torch.finfo(squared.dtype).eps, value)


class _Moments(torch.autograd.Function):
    """The two moments with their closed-form derivatives: d value = step d covariance, and so on.

    By autograd's own rules each would take some thirty passes over matrices, which are as large as the kernel. The passes here
    are those that a processor vectorises: no masks, and the arc tangent of one number.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(covariance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        cosine, squared, _, _ = _correlation(covariance, a, b)
        sine = _unless_parallel(squared, 0.0).sqrt_()
        step = cosine.div_(sine).atan_().mul_(1 / (2 * math.pi)).add_(0.25)
        return step, sine.mul_(a.sqrt() / (2 * math.pi)).mul_(b.sqrt()).addcmul_(step, covariance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        covariance, a, b, step = ctx.saved_tensors
        by_step, by_value = gradients
        cosine, squared, ours, theirs = _correlation(covariance, a, b)
        inverse = _unless_parallel(squared, torch.inf).rsqrt()
        # By the cosine, through the angle, and by the product of the deviations, times that product.
        slope = by_step * inverse / (2 * math.pi)
        by_scale = (squared * inverse * (by_value * a.sqrt() * b.sqrt()) / (2 * math.pi) - cosine * slope) / 2
        by_a, by_b = (by_scale.sum_to_size(one.shape) * inverted.square() for one, inverted in ((a, ours), (b, theirs)))
        return slope * ours * theirs + by_value * step, by_a, by_b


def products(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T as a dense matrix, either side dense or sparse CSR."""
    if a is b and a.layout == torch.strided:
        own: Tensor = _OwnProducts.apply(a)
        return own
    if a.layout == torch.strided and b.layout == torch.strided:
        return a @ b.T
    if b.layout == torch.strided:
        return torch.sparse.mm(a, b.T)
    if a.layout == torch.strided:
        return torch.sparse.mm(b, a.T).T
    return torch.sparse.mm(a, b.to_dense().T)


def squared_norms(rows: Tensor) -> Tensor:
    """Squared Euclidean norm of each row, dense or sparse CSR."""
    if rows.layout == torch.strided:
        norms: Tensor = _SquaredNorms.apply(rows)
        return norms
    counts = rows.crow_indices().diff()
    owner = torch.repeat_interleave(torch.arange(rows.shape[0], device=rows.device), counts)
    sums = torch.zeros(rows.shape[0], dtype=rows.dtype, device=rows.device)
    return sums.index_add(0, owner, rows.values().square())


class _OwnProducts(torch.autograd.Function):
    """a @ a.T, whose gradient is one product of matrices in place of two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a @ a.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] + gradients[0].T) @ ctx.saved_tensors[0]


class _SquaredNorms(torch.autograd.Function):
    """Squared norms of dense rows: two passes over them in place of five."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return torch.linalg.vecdot(rows, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0][:, None] * ctx.saved_tensors[0]
