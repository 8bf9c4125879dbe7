"""How a caller of `condense_*`, which give the plain dataset, gets hold of the `Result` and the `Modality` behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from datastill.loop import Result
from datastill.modalities.base import Modality

_COLLECTING: ContextVar[list[Result] | None] = ContextVar("collecting", default=None)
_OPENING: ContextVar[bool] = ContextVar("opening", default=False)


class _Opened(Exception):
    def __init__(self, modality: Modality) -> None:
        self.modality = modality


@contextmanager
def collected() -> Iterator[list[Result]]:
    """A list that takes up the `Result` of every recipe that is run inside of the block."""
    results: list[Result] = []
    token = _COLLECTING.set(results)
    try:
        yield results
    finally:
        _COLLECTING.reset(token)


def opened(condense: Callable[..., Any], *data: Any, **options: Any) -> Modality:
    """The target dataset that `condense(*data, **options)` would distil, without distilling it."""
    token = _OPENING.set(True)
    try:
        condense(*data, **options)
    except _Opened as found:
        return found.modality
    finally:
        _OPENING.reset(token)
    raise TypeError(f"{condense!r} ran no recipe, so it has no target dataset.")


def note_start(modality: Modality) -> None:
    """Called when a recipe is about to be run on `modality`."""
    if _OPENING.get():
        raise _Opened(modality)


def note_result(result: Result) -> None:
    """Called when a recipe has been run."""
    collecting = _COLLECTING.get()
    if collecting is not None:
        collecting.append(result)
