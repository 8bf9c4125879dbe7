"""Ridge regression against scikit-learn and finite differences."""

from __future__ import annotations

import pytest
import torch

from datastill.backbones.base import FeatureKernel, Kernel, VectorKernel
from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.mlp import MLP
from datastill.backbones.ridge import linear_gram, ridge_solve
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


def test_more_points_than_features_and_a_tiny_ridge() -> None:
    """Most eigenvalues are zero: what float32 makes of them is below what the ridge adds, so its Gram matrix has no factor."""
    features = torch.randn(400, 300, generator=generator("wide")).abs() * torch.linspace(0.1, 10, 300)
    targets = torch.randn(400, 2, generator=generator("targets"))
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        ridge_solve(features @ features.T, targets, 1e-6)
    exact = features.double()
    ridge = 1e-6 * float(exact.square().sum()) / 400
    primal = torch.linalg.solve(exact.T @ exact + ridge * torch.eye(300).double(), exact.T @ targets.double())
    found = exact.T @ ridge_solve(linear_gram(features), targets.double(), 1e-6)
    torch.testing.assert_close(found, primal, rtol=1e-4, atol=1e-6)


def test_kernels_of_features_have_more_points_than_features() -> None:
    inputs = torch.rand(90, 6, generator=generator("inputs"))
    kernel = FeatureKernel([MLP(6, 3, depth=1, width=8)])
    for gram in (kernel(inputs, inputs), kernel.both(inputs[:3], inputs)[0]):
        assert torch.isfinite(ridge_solve(gram, torch.ones(90, 1), 1e-10)).all()
