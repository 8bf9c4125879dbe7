"""Convolutions at reduced precision, for real points: what nobody differentiates twice may be multiplied in bfloat16.

Processors and GPUs that multiply bfloat16 natively do so several times faster than float32. A mean over a real batch, of features
or of gradients, loses far less to the rounding than another draw of the batch would change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

from datastill.errors import unknown_name

Precision = Literal["full", "bfloat16"]
PRECISIONS = ("full", "bfloat16")
_FEW = 4
"""Channels of which a convolution takes next to no time."""
_reduced: ContextVar[bool] = ContextVar("reduced", default=False)


def check_precision(name: str, value: str) -> None:
    """Raise `InputError` unless `value`, of the option `name`, is one of `PRECISIONS`."""
    if value not in PRECISIONS:
        raise unknown_name(name, value, PRECISIONS)


@contextmanager
def convolved_in(precision: Precision) -> Iterator[None]:
    """Within it every `Conv2d` of more than four channels multiplies, and has its gradients multiplied, in `precision`.

    Sums are float32, and so is all else: norms, activations, heads, losses, and learners without convolutions.
    """
    token = _reduced.set(precision == "bfloat16")
    try:
        yield
    finally:
        _reduced.reset(token)


class Conv2d(nn.Conv2d):
    """PyTorch's, or within `convolved_in("bfloat16")` the same with inputs, weights and outputs rounded to bfloat16."""

    def multiplies_in(self, inputs: Tensor) -> torch.dtype:
        """Of what type the factors are that `inputs` and weights are rounded to."""
        return torch.bfloat16 if _reduced.get() and self.in_channels > _FEW else inputs.dtype

    def forward(self, inputs: Tensor) -> Tensor:
        dtype = self.multiplies_in(inputs)
        if dtype == inputs.dtype:
            return super().forward(inputs)
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._conv_forward(inputs.to(dtype), self.weight.to(dtype), bias).to(inputs.dtype)
