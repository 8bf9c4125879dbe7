"""The faster kernels against PyTorch's own, and their derivatives of first and second order."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datastill.backbones import convnet
from datastill.backbones.batch import Batch
from datastill.backbones.convnet import ConvNet
from datastill.backbones.fast import CHUNK, Block, Conv3x3, HalvingMean
from datastill.rng import generator, isolated


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (1, 1)], ids=str)
def test_convolution(channels: int, shape: tuple[int, int]) -> None:
    images = torch.randn(5, channels, *shape, generator=generator("images"))
    conv = Conv3x3(channels, 6)
    expected = F.conv2d(images, conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(images), expected)
    with torch.no_grad():
        assert torch.allclose(conv(images), expected, atol=1e-6)
        assert conv(images[:0]).shape == expected[:0].shape


@pytest.mark.parametrize("shape", [(8, 8), (7, 10), (2, 4), (1, 1), (5, 5)], ids=str)
def test_pooling_and_its_derivatives(shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *shape, generator=generator("maps"), dtype=torch.float64, requires_grad=True)
    pool, theirs = HalvingMean(), nn.AvgPool2d(2, ceil_mode=True)
    assert torch.allclose(pool(maps), theirs(maps), atol=1e-12)
    results = []
    for one in (pool, theirs):  # a gradient that depends on the maps, differentiated again
        (grad,) = torch.autograd.grad(one(maps).pow(3).sum(), maps, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), maps)
        results.append((grad, second))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*results))
    assert torch.autograd.gradgradcheck(pool, (maps,))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 12)], ids=str)
def test_networks_in_chunks_are_the_same_networks(shape: tuple[int, int, int]) -> None:
    with isolated(0):
        net = ConvNet(shape, 4, width=8).eval()
    images = torch.randn(2 * CHUNK + 5, *shape, generator=generator("images"))
    whole = net(images)  # with a graph, so in one piece
    with torch.no_grad():
        assert torch.allclose(net(images), whole, atol=1e-5)
        assert net.embed(images).shape == (2 * CHUNK + 5, net.head.in_features)


def test_gradients_in_chunks_are_those_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convnet, "_MAPS", 0)  # so that no more than CHUNK go together
    with isolated(0):
        net = ConvNet((1, 8, 8), 3, width=4).double().eval()
    labels = torch.arange(3).repeat_interleave(CHUNK + 7)
    images = torch.randn(len(labels), 1, 8, 8, generator=generator("images"), dtype=torch.float64)
    batch = Batch(images, labels, labels)
    found = net.group_gradients(batch, [2, 0], F.cross_entropy, create_graph=False)
    for row, group in enumerate((2, 0)):
        mine = labels == group
        expected = torch.autograd.grad(F.cross_entropy(net(images[mine]), labels[mine]), list(net.parameters()))
        assert all(torch.allclose(a[row], b, atol=1e-12) for a, b in zip(found, expected))
    graph = net.group_gradients(batch, [2, 0], F.cross_entropy, create_graph=True)
    assert all(value.requires_grad for value in graph)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, graph))


@pytest.mark.parametrize(("channels", "width"), [(1, 9), (2, 20)])
@pytest.mark.parametrize("shape", [(8, 6), (2, 4), (7, 8)], ids=str)
def test_first_blocks_are_their_parts(channels: int, width: int, shape: tuple[int, int]) -> None:
    with isolated(0):
        parts = [Conv3x3(channels, width), nn.GroupNorm(width, width), nn.ReLU(), HalvingMean()]
        block = Block(*parts).double()
        for value in block.parameters():  # biases, scales and shifts too
            nn.init.normal_(value)
    assert block._is_product()
    images = torch.randn(6, channels, *shape, generator=generator("images"), dtype=torch.float64, requires_grad=True)
    theirs = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU())
    theirs = theirs.append(nn.AvgPool2d(2, ceil_mode=True)).double()
    theirs.load_state_dict(block.state_dict())
    with torch.no_grad():
        assert torch.allclose(block(images), theirs(images), atol=1e-9)
    results = []
    for one in (block, theirs):  # a gradient that depends on images and parameters, differentiated again
        maps, values = one(images), [images, *one.parameters()]
        grads = torch.autograd.grad(maps.pow(3).sum(), values, create_graph=True)
        second = torch.autograd.grad(sum((grad.square().sum() for grad in grads), torch.zeros(())), values)
        results.append([maps, *grads, *second])
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8 * float(b.detach().abs().max()) + 1e-7)


def test_blocks_of_many_channels_or_another_norm_are_no_products() -> None:
    norm, relu = nn.GroupNorm(8, 8), nn.ReLU()
    assert not Block(Conv3x3(1, 8), norm, relu, HalvingMean())._is_product()
    assert not Block(Conv3x3(1, 16), nn.GroupNorm(4, 16), relu, HalvingMean())._is_product()
    assert not Block(Conv3x3(1, 16), nn.GroupNorm(16, 16), nn.SiLU(), HalvingMean())._is_product()
    assert not Block(Conv3x3(1, 16), nn.GroupNorm(16, 16), relu, nn.MaxPool2d(2))._is_product()


def test_as_many_maps_go_together_of_every_width() -> None:
    few = {width: ConvNet((1, 8, 8), 2, width=width).points_at_a_time() for width in (32, 64, 128, 256)}
    assert few == {32: 4 * CHUNK, 64: 2 * CHUNK, 128: CHUNK, 256: CHUNK}
