from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from datastill.backbones.base import call_with, parameters_of
from datastill.backbones.convnet import ConvNet, Norm, default_depth
from datastill.errors import InputError
from datastill.rng import isolated


def make(shape: tuple[int, int, int], norm: Norm = "instance", depth: int | None = None, width: int = 8) -> ConvNet:
    with isolated(0):
        return ConvNet(shape, 10, depth=depth, width=width, norm=norm)


def test_published_parameter_count() -> None:
    net = make((3, 32, 32), width=128)
    assert sum(value.numel() for value in net.parameters()) == 320_010  # ConvNetD3-W128 on CIFAR-10


@pytest.mark.parametrize(
    ("side", "depth", "features"), [(28, 3, 2048), (32, 3, 2048), (64, 4, 2048), (8, 2, 512), (1, 1, 128)]
)
def test_default_depth_and_features(side: int, depth: int, features: int) -> None:
    assert default_depth(side, side) == depth
    net = make((1, side, side), norm="none", width=128)
    assert net.embed(torch.randn(2, 1, side, side)).shape == (2, features)


@pytest.mark.parametrize("norm", ["instance", "none", "group"])
def test_forward_equals_functional_form(norm: Norm) -> None:
    torch.manual_seed(1)
    net, images = make((2, 8, 12), norm, depth=2, width=6), torch.randn(5, 2, 8, 12)
    values = parameters_of(net)
    maps = images
    for level in range(2):
        maps = F.conv2d(maps, values[f"blocks.{level}.0.weight"], values[f"blocks.{level}.0.bias"], padding=1)
        if norm == "instance":
            maps = F.instance_norm(maps)
        elif norm == "group":  # gcd(32, 6) = 2 groups of 3 channels
            grouped = maps.reshape(5, 2, -1)
            centred = grouped - grouped.mean(2, keepdim=True)
            maps = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(maps.shape)
        maps = F.avg_pool2d(maps.relu(), 2)
        assert torch.allclose(net.layers(images)[level], maps, atol=1e-5)
    expected = maps.flatten(1) @ values["head.weight"].T + values["head.bias"]
    assert torch.allclose(net(images), expected, atol=1e-5)


def test_pooling_keeps_the_last_row_of_odd_sizes() -> None:
    net = make((1, 5, 7), "none", depth=1, width=1)
    with torch.no_grad():
        net.blocks[0][0].weight.zero_()[0, 0, 1, 1] = 1.0  # type: ignore[index]
        net.blocks[0][0].bias.zero_()  # type: ignore[index]
    image = torch.arange(35.0).reshape(1, 1, 5, 7)
    pooled = net.layers(image)[0][0, 0]
    assert pooled.shape == (3, 4)
    assert pooled[2, 3] == 34  # the corner, alone in its cell
    assert pooled[2, 0] == (28 + 29) / 2
    assert pooled[0, 0] == (0 + 1 + 7 + 8) / 4


def test_channels_last_images_give_the_same_outputs() -> None:
    net, images = make((3, 9, 9)), torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(images), net(images.to(memory_format=torch.channels_last)), atol=1e-5)


def test_twice_differentiable_in_parameters_and_images() -> None:
    net = make((1, 4, 4), depth=1, width=2).double()
    images = torch.randn(
        2, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True
    )
    weight = net.blocks[0][0].weight.detach().clone().requires_grad_()  # type: ignore[index]
    rest = parameters_of(net)

    def outputs(weight: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return call_with(net, {**rest, "blocks.0.0.weight": weight}, images)

    assert torch.autograd.gradcheck(outputs, (weight, images))
    assert torch.autograd.gradgradcheck(outputs, (weight, images), rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 4}, "depth of at most 3"),
        ({"depth": 0}, "depth must be"),
        ({"width": 0}, "width must be"),
        ({"norm": "power"}, "norm must be one of instance, group, layer, batch, none"),
        ({"pool": "min"}, "pool must be one of avg, max, none"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ConvNet((1, 8, 8), 10, **arguments)  # type: ignore[arg-type]
