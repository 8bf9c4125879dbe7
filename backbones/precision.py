"""Convolutions at reduced precision, for real points: what nobody differentiates twice may be multiplied in bfloat16.

Processors and GPUs that multiply bfloat16 natively do so several times faster than float32. A mean over a real batch, of features
or of gradients, loses far less to the rounding than another draw of the batch would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from datastill.backbones import winograd
from datastill.errors import unknown_name

Precision = Literal["full", "bfloat16", "auto"]
PRECISIONS = get_args(Precision)
_FEW = 4
"""Channels of which a convolution takes next to no time."""
_precision: ContextVar[Precision] = ContextVar("precision", default="full")


def check_precision(name: str, value: str) -> None:
    """Raise `InputError` unless `value`, of the option `name`, is one of `PRECISIONS`."""
    if value not in PRECISIONS:
        raise unknown_name(name, value, PRECISIONS)


@contextmanager
def convolved_in(precision: Precision) -> Iterator[None]:
    """Within it every `Conv2d` of more than four channels multiplies, and has its gradients multiplied, in `precision`.

    Sums are float32, and so is all else: norms, activations, heads, losses, and learners without convolutions. "auto" is bfloat16
    for float32 inputs on a device that multiplies it natively (`native_bfloat16`), and "full" elsewhere. "full" is what PyTorch
    does with the inputs' type: for float32 on NVIDIA GPUs from Ampere on it rounds factors to TF32 (11 bits) unless
    `torch.backends.cudnn.allow_tf32` is False.
    """
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


@lru_cache
def native_bfloat16(device: str) -> bool:
    """Whether that device, such as "cpu" or "cuda:1", multiplies matrices of bfloat16 in hardware: GPUs from NVIDIA's Ampere on,
    x86 with AMX."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device == "cpu" and tiles is not None and bool(tiles())


class Conv2d(nn.Conv2d):
    """PyTorch's, or within `convolved_in("bfloat16")` the same with inputs, weights and outputs rounded to bfloat16."""

    def multiplies_in(self, inputs: Tensor) -> torch.dtype:
        """Of what type the factors are that `inputs` and weights are rounded to."""
        precision = _precision.get()
        if precision == "auto":
            fits = inputs.dtype == torch.float32 and native_bfloat16(str(inputs.device))
            precision = "bfloat16" if fits else "full"
        return torch.bfloat16 if precision == "bfloat16" and self.in_channels > _FEW else inputs.dtype

    def forward(self, inputs: Tensor) -> Tensor:
        dtype = self.multiplies_in(inputs)
        if dtype == inputs.dtype:
            fast = winograd.pays(self, inputs)
            return winograd.convolve(inputs, self.weight, self.bias) if fast else super().forward(inputs)
        # Matrix units of GPUs read channels last; rounding copies anyway, so that this order costs nothing more.
        order = torch.preserve_format if inputs.device.type == "cpu" else torch.channels_last
        rounded, weight = (value.to(dtype, memory_format=order) for value in (inputs, self.weight))
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._conv_forward(rounded, weight, bias).to(inputs.dtype)
