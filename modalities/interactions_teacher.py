"""What a recommender that knows the whole log would recommend to real users, as targets for distillation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.backbones.ranking import Holdout
from datastill.backbones.recommender import SparseRows
from datastill.backbones.recommenders import EASE
from datastill.errors import unknown_name

TEACHERS = ("ease",)
LARGEST = 10_000
"""Items up to which there is a teacher: its matrix of items and items takes 8 * items^2 bytes, several times over."""


@dataclass(frozen=True)
class Taught:
    """Real users with a teacher's scores of the items.

    Attributes:
        scores: (n, items) float.
        seen: the users' own items, which are not to be ranked.
    """

    scores: Tensor
    seen: SparseRows

    def shares(self, sharpness: float) -> Tensor:
        """softmax(sharpness * scores) over the items that a user does not have (n, items)."""
        return hide_seen(sharpness * self.scores, self.seen).softmax(1)


def hide_seen(outputs: Tensor, seen: SparseRows) -> Tensor:
    """`outputs` with a huge negative number, whose product with 0 is 0, at the seen items."""
    mask = torch.zeros(outputs.shape, dtype=torch.bool, device=outputs.device)
    mask[seen.owners, seen.columns] = True
    return outputs.masked_fill(mask, torch.finfo(outputs.dtype).min / 4)


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

    def __call__(self, users: SparseRows) -> Taught:
        """The users' targets."""
        if self._model is None:
            self._model = EASE().fit(self._train, self._validate)
        return Taught(self._model(users), users)


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
