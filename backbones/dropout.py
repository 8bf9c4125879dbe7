"""Dropout that draws a byte for each unit. On a CPU torch's own spends most of a small network's step on its random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """`values` with a share of them set to 0 and the others scaled so that the mean stays; unchanged outside of training.

    Args:
        values: of any shape.
        rate: share that is dropped, in [0, 1), rounded to 1/256.
        training: whether anything is dropped.
    """
    dropped = round(256 * rate)
    if not training or dropped == 0:
        return values
    count = values.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    kept = words.view(torch.uint8)[:count].view(values.shape) >= dropped
    return values * kept.to(values.dtype).mul_(256 / (256 - dropped))
