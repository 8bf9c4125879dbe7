"""Every exception that datastill raises on purpose, and the helpers that phrase them.

A message is a sentence: the parameter, what is allowed, what came, how to mend it.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterable
from numbers import Real
from types import ModuleType
from typing import Any


class DatastillError(Exception):
    """Base of all errors that datastill raises on purpose."""


class InputError(DatastillError, ValueError):
    """An argument or a dataset is not acceptable; raised before any work starts."""


class MissingExtraError(DatastillError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""


class ArtifactError(DatastillError):
    """A file to be read is corrupted, truncated, foreign, or from a newer version."""


class DivergenceError(DatastillError, ArithmeticError):
    """The outer loop met NaN or infinity; the summary holds its last good values.

    Attributes:
        step: the step (0-based) at which it happened.
        cause: what was not finite: "loss", or the names of gradients or parameters.
    """

    def __init__(self, message: str, *, step: int, cause: str) -> None:
        super().__init__(message)
        self.step = step
        self.cause = cause


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """An `InputError` for an unknown `name`, with the nearest known one suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def load_extra(module: str, extra: str) -> ModuleType:
    """Import optional `module`, or say which extra of datastill installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"This needs the package {module.split('.')[0]!r}, which is not installed: "
            f'pip install "datastill[{extra}]".'
        ) from error


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int of at least `least`, or an `InputError` that names the parameter."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return value


def check_number(name: str, value: Any, allowed: Callable[[float], bool], said: str) -> float:
    """`value` as a finite float that is `allowed`, in words `said`, or an `InputError` that names the parameter."""
    number = isinstance(value, Real) and not isinstance(value, bool)  # NumPy's are such numbers too
    if not number or not math.isfinite(value) or not allowed(value):
        raise InputError(f"{name} must be {said}, got {value!r}.")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or an `InputError` that names the parameter."""
    return check_number(name, value, lambda number: number > 0, "a positive number")


def check_nonnegative(name: str, value: Any) -> float:
    """`value` as a finite float of at least 0, or an `InputError` that names the parameter."""
    return check_number(name, value, lambda number: number >= 0, "a number of at least 0")


def check_momentum(name: str, value: Any) -> float:
    """`value` as a float in [0, 1), or an `InputError` that names the parameter."""
    return check_number(name, value, lambda number: 0 <= number < 1, "a number in [0, 1)")


def check_ratio(name: str, value: Any) -> float:
    """`value` as a float in (0, 1], or an `InputError` that names the parameter."""
    return check_number(name, value, lambda ratio: 0 < ratio <= 1, "a number in (0, 1]")


def check_device(value: Any) -> None:
    """Raise `InputError` unless PyTorch can compute on device `value` here; None is any."""
    if value is None:
        return
    import torch

    try:
        torch.zeros(1, device=value).cpu()  # which a device that knows shapes alone refuses
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(f"device {value!r} cannot be used here: {str(error).splitlines()[0]}") from error
