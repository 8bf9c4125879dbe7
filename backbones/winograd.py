"""3x3 convolution with a quarter of the multiplications (Winograd 1980; Lavin & Gray, CVPR 2016), and its gradients.

A tile of 4x4 outputs depends on 6x6 inputs. It is a linear map of the 36 products of transformed inputs and transformed weights,
where sums over windows have 144; over channels it is summed between the transforms, by 36 matrix products. The transforms act
on rows and on columns: each is a thin matrix product with a constant, so that nothing is cut into tiles.

The rounding error is some five times that of a plain sum in float32, a thousandth of bfloat16's.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

_TILE, _REACH = 4, 6
"""Outputs of a tile along an axis, and the inputs that they depend on: as many as there are products."""
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Where polynomials are evaluated, beside infinity: with less rounding than at the usual 0, 1, -1, 2, -2."""
_FEWEST = 128
"""Channels, of inputs and of outputs, and tiles, from which on PyTorch's convolution takes longer."""
_NUMBERS = 1_200_000
"""Transformed inputs at a time: about what a core's cache holds."""


def pays(conv: nn.Conv2d, inputs: Tensor) -> bool:
    """Whether `convolve` gives what `conv` gives for `inputs`, and sooner: many channels in float32 on a CPU."""
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and conv.padding == (1, 1) and pays_at(inputs, conv.weight)


def pays_at(inputs: Tensor, weight: Tensor) -> bool:
    """The same of a plain convolution with padding 1 and this weight."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= _FEWEST
        and weight.shape[2:] == (3, 3)
        and inputs.dim() == 4
        and len(inputs) * _tiles(inputs) >= _FEWEST
    )


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of inputs (n, c, h, w) and weight (k, c, 3, 3) with stride 1 and padding 1, (n, k, h, w), all float32.

    Gradients are found in the same way, but by PyTorch's own convolution where they have a graph (`create_graph`).
    """
    outputs: Tensor = _Convolution.apply(inputs, weight, bias)
    return outputs


def weight_slopes(slopes: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `weight`, from `slopes` of the convolution's outputs; without a graph."""
    found = _slopes(slopes, inputs, weight, False, True)[1]
    assert found is not None
    return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        into, out_of = _transforms(*inputs.shape[2:])
        filters, few = _transformed(weight).mT, _points_at_a_time(inputs, weight)
        outputs = inputs.new_empty(len(inputs), len(weight), *inputs.shape[2:])
        for part, mine in zip(inputs.split(few), outputs.split(few)):
            spread = into.there(part, "inputs")
            products = _rooms.of("outputs", *spread.shape[:2], len(weight))
            out_of.back(torch.bmm(spread, filters, out=products), mine, bias)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        bias_slopes = grads[0].sum((0, 2, 3)) if of_bias else None
        if torch.is_grad_enabled():
            ones, wanted = [1, 1], [of_inputs, of_weight, False]
            input_slopes, weight_slopes, _ = torch.ops.aten.convolution_backward(
                grads[0], inputs, weight, None, ones, ones, ones, False, [0, 0], 1, wanted
            )
        else:
            input_slopes, weight_slopes = _slopes(grads[0], inputs, weight, of_inputs, of_weight)
        return input_slopes, weight_slopes, bias_slopes


def _slopes(
    slopes: Tensor, inputs: Tensor, weight: Tensor, of_inputs: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Those of inputs and of the weight: the adjoints of the steps of the convolution, in reverse."""
    into, out_of = _transforms(*inputs.shape[2:])
    few, filters = _points_at_a_time(inputs, weight), _transformed(weight)
    input_slopes = torch.empty_like(inputs, memory_format=torch.contiguous_format) if of_inputs else None
    total = torch.zeros_like(filters) if of_weight else None
    for at in range(0, len(inputs), few):
        mine = out_of.there(slopes[at : at + few], "outputs")
        if total is not None:
            total.baddbmm_(mine.mT, into.there(inputs[at : at + few], "inputs"))
        if input_slopes is not None:
            spread = torch.bmm(mine, filters, out=_rooms.of("inputs", *mine.shape[:2], inputs.shape[1]))
            into.back(spread, input_slopes[at : at + few])
    if total is None:
        return input_slopes, None
    return input_slopes, (_filter_matrix().T @ total.flatten(1)).T.reshape(weight.shape)


class _Rooms(threading.local):
    """Memory that a thread keeps: to ask the system for it at every convolution takes longer than to fill it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def of(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape, which holds anything, until the next of that name."""
        count, held = math.prod(shape), self._held.get(name)
        if held is None or count > len(held):
            with torch.inference_mode(False):  # whose tensors could not be written to outside of it
                held = self._held[name] = torch.empty(count, dtype=torch.float32, device="cpu")
        return held[:count].view(shape)


_rooms = _Rooms()


@dataclass(frozen=True)
class _Transform:
    """Of maps (n, c, h, w) to products (36, tiles * n, c), and the adjoint.

    Attributes:
        rows: (6 * tiles of a column, h).
        columns: (6 * tiles of a row, w).
    """

    rows: Tensor
    columns: Tensor

    def there(self, maps: Tensor, room: str) -> Tensor:
        """(n, c, h, w) to (36, tiles * n, c), in the room of that name."""
        points, channels, height, width = maps.shape
        across = _rooms.of("half", len(self.columns), points * channels * height)
        across = torch.mm(self.columns, maps.reshape(-1, width).T, out=across).view(_REACH, -1, height).mT
        out = _rooms.of(room, _REACH, len(self.rows), across.shape[2])
        return torch.bmm(self.rows.expand(_REACH, -1, -1), across, out=out).view(_REACH**2, -1, channels)

    def back(self, products: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """(36, tiles * n, c) to (n, c, h, w), with `bias` (c,) added, into `out`."""
        points, channels, height, width = out.shape
        down = _rooms.of("half", height, _REACH, len(self.columns) // _REACH * points * channels)
        for number, mine in enumerate(products.view(_REACH, len(self.rows), -1)):
            torch.mm(self.rows.T, mine, out=down[:, number])
        maps = _rooms.of("maps", height, points * channels, width)
        columns = self.columns.expand(height, -1, -1)
        torch.bmm(down.view(height, len(self.columns), -1).mT, columns, out=maps)
        maps = maps.view(height, points, channels, width).permute(1, 2, 0, 3)
        if bias is None:
            out.copy_(maps)
        else:
            torch.add(maps, bias[:, None, None], out=out)


@lru_cache
def _transforms(height: int, width: int) -> tuple[_Transform, _Transform]:
    """For maps of this size: of the inputs, and (its adjoint) of the outputs."""
    outputs, _, inputs = _toom_cook()
    return _tiled(inputs, height, width, first=-1), _tiled(outputs.T, height, width, first=0)


def _tiled(transform: Tensor, height: int, width: int, first: int) -> _Transform:
    """`transform` (6, size of a tile) for every tile of both axes, which begin at `first` in steps of four; zeros pad."""
    axes = []
    for size in (height, width):
        tiles, reach = -(-size // _TILE), transform.shape[1]
        padded = transform.new_zeros(_REACH, tiles, _TILE * tiles + _REACH)
        for tile in range(tiles):
            padded[:, tile, tile * _TILE : tile * _TILE + reach] = transform
        axes.append(padded[..., -first : size - first].flatten(0, 1).float().contiguous())
    return _Transform(*axes)


@lru_cache
def _filter_matrix() -> Tensor:
    """(36, 9): of a filter to what transformed inputs are multiplied with, its columns' transform first as in `_Transform`."""
    filters = _toom_cook()[1]
    return torch.einsum("ai,bj->baij", filters, filters).reshape(_REACH**2, 9).float()


def _transformed(weight: Tensor) -> Tensor:
    """(k, c, 3, 3) to (36, k, c)."""
    return (_filter_matrix() @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])


@lru_cache
def _toom_cook() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices A (4, 6), G (6, 3), B (6, 6) in float64 such that A (G w * B x) is the correlation of x, of 6, with w, of 3.

    Polynomials are multiplied by their values at `_POINTS` and infinity; the correlation is the transpose of that. What
    belongs to a value has the same length in all three, which keeps rounding small.
    """
    as_written: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever the defaults are
    points = torch.tensor(_POINTS, **as_written)

    def values(terms: int) -> Tensor:
        infinity = torch.eye(terms, **as_written)[-1:]
        return torch.cat([points[:, None] ** torch.arange(terms, **as_written), infinity])

    outputs, filters, inputs = values(_TILE), values(3), torch.linalg.inv(values(_REACH)).T
    lengths = [matrix.norm(dim=1, keepdim=True) for matrix in (outputs, filters, inputs)]
    common = (lengths[0] * lengths[1] * lengths[2]) ** (1 / 3)
    outputs, filters, inputs = (matrix * common / own for matrix, own in zip((outputs, filters, inputs), lengths))
    return outputs.T.contiguous(), filters, inputs


def _tiles(inputs: Tensor) -> int:
    """Of a map."""
    return math.prod(-(-size // _TILE) for size in inputs.shape[2:])


def _points_at_a_time(inputs: Tensor, weight: Tensor) -> int:
    return max(1, _NUMBERS // (_REACH**2 * _tiles(inputs) * max(weight.shape[:2])))
