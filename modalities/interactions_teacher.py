"""What a recommender that knows the whole log would recommend to real users, as targets for distillation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill import memory
from datastill.backbones.ranking import BYTES_A_SCORE, Holdout
from datastill.backbones.recommender import SparseRows
from datastill.backbones.recommenders import EASE
from datastill.errors import unknown_name

TEACHERS = ("ease",)
LARGEST = 10_000
"""Items up to which there is a teacher: its matrix of items and items takes 8 * items^2 bytes, several times over."""
SHARPNESS = 5.0
"""By which a teacher's scores, and predictions that are to be like them, are multiplied to be logits."""
_KEPT = 2**30
"""Bytes of targets, at most, that are computed once for all users; above, a user's are computed when they are drawn."""
_CHUNK = 1024
"""Users whose targets are computed at a time, at most."""
_BLOCK = 2**18
"""Outputs whose loss is computed at once, however many items a user has: a MiB, which stays in the processor's cache."""
_FAINT = -40.0
"""Logits that far below a user's largest count as that far below. Beside 1 that is nothing, and what is less leads to numbers
so small that arithmetic with them is a hundred times slower."""


@dataclass(frozen=True)
class Taught:
    """Real users with a teacher's scores of the items.

    Attributes:
        scores: (n, items) float.
        shares: softmax(SHARPNESS * scores) over the items that a user does not have, 0 elsewhere (n, items).
        seen: the users' own items, which are not to be ranked.
    """

    scores: Tensor
    shares: Tensor
    seen: SparseRows

    def loss(self, outputs: Tensor, sharpness: float = 1.0) -> Tensor:
        """Mean over users of the cross-entropy between `shares` and softmax(sharpness * outputs) over unseen items."""
        loss: Tensor = _Agreement.apply(outputs, self.shares, self.seen.starts, self.seen.columns, sharpness)
        return loss


def _hide_(outputs: Tensor, seen: SparseRows) -> Tensor:
    """`outputs` with a huge negative number, whose product with 0 is 0, at the seen items; in place."""
    return outputs.index_put_((seen.owners, seen.columns), outputs.new_tensor(torch.finfo(outputs.dtype).min / 4))


class _Agreement(torch.autograd.Function):
    """The loss and its gradient in one pass over blocks of rows; by autograd's own rules it takes some ten over all of them."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, shares: Tensor, starts: Tensor, columns: Tensor, sharpness: float) -> Tensor:
        slopes = torch.empty_like(outputs)
        loss = outputs.new_zeros(())
        bounds = starts.tolist()
        size = max(1, _BLOCK // outputs.shape[1])
        for first in range(0, len(outputs), size):
            part, target = outputs[first : first + size], shares[first : first + size]
            seen = _rows(starts, columns, bounds, first, len(part), outputs.shape[1])
            logits = _hide_(part * sharpness, seen)
            logits -= logits.amax(1, keepdim=True)
            agreement = (target[:, None] @ logits[:, :, None]).flatten()
            odds = logits.clamp_(min=_FAINT).exp_()
            total = odds.sum(1)
            loss += (total.log() - agreement).sum()
            torch.div(odds, total[:, None], out=slopes[first : first + size]).sub_(target)
        ctx.save_for_backward(outputs, shares, starts, columns)
        ctx.slopes, ctx.sharpness = slopes.mul_(sharpness / len(outputs)), sharpness
        return loss / len(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.slopes is not None and not torch.is_grad_enabled():
            slopes, ctx.slopes = ctx.slopes.mul_(gradient), None
            return slopes, None, None, None, None
        outputs, shares, starts, columns = ctx.saved_tensors  # for a second time, or for a gradient of it
        seen = _rows(starts, columns, starts.tolist(), 0, len(outputs), outputs.shape[1])
        odds = _hide_(outputs * ctx.sharpness, seen).softmax(1)
        return (odds - shares) * (gradient * ctx.sharpness / len(outputs)), None, None, None, None


def _rows(starts: Tensor, columns: Tensor, bounds: list[int], first: int, count: int, width: int) -> SparseRows:
    """The seen items of `count` users from `first` on; what their values are does not matter."""
    here = columns[bounds[first] : bounds[first + count]]
    return SparseRows(starts[first : first + count + 1] - bounds[first], here, here, width)


class Teacher:
    """EASE on all training interactions, fitted when it is first asked, its ridge chosen on the validation split.

    A user's held-out items say little about the thousands of others, and by chance; the teacher says of every item how it goes
    with those that the user has. So its scores are targets with far less noise. EASE, because its diagonal is zero: the score
    of an item does not come from that item itself.

    Args:
        name: "ease".
        train: (users, items) of all training interactions, on the CPU.
        validate: by which its ridge is chosen.
    """

    def __init__(self, name: str, train: SparseRows, validate: Holdout) -> None:
        if name not in TEACHERS:
            raise unknown_name("teacher", name, TEACHERS)
        self._train, self._validate = train, validate
        self._model: EASE | None = None
        self._all: tuple[Tensor, Tensor] | None = None

    def __call__(self, users: np.ndarray) -> Taught:
        """The targets of the users at these positions of `train`."""
        index = torch.from_numpy(users)
        seen = self._train.take(index)
        if self._model is None:
            self._model = EASE().fit(self._train, self._validate)
            count, width = len(self._train), self._train.width
            if memory.fits(count * width * 8, most=_KEPT):
                chunks = torch.arange(count).split(memory.chunk(BYTES_A_SCORE * width, most=_CHUNK))
                parts = [self._teach(self._train.take(some)) for some in chunks]
                self._all = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        scores, shares = self._teach(seen) if self._all is None else (part[index] for part in self._all)
        return Taught(scores, shares, seen)

    @torch.no_grad()
    def _teach(self, users: SparseRows) -> tuple[Tensor, Tensor]:
        assert self._model is not None
        scores = self._model(users)
        return scores, _hide_(SHARPNESS * scores, users).softmax(1)


def feasible(name: str | None, items: int) -> str | None:
    """`name`, or None with a warning where there are too many items for a teacher."""
    if name is None or items <= LARGEST:
        return name
    warnings.warn(
        f"The log has {items:,} items, more than the {LARGEST:,} up to which the teacher {name!r} can be fitted: "
        "the items that are held out of each user's row are the target instead.",
        stacklevel=3,
    )
    return None
