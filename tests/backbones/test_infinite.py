"""Infinite-width kernels against Monte Carlo of wide networks, closed forms, and dense against sparse rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datastill.backbones import infinite
from datastill.backbones.infinite import InfiniteReLU, KernelKind
from datastill.errors import InputError
from datastill.rng import generator

WEIGHT, BIAS = 2.0, 0.01


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=generator("rows", seed), dtype=torch.float64)


def wide_network(x: Tensor, depth: int, width: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Outputs and parameters of one random network in the NTK parametrisation, by its definition."""
    rng = generator("wide", seed)
    sizes = [x.shape[1], *([width] * depth), 1]
    parameters = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
        parameters.append(torch.randn(fan_out, fan_in, generator=rng, dtype=torch.float64).requires_grad_())
        parameters.append(torch.randn(fan_out, generator=rng, dtype=torch.float64).requires_grad_())
    h = x
    for layer in range(depth + 1):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        h = math.sqrt(WEIGHT / weight.shape[1]) * h @ weight.T + math.sqrt(BIAS) * bias
        if layer < depth:
            h = h.relu()
    return h[:, 0], parameters


def empirical_ntk(x: Tensor, depth: int, width: int, seed: int) -> Tensor:
    """Inner products of the outputs' parameter gradients."""
    outputs, parameters = wide_network(x, depth, width, seed)
    jacobian = []
    for output in outputs:
        grads = torch.autograd.grad(output, parameters, retain_graph=True)
        jacobian.append(torch.cat([grad.flatten() for grad in grads]))
    stacked = torch.stack(jacobian)
    return stacked @ stacked.T


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ntk_is_the_mean_of_wide_networks(depth: int) -> None:
    x = rows(4, 6)
    draws = [empirical_ntk(x, depth, 512, seed) for seed in range(20)]
    torch.testing.assert_close(InfiniteReLU(depth)(x, x), torch.stack(draws).mean(0), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("depth", [1, 2])
def test_nngp_is_the_covariance_of_wide_networks(depth: int) -> None:
    x = rows(3, 5)
    outputs = torch.stack([wide_network(x, depth, 128, seed)[0].detach() for seed in range(4000)])
    covariance = outputs.T @ outputs / len(outputs)
    torch.testing.assert_close(InfiniteReLU(depth, "nngp")(x, x), covariance, atol=0.15, rtol=0.08)


def test_depth_one_closed_form() -> None:
    """Theta = (2 k1 + b) + 2 k0 s with the arc-cosine kernels of Cho & Saul written out with acos."""
    x, z = rows(5, 7), rows(3, 7, 1)
    s = 2 * x @ z.T / 7 + BIAS
    norm = ((2 * x.square().sum(1) / 7 + BIAS)[:, None] * (2 * z.square().sum(1) / 7 + BIAS)[None]).sqrt()
    c = s / norm
    k0 = (math.pi - c.acos()) / (2 * math.pi)
    k1 = norm * ((1 - c * c).sqrt() + (math.pi - c.acos()) * c) / (2 * math.pi)
    torch.testing.assert_close(InfiniteReLU(1)(x, z), 2 * k1 + BIAS + 2 * k0 * s)
    diagonal = InfiniteReLU(1)(x, x).diagonal()
    torch.testing.assert_close(diagonal, 4 * x.square().sum(1) / 7 + 0.03, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_sparse_rows_give_the_same(kind: KernelKind) -> None:
    x = rows(6, 9) * (rows(6, 9, 1) > 0)
    x[2] = 0  # a user without any item
    z = rows(4, 9, 2)
    kernel = InfiniteReLU(2, kind)
    sparse = x.to_sparse_csr()
    torch.testing.assert_close(kernel(sparse, z), kernel(x, z))
    torch.testing.assert_close(kernel(z, sparse), kernel(z, x))
    torch.testing.assert_close(kernel(sparse, sparse), kernel(x, x))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_gradients_even_where_rows_coincide(depth: int) -> None:
    kernel = InfiniteReLU(depth)
    x, z = rows(3, 4).requires_grad_(), rows(2, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kernel(a, b), (x, z))
    assert torch.autograd.gradgradcheck(lambda a, b: kernel(a, b), (x, z))
    twice = rows(2, 4).repeat(2, 1).float().requires_grad_()
    (first,) = torch.autograd.grad(kernel(twice, twice).sum(), twice, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), twice)
    assert bool(first.isfinite().all())
    assert bool(second.isfinite().all())


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="depth must be an integer of at least 0"):
        InfiniteReLU(-1)
    with pytest.raises(InputError, match="kind must be 'ntk' or 'nngp'"):
        InfiniteReLU(1, "ntkk")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weight_variance"):
        InfiniteReLU(1, weight_variance=0.0)


def test_blocks_of_rows_without_gradients_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, z = rows(9, 4), rows(5, 4, 1)
    kernel = InfiniteReLU(2)
    whole = kernel(x, z)
    monkeypatch.setattr(infinite, "_BLOCK", 12)
    with torch.no_grad():
        torch.testing.assert_close(kernel(x, z), whole)
