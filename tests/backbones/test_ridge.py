"""Ridge regression against scikit-learn and finite differences."""

from __future__ import annotations

import pytest
import torch

from datastill.backbones.base import FeatureKernel, Kernel, VectorKernel
from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.mlp import MLP
from datastill.backbones.ridge import ridge_solve
from datastill.rng import generator


def test_against_scikit_learn() -> None:
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    rng = generator("ridge")
    x, y = torch.randn(12, 5, generator=rng).double(), torch.randn(12, 3, generator=rng).double()
    gram = InfiniteReLU(2)(x, x)
    ridge = 0.3
    oracle = kernel_ridge.KernelRidge(alpha=ridge * float(gram.diagonal().mean()), kernel="precomputed").fit(gram, y)
    torch.testing.assert_close(ridge_solve(gram, y, ridge), torch.from_numpy(oracle.dual_coef_))


def test_derivatives() -> None:
    rng = generator("ridge")
    x = torch.randn(4, 3, generator=rng).double().requires_grad_()
    y = torch.randn(4, 2, generator=rng).double().requires_grad_()
    ridge = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c: ridge_solve(a @ a.T, b, c), (x, y, ridge))
    assert torch.autograd.gradgradcheck(lambda a, b, c: ridge_solve(a @ a.T, b, c), (x, y, ridge))
    by_func = torch.func.grad(lambda a: ridge_solve(a @ a.T, y.detach(), 0.1).sin().sum())(x.detach())
    (ours,) = torch.autograd.grad(ridge_solve(x @ x.T, y, 0.1).sin().sum(), x)
    torch.testing.assert_close(by_func, ours)


def test_float32_with_equal_points_and_tiny_ridge() -> None:
    """Two equal points make the Gram matrix singular; in float32 a ridge of 1e-6 would be lost in rounding."""
    x = torch.randn(20, 8, generator=generator("ridge")).repeat(2, 1)
    y = torch.eye(2).repeat_interleave(20, 0)
    kernel = InfiniteReLU(1)
    gram = kernel(x.double(), x.double())
    exact = torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(40).double(), y.double())
    found = ridge_solve(gram.float(), y, 1e-6).double()
    predictions = [gram @ coefficients for coefficients in (found, exact)]
    torch.testing.assert_close(*predictions, atol=0.1, rtol=0)


def test_machine_fits_its_support() -> None:
    rng = generator("machine")
    x, y = torch.randn(10, 4, generator=rng), torch.randn(10, 2, generator=rng)
    kernels: list[Kernel] = [
        VectorKernel(lambda inputs: inputs.flatten(1), InfiniteReLU(1)),
        FeatureKernel([MLP(4, 2, width=64), MLP(4, 2, width=64)]),
    ]
    for kernel in kernels:
        with torch.no_grad():
            machine = kernel.fit(x, y, 1e-8)
            torch.testing.assert_close(machine(x), y, atol=1e-2, rtol=1e-2)


def test_many_points_in_float32_are_as_good_as_in_float64() -> None:
    """A Gram matrix with the largest condition number that the ridge allows: all points equal but for a little."""
    numpy = pytest.importorskip("numpy")
    x = torch.ones(2100, 6) + 0.01 * torch.randn(2100, 6, generator=generator("many"))
    y = torch.randn(2100, 3, generator=generator("targets"))
    gram = InfiniteReLU(1)(x, x)
    wide = gram.double().numpy()
    oracle = numpy.linalg.solve(wide + wide.diagonal().mean() * numpy.eye(2100), y.double().numpy())
    with torch.no_grad():
        ours = ridge_solve(gram, y, 1.0)
    assert ours.dtype == torch.float32
    assert float((ours.double() - torch.from_numpy(oracle)).norm() / numpy.linalg.norm(oracle)) < 5e-5
