"""The networks of image distillation's tables, and the names under which they are built.

LeNet, AlexNet, VGG11 and ResNet18 are the small variants for 32 pixels by which the literature compares since DC
(arXiv 2006.05929), here for images of any size that they can hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.convnet import ACTIVATIONS, ConvNet, Norm, make_norm
from datastill.backbones.mlp import MLP
from datastill.backbones.precision import Conv2d
from datastill.errors import InputError, require

Shape = tuple[int, int, int]

WIDTH = 32
"""Filters of "convnet" unless its name says otherwise; a quarter of the published 128 loses little and is much faster."""

_NORMS: dict[str, Norm] = {
    "instance": "instance",
    "in": "instance",
    "group": "group",
    "gn": "group",
    "layer": "layer",
    "ln": "layer",
    "batch": "batch",
    "bn": "batch",
    "none": "none",
}
_WORDS: dict[str, dict[str, dict[str, Any]]] = {
    "convnet": {
        **{word: {"norm": norm} for word, norm in _NORMS.items()},
        "avgpool": {"pool": "avg"},
        "maxpool": {"pool": "max"},
        "nopool": {"pool": "none"},
        **{word: {"activation": word} for word in ACTIVATIONS},
        "frepo": {"frepo": True},
    },
    "mlp": {},
    "lenet": {},
    "alexnet": {},
    "vgg11": {word: {"norm": norm} for word, norm in _NORMS.items()},
    "resnet18": {word: {"norm": norm} for word, norm in _NORMS.items()},
}
_SIZED = ("convnet", "mlp")  # whose names may hold a depth and a width


def parse_name(name: str) -> tuple[str, dict[str, Any]] | None:
    """Network and options of a name such as "convnet-d3-w128-instance-avgpool-relu", in any order; None if it is none.

    "convnet" takes d (depth), w (width), a norm, a pool ("avgpool", "maxpool", "nopool"), an activation and "frepo";
    "mlp" takes d and w; "vgg11" and "resnet18" take a norm: instance, group, layer, batch (or in, gn, ln, bn) or none.
    """
    network, *words = name.split("-")
    if network not in _WORDS:
        return None
    options: dict[str, Any] = {}
    for word in words:
        number = word[1:]
        if network in _SIZED and word[:1] in ("d", "w") and number.isascii() and number.isdigit():
            found = {"depth" if word[0] == "d" else "width": int(number)}
        elif word in _WORDS[network]:
            found = _WORDS[network][word]
        else:
            return None
        if options.keys() & found.keys():
            return None  # said twice
        options |= found
    return network, options


def build_network(name: str, shape: Shape, outputs: int) -> Learner:
    """The network called `name` for images of `shape` (channels, height, width).

    Raises:
        InputError: if there is none of that name, or if it cannot hold such images.
    """
    parsed = parse_name(name)
    if parsed is None:
        raise InputError(f"There is no network {name!r}.")
    network, options = parsed
    if network == "mlp":
        return MLP(shape[0] * shape[1] * shape[2], outputs, **options)
    if network == "convnet":
        return ConvNet(shape, outputs, **{"width": WIDTH, **options})
    return {"lenet": LeNet, "alexnet": AlexNet, "vgg11": VGG11, "resnet18": ResNet18}[network](
        shape, outputs, **options
    )


class Stages(Learner):
    """A chain of stages, whose last feature maps are flattened or averaged for the head."""

    def __init__(self, stages: list[nn.Module], flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._flatten = flatten

    def layers(self, inputs: Tensor) -> list[Tensor]:
        """Outputs of each stage, (n, ...)."""
        found = []
        for stage in self.stages:
            inputs = stage(inputs)
            found.append(inputs)
        return found

    def embed(self, inputs: Tensor) -> Tensor:
        """The last stage's output as vectors (n, d)."""
        for stage in self.stages:
            inputs = stage(inputs)
        return self._flatten(inputs)


class LeNet(Stages):
    """LeNet-5 with ReLU and max pooling: 61,706 parameters for 28x28 grey images and ten classes.

    Args:
        shape: (channels, height, width), at least 12 pixels a side. Below 32 the first convolution pads by 2, as on MNIST.
        outputs: classes.
    """

    def __init__(self, shape: Shape, outputs: int) -> None:
        channels, *sides = shape
        require(min(sides) >= 12, f"lenet needs images of at least 12x12 pixels, got {sides[0]}x{sides[1]}.")
        padding = 2 if min(sides) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in sides)
        super().__init__(
            [
                nn.Sequential(Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
                nn.Sequential(Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
                nn.Sequential(nn.Flatten(), nn.Linear(16 * rows * columns, 120), nn.ReLU()),
                nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
            ],
            _flat,
        )
        self.head = nn.Linear(84, outputs)


class AlexNet(Stages):
    """Five convolutions and a linear head: 1,872,202 parameters for 32x32 colour images and ten classes.

    Args:
        shape: (channels, height, width) of any size.
        outputs: classes.
    """

    def __init__(self, shape: Shape, outputs: int) -> None:
        channels, *sides = shape

        def stage(*parts: nn.Module, pool: bool) -> nn.Module:
            return nn.Sequential(*parts, nn.ReLU(), *([nn.MaxPool2d(2, ceil_mode=True)] if pool else []))

        super().__init__(
            [
                stage(Conv2d(channels, 128, 5, padding=2), pool=True),
                stage(Conv2d(128, 192, 5, padding=2), pool=True),
                stage(Conv2d(192, 256, 3, padding=1), pool=False),
                stage(Conv2d(256, 192, 3, padding=1), pool=False),
                stage(Conv2d(192, 192, 3, padding=1), pool=True),
            ],
            _flat,
        )
        rows, columns = (-(-side // 8) for side in sides)
        self.head = nn.Linear(192 * rows * columns, outputs)


class VGG11(Stages):
    """VGG11 with one linear layer: 9,231,114 parameters for 32x32 colour images and ten classes.

    Args:
        shape: (channels, height, width); instance norm needs more than 16 pixels a side.
        outputs: classes.
        norm: see `make_norm`.
    """

    def __init__(self, shape: Shape, outputs: int, norm: Norm = "instance") -> None:
        _check_size("vgg11", shape, norm, halvings=4)
        stages: list[nn.Module] = []
        fan_in = shape[0]
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            parts: list[nn.Module] = []
            for width in widths:
                parts += [Conv2d(fan_in, width, 3, padding=1), make_norm(norm, width), nn.ReLU()]
                fan_in = width
            stages.append(nn.Sequential(*parts, nn.MaxPool2d(2, ceil_mode=True)))
        super().__init__(stages, _mean)
        self.head = nn.Linear(512, outputs)


class ResNet18(Stages):
    """ResNet18 with a 3x3 stem: 11,173,962 parameters for colour images and ten classes.

    Args:
        shape: (channels, height, width); instance norm needs more than 8 pixels a side.
        outputs: classes.
        norm: see `make_norm`.
    """

    def __init__(self, shape: Shape, outputs: int, norm: Norm = "instance") -> None:
        _check_size("resnet18", shape, norm, halvings=3)
        stem = nn.Sequential(Conv2d(shape[0], 64, 3, padding=1, bias=False), make_norm(norm, 64), nn.ReLU())
        stages: list[nn.Module] = [stem]
        fan_in = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages.append(nn.Sequential(_Residual(fan_in, width, stride, norm), _Residual(width, width, 1, norm)))
            fan_in = width
        super().__init__(stages, _mean)
        self.head = nn.Linear(512, outputs)


class _Residual(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), with a projection of x where its shape changes."""

    def __init__(self, fan_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(fan_in, width, 3, stride, padding=1, bias=False),
            make_norm(norm, width),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1, bias=False),
            make_norm(norm, width),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or fan_in != width:
            self.skip = nn.Sequential(Conv2d(fan_in, width, 1, stride, bias=False), make_norm(norm, width))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.skip(maps) + self.body(maps))


def _check_size(name: str, shape: Shape, norm: Norm, halvings: int) -> None:
    # The mean of a single pixel is that pixel: instance norm would make every image the same.
    smallest = [-(-side // 2**halvings) for side in shape[1:]]
    require(
        norm != "instance" or smallest[0] * smallest[1] > 1,
        f"{name} with instance norm needs images of more than {2**halvings} pixels along a side, got {shape[1]}x{shape[2]}; "
        f"ask for {name}-gn.",
    )


def _flat(maps: Tensor) -> Tensor:
    return maps.reshape(len(maps), -1)


def _mean(maps: Tensor) -> Tensor:
    return torch.mean(maps, (2, 3))
