"""Convolutional kernels against the recursion pixel by pixel, finite networks by Monte Carlo, and the fully connected kernels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones.base import FeatureKernel
from datastill.backbones.convnet import ConvNet
from datastill.backbones.infinite import InfiniteReLU, KernelKind
from datastill.backbones.infinite_conv import InfiniteConvNet, Pool, convolutional_kernel
from datastill.errors import InputError
from datastill.objectives.kernel_ridge import draw_gaussian_
from datastill.rng import generator, isolated

WEIGHT, BIAS = 2.0, 0.01
POOLS: tuple[Pool, ...] = ("none", "avg", "global")


def images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=generator("images", seed), dtype=torch.float64)


# --- an oracle that goes from pixel to pixel --------------------------------------------------------------------------


def by_hand(x: Tensor, z: Tensor, depth: int, pool: Pool, stem: bool) -> tuple[float, float]:
    """NNGP and NTK of two images (channels, h, w) from the definitions: dicts of covariances of single pixels."""
    pair = {"xz": (x, z), "xx": (x, x), "zz": (z, z)}
    height, width = x.shape[1:]
    K: dict[Any, float] = {}
    for name, (one, two) in pair.items():
        for i, j in itertools.product(itertools.product(range(height), range(width)), repeat=2):
            K[name, i, j] = float((one[:, i[0], i[1]] * two[:, j[0], j[1]]).mean())
    T: dict[Any, float] = {}
    for pooled in [False] * stem + [pool == "avg"] * depth:
        K, T = convolved(K, BIAS), convolved(T, 0.0)
        T = {key: value + T.get(key, 0.0) for key, value in K.items()}
        K, T = rectified(K, T)
        if pooled:
            K, T = halved(K), halved(T)
    chosen = [key for key in K if key[0] == "xz" and (pool == "global" or key[1] == key[2])]
    nngp = WEIGHT * sum(K[key] for key in chosen) / len(chosen) + BIAS
    return nngp, nngp + WEIGHT * sum(T[key] for key in chosen) / len(chosen)


def convolved(K: dict[Any, float], bias: float) -> dict[Any, float]:
    window = list(itertools.product((-1, 0, 1), repeat=2))

    def total(name: str, i: tuple[int, int], j: tuple[int, int]) -> float:
        return sum(K.get((name, (i[0] + u, i[1] + v), (j[0] + u, j[1] + v)), 0.0) for u, v in window)

    return {key: WEIGHT / 9 * total(*key) + bias for key in K}


def rectified(K: dict[Any, float], T: dict[Any, float]) -> tuple[dict[Any, float], dict[Any, float]]:
    """The arc-cosine kernels of Cho & Saul, written out with acos."""
    value, tangent = {}, {}
    for (name, i, j), covariance in K.items():
        norm = math.sqrt(K[name[0] * 2, i, i] * K[name[1] * 2, j, j])
        angle = math.acos(max(-1.0, min(1.0, covariance / norm)))
        value[name, i, j] = norm * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
        tangent[name, i, j] = T[name, i, j] * (math.pi - angle) / (2 * math.pi)
    return value, tangent


def halved(K: dict[Any, float]) -> dict[Any, float]:
    found: dict[Any, list[float]] = {}
    for (name, i, j), value in K.items():
        found.setdefault((name, (i[0] // 2, i[1] // 2), (j[0] // 2, j[1] // 2)), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("shape", "depth"), [((2, 5, 3), 2), ((1, 1, 6), 3)])
def test_from_pixel_to_pixel(shape: tuple[int, int, int], depth: int, pool: Pool, stem: bool) -> None:
    x, z = images(2, shape), images(1, shape, 1)
    expected = torch.tensor([[by_hand(one, two, depth, pool, stem) for two in z] for one in x], dtype=torch.float64)
    for position, kind in enumerate(("nngp", "ntk")):
        kernel = InfiniteConvNet(shape, depth, kind, pool, stem=stem)  # type: ignore[arg-type]
        torch.testing.assert_close(kernel(x, z), expected[..., position], rtol=1e-7, atol=1e-7)


# --- finite networks --------------------------------------------------------------------------------------------------


def tangent_of_a_network(x: Tensor, depth: int, width: int, pool: Pool, seed: int) -> Tensor:
    """Inner products of the parameter gradients of one random network in the NTK parametrisation."""
    rng = generator("wide", seed)
    parameters: list[Tensor] = []

    def draw(*size: int) -> Tensor:
        parameters.append(torch.randn(*size, generator=rng, dtype=torch.float64).requires_grad_())
        return parameters[-1]

    maps = x
    for _ in range(depth):
        fan_in = maps.shape[1]
        scale = math.sqrt(WEIGHT / (9 * fan_in))
        maps = scale * F.conv2d(maps, draw(width, fan_in, 3, 3), padding=1)
        maps = (maps + math.sqrt(BIAS) * draw(width)[:, None, None]).relu()
        if pool == "avg":
            maps = F.avg_pool2d(maps, 2, ceil_mode=True)
    features = maps.mean((2, 3)) if pool == "global" else maps.flatten(1)
    outputs = math.sqrt(WEIGHT / features.shape[1]) * features @ draw(features.shape[1]) + math.sqrt(BIAS) * draw(1)
    rows = []
    for output in outputs:
        gradients = torch.autograd.grad(output, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


@pytest.mark.parametrize("pool", POOLS)
def test_ntk_is_the_mean_of_wide_networks(pool: Pool) -> None:
    x = images(3, (2, 4, 5))
    draws = torch.stack([tangent_of_a_network(x, 2, 192, pool, seed) for seed in range(30)])
    error = 4 * draws.std(0) / len(draws) ** 0.5
    gap = (InfiniteConvNet((2, 4, 5), 2, "ntk", pool)(x, x) - draws.mean(0)).abs()
    assert bool((gap < error + 0.03 * draws.mean(0)).all())
    assert float((error / draws.mean(0)).max()) < 0.15  # so that it says something


@pytest.mark.parametrize("pool", ["none", "avg"])
def test_nngp_is_that_of_the_librarys_own_networks(pool: Any) -> None:
    shape = (1, 7, 6)
    x = images(4, shape)
    exact = InfiniteConvNet(shape, 2, "nngp", pool)(x, x)
    gaps = []
    for count in (2, 24):
        nets = []
        for number in range(count):
            with isolated(number):
                nets.append(ConvNet(shape, 3, depth=2, width=256, norm="none", pool=pool).double())
            draw_gaussian_(nets[-1], generator("draw", number))
        with torch.no_grad():
            gaps.append(float((FeatureKernel(nets)(x, x) - exact).norm() / exact.norm()))
    assert gaps[1] < 0.02
    assert gaps[1] < gaps[0]


# --- consistency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("pool", POOLS)
def test_single_pixels_are_vectors(kind: KernelKind, pool: Pool) -> None:
    x, z = images(4, (6, 1, 1)), images(3, (6, 1, 1), 1)
    for depth in (1, 3):
        kernel = InfiniteConvNet((6, 1, 1), depth, kind, pool, filter_size=1)
        torch.testing.assert_close(kernel(x, z), InfiniteReLU(depth, kind)(x.flatten(1), z.flatten(1)))


@pytest.mark.parametrize("pool", POOLS)
def test_gradients(pool: Pool) -> None:
    kernel = InfiniteConvNet((1, 3, 4), 2, "ntk", pool, block=200)
    x, z = images(2, (1, 3, 4)).requires_grad_(), images(2, (1, 3, 4), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kernel(a, b), (x, z))
    assert torch.autograd.gradcheck(lambda a: kernel(a, a), (x,))
    assert torch.autograd.gradgradcheck(lambda a, b: kernel(a, b), (x[:1], z[:1]))


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("pool", POOLS)
def test_blocks_do_not_change_the_numbers(kind: KernelKind, pool: Pool) -> None:
    shape = (2, 6, 5)
    found = []
    for block in (1, 700, 10**7):
        kernel = InfiniteConvNet(shape, 2, kind, pool, block=block)
        x, z = images(7, shape).requires_grad_(), images(5, shape, 1).requires_grad_()
        cross, own = kernel(x, z), kernel(z, z)
        weights = images(1, (1, 7, 5), 2)[0, 0]
        ((cross * weights).sum() + own.square().sum()).backward()
        with torch.no_grad():
            torch.testing.assert_close(kernel(x, z), cross)
        torch.testing.assert_close(kernel(z, z.clone()), own)
        torch.testing.assert_close(own, own.T)
        found.append([cross.detach(), own.detach(), x.grad, z.grad])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_equal_and_black_images_have_finite_gradients() -> None:
    shape = (1, 4, 4)
    x = images(2, shape).float()
    x[1] = 0
    x = x.repeat(2, 1, 1, 1).requires_grad_()
    for pool in POOLS:
        for bias in (0.01, 0.0):
            (gradient,) = torch.autograd.grad(InfiniteConvNet(shape, 2, "ntk", pool, bias_variance=bias)(x, x).sum(), x)
            assert bool(gradient.isfinite().all())


def test_only_what_reaches_the_output_is_kept() -> None:
    assert InfiniteConvNet((3, 32, 32)).depth == 3
    assert InfiniteConvNet((3, 32, 32)).numbers_per_pair == 32 * 32
    assert InfiniteConvNet((3, 32, 32), pool="avg").numbers_per_pair == (15 * 32) ** 2
    assert InfiniteConvNet((3, 32, 32), pool="global").numbers_per_pair == 32**4
    assert InfiniteConvNet((3, 8, 32), 3, pool="avg").numbers_per_pair == 8 * 8 * 15 * 32


def test_names() -> None:
    shape = (1, 16, 12)
    x = images(2, shape)
    known: dict[str, dict[str, Any]] = {
        "cntk": {},
        "cnngp": {"kind": "nngp"},
        "cntk-avgpool-d1": {"pool": "avg", "depth": 1},
        "cntk-d2-gap-stem": {"pool": "global", "depth": 2, "stem": True},
    }
    for name, options in known.items():
        kernel = convolutional_kernel(name, shape, 3 if "d" not in name else None)
        assert kernel is not None
        expected = InfiniteConvNet(shape, **{"depth": 3, **options})
        torch.testing.assert_close(kernel(x, x), expected(x, x))
    for name in ("ntk", "cntk-", "cntk-d0", "cntk-gap-gap", "cntk-gap-avgpool", "cntk-d2-d3", "convnet"):
        assert convolutional_kernel(name, shape) is None


def test_bad_arguments() -> None:
    for options, message in (
        ({"depth": 0}, "depth must be an integer of at least 1"),
        ({"kind": "tnk"}, "kind must be 'ntk' or 'nngp'"),
        ({"pool": "average"}, "Unknown pool 'average'"),
        ({"filter_size": 2}, "filter_size must be odd"),
        ({"weight_variance": 0.0}, "weight_variance"),
        ({"bias_variance": -1.0}, "bias_variance"),
        ({"block": 0}, "block must be"),
    ):
        with pytest.raises(InputError, match=message):
            InfiniteConvNet((1, 8, 8), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without global pooling"):
        InfiniteConvNet((3, 224, 224), pool="global")
    with pytest.raises(InputError, match=r"images of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        InfiniteConvNet((1, 8, 8))(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8))
