"""The networks of the tables: published sizes, images of all kinds, and names."""

from __future__ import annotations

import pytest
import torch

from datastill.backbones.convnet import ConvNet
from datastill.backbones.vision import build_network, parse_name
from datastill.errors import InputError
from datastill.rng import generator, isolated

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("convnet-w128", CIFAR, 320_010),  # DC, DSA, DM, MTT
        ("convnet-w128", MNIST, 317_706),  # two input channels fewer: 2 * 9 * 128
        ("mlp", CIFAR, 3072 * 128 + 128 + 128 * 129 + 1290),
        ("lenet", MNIST, 61_706),
        ("lenet", CIFAR, 62_006),
        ("alexnet", CIFAR, 1_872_202),
        ("vgg11", CIFAR, 9_231_114),
        ("vgg11-none", CIFAR, 9_231_114 - 5504),
        ("resnet18", CIFAR, 11_173_962),
        ("resnet18-bn", CIFAR, 11_173_962),
        # FRePo: 128, 256 and 512 filters of 3x3, and 8192 features.
        ("convnet-w128-frepo-none", CIFAR, 27 * 128 + 128 + 1152 * 256 + 256 + 2304 * 512 + 512 + 81_930),
    ],
)
def test_published_sizes(name: str, shape: tuple[int, int, int], parameters: int) -> None:
    assert sum(value.numel() for value in build_network(name, shape, 10).parameters()) == parameters


@pytest.mark.parametrize(
    "name", ["convnet-w8", "convnet-d2-w8-maxpool", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 20, 33)], ids=str)
def test_images_of_all_sizes(name: str, shape: tuple[int, int, int]) -> None:
    with isolated(0):
        net = build_network(name, shape, 7).eval()
    images = torch.randn(2, *shape, generator=generator(0))
    outputs = net(images)
    assert outputs.shape == (2, 7)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-5)  # no normalisation has erased the image
    layers = net.layers(images)
    assert torch.allclose(net.head(net.embed(images)), outputs)
    assert len(layers) >= 2
    assert all(len(layer) == 2 for layer in layers)


@pytest.mark.parametrize("norm", ["in", "gn", "ln", "bn", "none"])
@pytest.mark.parametrize("name", ["convnet-d2-w8", "resnet18", "vgg11"])
def test_norms_are_what_they_say(name: str, norm: str) -> None:
    net = build_network(f"{name}-{norm}", CIFAR, 10)
    found = {
        type(part).__name__ + str(part.num_channels // part.num_groups if isinstance(part, torch.nn.GroupNorm) else "")
        for part in net.modules()
        if isinstance(part, torch.nn.GroupNorm | torch.nn.BatchNorm2d)
    }
    if norm in ("in", "bn", "none"):
        assert found == {"in": {"GroupNorm1"}, "bn": {"BatchNorm2d"}, "none": set()}[norm]
    else:
        groups = [part for part in net.modules() if isinstance(part, torch.nn.GroupNorm)]
        assert groups
        assert all(part.num_groups == (1 if norm == "ln" else min(32, part.num_channels)) for part in groups)


def test_the_network_of_frepo() -> None:
    with isolated(0):
        net = build_network("convnet-w16-frepo-batch", CIFAR, 10)
    assert isinstance(net, ConvNet)
    first, second, third = net.blocks
    kinds = [[type(part).__name__ for part in block.children()] for block in (first, second, third)]
    assert kinds == [["Identity", "Conv3x3", "ReLU", "HalvingMean"]] + 2 * [
        ["BatchNorm2d", "Conv3x3", "ReLU", "HalvingMean"]
    ]
    widths = [part.out_channels for part in net.modules() if isinstance(part, torch.nn.Conv2d)]
    assert widths == [16, 32, 64]
    for part in net.modules():  # LeCun's rule: variance 1 / fan-in, nothing beyond two deviations of the uncut normal
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            fan_in = part.weight[0].numel()
            assert float(part.weight.detach().square().mean() * fan_in) == pytest.approx(1, abs=0.1)
            assert float(part.weight.detach().abs().max()) <= 2 / 0.879 * fan_in**-0.5
            assert part.bias is not None
            assert not part.bias.any()
    # Statistics follow at once: after one batch in training mode they are nine tenths of that batch's.
    images = torch.rand(64, *CIFAR, generator=generator(0))
    net.train()(images)
    seen = first(images).detach().mean((0, 2, 3))
    norm = next(second.children())
    assert isinstance(norm, torch.nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, 0.9 * seen)


def test_double_backward() -> None:
    images = torch.randn(2, 3, 16, 16, generator=generator(0))
    for name in ("convnet-w4-maxpool-swish", "lenet", "alexnet", "vgg11-gn", "resnet18-ln"):
        net = build_network(name, (3, 16, 16), 3).eval()
        loss = torch.nn.functional.cross_entropy(net(images), torch.tensor([0, 1]))
        grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        torch.stack([grad.square().sum() for grad in grads]).sum().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in net.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {}),
        ("convnet-w128-d3-in", {"width": 128, "depth": 3, "norm": "instance"}),
        ("convnet-nopool-swish-bn", {"pool": "none", "activation": "swish", "norm": "batch"}),
        ("resnet18-gn", {"norm": "group"}),
        ("mlp-d0", {"depth": 0}),
    ],
)
def test_names(name: str, options: dict[str, object]) -> None:
    assert parse_name(name) == (name.split("-")[0], options)


@pytest.mark.parametrize(
    "name",
    ["", "convnet-", "convnet-w", "convnet-w8-w9", "convnet-in-gn", "lenet-w8", "resnet18-d3", "ntk", "convnet-w²"],
)
def test_what_is_no_name(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("lenet", (1, 8, 8), "at least 12x12 pixels, got 8x8"),
        ("vgg11", (1, 16, 16), "ask for vgg11-gn"),
        ("resnet18-in", (1, 8, 8), "ask for resnet18-gn"),
        ("convnet-d6", (1, 32, 32), "a depth of at most 5"),
        ("convnet-d6-gn-w32", (1, 32, 32), "a depth of at most 5"),
        ("convnet-w0", (1, 8, 8), "width must be an integer of at least 1, got 0"),
    ],
)
def test_images_that_are_too_small_are_refused(name: str, shape: tuple[int, int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_network(name, shape, 10)
