"""What is learned from a target dataset once, where several choices of points would learn the same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from datastill.modalities.base import Modality

T = TypeVar("T")
_known: ContextVar[dict[tuple[Any, ...], tuple[Any, Any]] | None] = ContextVar("known", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Within it `once` keeps what it computed, as a search for the most points that fit wants the same training at each size."""
    if _known.get() is not None:  # an outer block remembers already
        yield
        return
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def once(what: str, modality: Modality, rng: torch.Generator, compute: Callable[[], T]) -> T:
    """`compute()`, or what it gave within the same `remembering` for this modality and a generator in the same state.

    Args:
        what: names the computation with all that it depends on beside the modality and `rng`.
        modality: the target dataset.
        rng: that `compute` draws from; it is left as `compute` leaves it.
        compute: the result must not be changed afterwards.
    """
    known = _known.get()
    if known is None:
        return compute()
    key = (what, id(modality), modality.device, modality.dtype, rng.get_state().numpy().tobytes())
    if key not in known:
        # The modality is kept too, so that no other one gets its id.
        known[key] = (compute(), rng.get_state()), modality
    (result, after), _ = known[key]
    rng.set_state(after)
    found: T = result
    return found
