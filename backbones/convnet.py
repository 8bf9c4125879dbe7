"""ConvNet-D/W: the plain convolutional network of the distillation literature, for images of any size.

A block is a 3x3 convolution, a normalisation, a ReLU and 2x2 average pooling; the features of the last block are
flattened into a linear head (Gidaris & Komodakis 2018; used by DC, DSA, DM, MTT with depth 3 and width 128 at 32x32
pixels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datastill.backbones.base import Learner, constant
from datastill.backbones.batch import Batch
from datastill.backbones.by_group import Tape, passes
from datastill.backbones.fast import CHUNK, Block, Conv3x3, HalvingMean
from datastill.backbones.losses import slopes_of
from datastill.backbones.outer import Outer, by_block, dense
from datastill.errors import check_count, require

Norm = Literal["instance", "group", "layer", "batch", "none"]
NORMS = ("instance", "group", "layer", "batch", "none")
POOLS = ("avg", "max", "none")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),  # of the norm's or the convolution's output, which nothing else needs
    "leaky": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}


def default_depth(height: int, width: int) -> int:
    """How many blocks suit images of this size: the published 3 at 32 pixels, 4 at 64; at least 2 if they fit."""
    halvings = math.ceil(math.log2(max(height, width, 2)))
    return min(halvings, max(2, round(math.log2(max(1, min(height, width)))) - 2))


class ConvNet(Learner):
    """A ConvNet of `depth` blocks with `width` filters each.

    Args:
        shape: (channels, height, width in pixels) of the images.
        outputs: classes.
        depth: blocks; None takes `default_depth`. Every block needs more than one pixel, since normalising a single
            pixel per channel would erase it.
        width: filters of every block.
        norm: see `make_norm`.
        pool: "avg", "max" or "none", at the end of a block.
        activation: "relu", "leaky" (slope 0.01), "sigmoid" or "swish".
        frepo: whether it is FRePo's variant (arXiv 2206.00719, appendix): each block has twice the filters of the one before;
            blocks but the first begin with their norm, so that features are not normalised; the statistics of "batch" follow
            training nearly at once; weights begin by LeCun's rule, biases at zero.
    """

    head: nn.Linear

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        depth: int | None = None,
        width: int = 128,
        norm: Norm = "instance",
        pool: Literal["avg", "max", "none"] = "avg",
        activation: str = "relu",
        frepo: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            *zip(("channels", "height", "width of images"), shape),
            ("outputs", outputs),
            ("width", width),
        ):
            check_count(name, value)
        channels, height, columns = shape
        depth = default_depth(height, columns) if depth is None else check_count("depth", depth)
        choices: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("norm", norm, NORMS),
            ("pool", pool, POOLS),
            ("activation", activation, ACTIVATIONS),
        )
        for option, choice, known in choices:
            require(choice in known, f"{option} must be one of {', '.join(known)}, got {choice!r}.")
        self._together = max(CHUNK, _MAPS // width)
        blocks: list[nn.Module] = []
        fan_in, rows = channels, height
        for level in range(depth):
            require(
                rows * columns > 1 or not erases_pixels(norm, width),
                f"depth {depth} is too much for images of {shape[1]}x{shape[2]} pixels: block {level + 1} would see a "
                f"single pixel. {f'Ask for a depth of at most {level}' if level else 'Take an mlp'}, or for another norm.",
            )
            # Rounding sizes up keeps the last row and column of odd sizes: 28 -> 14 -> 7 -> 4, as many features as 32
            # gives.
            if frepo:
                first = make_norm(norm, fan_in, momentum=_FAST) if level else nn.Identity()
                parts = [first, Conv3x3(fan_in, width)]
            else:
                parts = [Conv3x3(fan_in, width), make_norm(norm, width)]
            blocks.append(Block(*parts, ACTIVATIONS[activation](), _POOLS[pool]()))
            fan_in, width = width, width * (2 if frepo else 1)
            if pool != "none":
                rows, columns = -(-rows // 2), -(-columns // 2)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(fan_in * rows * columns, outputs)
        if frepo:
            self.apply(_begin_by_lecun)

    def layers(self, inputs: Tensor) -> list[Tensor]:
        """Feature maps (n, width, h, w) after each block, for images (n, channels, height, width)."""
        maps = []
        for block in self.blocks:
            inputs = block(inputs)
            maps.append(inputs)
        return maps

    def points_at_a_time(self) -> int | None:
        """A few on a CPU, whose caches they fit into: more of them where maps are few."""
        return self._together if next(self.parameters()).device.type == "cpu" else None

    def embed(self, inputs: Tensor) -> Tensor:
        """The last feature maps, flattened: (n, width * h * w)."""
        if not torch.is_grad_enabled() and not self.training and len(inputs) > CHUNK and inputs.device.type == "cpu":
            return torch.cat([self.embed(chunk) for chunk in inputs.split(CHUNK)])
        for block in self.blocks:
            inputs = block(inputs)
        # `reshape`, not `view`: the maps of channels-last images are not contiguous.
        return inputs.reshape(len(inputs), -1)

    def group_gradients(
        self, batch: Batch, groups: Sequence[int], loss: Callable[[Tensor, Any], Tensor], *, create_graph: bool
    ) -> list[Tensor]:
        """As every learner's, several groups in one pass. `loss` has to be a mean over points."""
        return list(map(dense, self._gradients(batch, groups, loss, create_graph=create_graph, factored=False)))

    def factored_gradients(
        self, batch: Batch, groups: Sequence[int], loss: Callable[[Tensor, Any], Tensor], *, create_graph: bool
    ) -> Sequence[Tensor | Outer]:
        """As every learner's: that of the head stays factored if no group has more points than there are classes."""
        return self._gradients(batch, groups, loss, create_graph=create_graph, factored=True)

    def _gradients(
        self,
        batch: Batch,
        groups: Sequence[int],
        loss: Callable[[Tensor, Any], Tensor],
        *,
        create_graph: bool,
        factored: bool,
    ) -> list[Tensor | Outer]:
        if self.training:
            return list(super().group_gradients(batch, groups, loss, create_graph=create_graph))
        order, sizes = batch.in_blocks(groups)
        if order is not None:
            batch = batch.take(order)
        most = self.points_at_a_time() or (len(batch) if create_graph else max(sizes))
        plan = list(passes(sizes, max(most, *sizes) if create_graph else most))  # with a graph groups stay whole
        rows = torch.arange(len(batch), device=batch.groups.device).split([points for _, points in plan])
        parts = zip((positions for positions, _ in plan), (batch.take(index) for index in rows))
        # Inner products of its points are fewer numbers than a gradient then, and every pass is of whole groups.
        factored = factored and max(sizes) <= (
            self.head.out_features if create_graph else min(most, self.head.out_features)
        )
        if create_graph or factored:
            each = [self._block_slopes(part, sizes[mine], loss, create_graph=create_graph) for mine, part in parts]
            hidden, head = _together(each, sizes)
            return [*hidden, head if factored else head.dense(), by_block(head.slopes, None, sizes)]
        total = [value.new_zeros(len(sizes), *value.shape) for value in self.parameters()]
        for mine, part in parts:
            several = mine.stop - mine.start > 1
            own = sizes[mine] if several else [len(part)]
            share = 1.0 if several else len(part) / sizes[mine.start]  # a large group's losses are means over its parts
            hidden, slopes, features = self._block_slopes(part, own, loss, create_graph=False)
            head = Outer(slopes, features, own)
            for whole, gradient in zip(total, [*hidden, head.dense(), by_block(slopes, None, own)]):
                whole[mine].add_(gradient, alpha=share)
        return list(total)

    def _block_slopes(
        self, batch: Batch, sizes: Sequence[int], loss: Callable[[Tensor, Any], Tensor], *, create_graph: bool
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradients of the blocks' parameters by group, and the slopes of outputs and the features that make those of the head.

        The points stand in groups of these sizes, one after the other.
        """
        tape = Tape(sizes)
        alone = len(sizes) == 1 and not create_graph
        with torch.enable_grad():
            maps = batch.inputs
            for block in self.blocks:
                assert isinstance(block, Block)
                maps = block(maps) if alone else block.by_group(maps, tape)
            features = maps.reshape(len(maps), -1)
        with torch.set_grad_enabled(create_graph):
            known = features if create_graph else features.detach()
            slopes = slopes_of(loss, constant(self.head)(known), batch.targets, sizes, differentiable=create_graph)
            of_features = slopes @ self.head.weight.detach()
            if alone:  # autograd has both gradients of a convolution at once, which takes less time
                found = torch.autograd.grad(
                    features, list(self.blocks.parameters()), of_features, materialize_grads=True
                )
                return [gradient[None] for gradient in found], slopes, known
            return tape.gradients(features, of_features, create_graph=create_graph), slopes, known


def _together(each: Sequence[tuple[list[Tensor], Tensor, Tensor]], sizes: Sequence[int]) -> tuple[list[Tensor], Outer]:
    """Of passes over whole groups: the gradients of the blocks, and that of the head, whose factors are put together first."""
    if len(each) == 1:
        hidden, slopes, features = each[0]
    else:
        hidden = [torch.cat(found) for found in zip(*(one for one, _, _ in each))]
        slopes, features = (torch.cat(found) for found in list(zip(*each))[1:])
    return hidden, Outer(slopes, features, sizes)


def make_norm(norm: Norm, width: int, *, momentum: float = 0.1) -> nn.Module:
    """The normalisation of `width` feature maps, with a learned scale and shift for each.

    "instance" is by map, "group" by up to 32 groups of maps, "layer" by all maps of a point, "batch" by map over all points of a
    batch: it has statistics that follow training, by a share of `momentum` at each batch, and in eval mode uses them, which at
    the start is no normalisation.
    """
    if norm == "batch":
        return nn.BatchNorm2d(width, momentum=momentum)
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm({"instance": width, "group": math.gcd(32, width), "layer": 1}[norm], width)


def _begin_by_lecun(module: nn.Module) -> None:
    """Weights of variance 1 / fan-in from a normal cut at two deviations, biases of zero (LeCun et al. 1998), in place."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        assert module.bias is not None
        deviation = module.weight[0].numel() ** -0.5 / _CUT
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(module.bias)


def erases_pixels(norm: Norm, width: int) -> bool:
    """Whether `make_norm` gives every map a mean of its own, so that maps of a single pixel become zero."""
    return norm == "instance" or (norm == "group" and 32 % width == 0)


_FAST = 0.9  # of the newest batch in running statistics
_MAPS = 4096
"""Feature maps of one layer that go through together on a CPU, if gradients are asked for."""
_CUT = 0.87962566103423978  # deviation of a standard normal that is cut at two deviations
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "avg": HalvingMean,
    "max": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "none": nn.Identity,
}
