"""The outer optimiser of a run: parameter groups by role, their learning rates, and which of them move at which step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from datastill.backbones.adaptive import LAMB, AdaBelief
from datastill.backbones.steps import aligned
from datastill.errors import (
    InputError,
    check_count,
    check_momentum,
    check_nonnegative,
    check_positive,
    require,
    unknown_name,
)

OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Rates: TypeAlias = float | Mapping[str, float]
Schedule: TypeAlias = Literal["constant", "cosine", "halving"]
_HALVED = (0.6, 0.8, 0.9)  # parts of a run after which "halving" halves the rate, as CAFE's program does

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adabelief": AdaBelief,
    "lamb": LAMB,
    "sgd": torch.optim.SGD,
}
_FUSED = ("adam", "adamw")


class OuterOptimizer:
    """An optimiser over named groups of parameters.

    Args:
        groups: parameters by role.
        optimizer: "adam", "adamw", "adabelief", "lamb", "sgd", or a function of PyTorch parameter groups (dicts with "params",
            "lr", "name").
        lr: one learning rate, or one for each role.
        momentum: of "sgd"; the first beta of the others if given, or both of them.
        schedule: "constant", "cosine" to zero at the last step, or "halving" after 60, 80 and 90 % of the steps (CAFE).
        alternate: roles to numbers of steps: they take turns in this order, for so many steps each; other roles always move.
        clip: largest norm of each role's gradient, or None.
        steps: of the whole run, for the schedule.
    """

    def __init__(
        self,
        groups: Mapping[str, Iterable[nn.Parameter]],
        *,
        optimizer: str | OptimizerFactory,
        lr: Rates,
        momentum: float | tuple[float, float] | None,
        schedule: str,
        alternate: Mapping[str, int] | None,
        clip: float | None,
        steps: int,
    ) -> None:
        self.groups = {name: list(parameters) for name, parameters in groups.items()}
        self.groups = {name: parameters for name, parameters in self.groups.items() if parameters}
        self.rates = _resolve_rates(lr, list(self.groups))
        if schedule not in get_args(Schedule):
            raise unknown_name("schedule", schedule, get_args(Schedule))
        if clip is not None:
            check_positive("clip", clip)
        for beta in momentum if isinstance(momentum, tuple) else () if momentum is None else (momentum,):
            check_momentum("momentum", beta)
        for name, turns in (alternate or {}).items():
            if name not in self.groups:
                raise unknown_name("parameter group in alternate", name, self.groups)
            check_count(f"alternate[{name!r}]", turns)
        self.schedule, self.alternate, self.clip, self.steps = schedule, dict(alternate or {}), clip, steps
        described = [{"params": p, "lr": self.rates[n], "name": n} for n, p in self.groups.items()]
        if callable(optimizer):
            self.optimizer = optimizer(described)
        elif optimizer not in _OPTIMIZERS:
            raise unknown_name("optimizer", optimizer, _OPTIMIZERS)
        elif optimizer == "sgd":
            if isinstance(momentum, tuple):
                raise InputError(f"momentum of sgd must be one number, got {momentum!r}.")
            self.optimizer = aligned(torch.optim.SGD(described, momentum=momentum or 0.0, fused=True))
        else:
            betas = momentum if isinstance(momentum, tuple) else (0.9 if momentum is None else momentum, 0.999)
            fused = {"fused": True} if optimizer in _FUSED else {}
            self.optimizer = aligned(_OPTIMIZERS[optimizer](described, betas=betas, **fused))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order of the groups."""
        return [parameter for parameters in self.groups.values() for parameter in parameters]

    def prepare(self, step: int) -> None:
        """Forget the gradients, and ask for new ones only of what moves at step number `step` (0-based)."""
        self.optimizer.zero_grad(set_to_none=True)
        moving = self._moving(step)
        for name, parameters in self.groups.items():
            for parameter in parameters:
                parameter.requires_grad_(name in moving)

    @contextmanager
    def taking_turns(self) -> Iterator[None]:
        """A run of steps, after which every parameter can get gradients again."""
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)

    def step(self, step: int) -> None:
        """Step number `step` (0-based)."""
        moving = self._moving(step)
        factor = _rate(self.schedule, step / self.steps)
        for described in self.optimizer.param_groups:
            described["lr"] = self.rates[described["name"]] * factor
        for name, parameters in self.groups.items():
            if name not in moving:
                for parameter in parameters:
                    parameter.grad = None  # a zero gradient would still move it by momentum
            elif self.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()

    def _moving(self, step: int) -> set[str]:
        if not self.alternate:
            return set(self.groups)
        position = step % sum(self.alternate.values())
        for name, turns in self.alternate.items():
            if position < turns:
                return set(self.groups) - set(self.alternate) | {name}
            position -= turns
        raise AssertionError("unreachable: position is below the sum of turns")


def _resolve_rates(lr: Rates, names: list[str]) -> dict[str, float]:
    if isinstance(lr, Mapping):
        for name in lr:
            if name not in names:
                raise unknown_name("parameter group in lr", name, names)
        missing = [name for name in names if name not in lr]
        require(not missing, f"lr needs a rate for each parameter group; {', '.join(missing)} has none.")
        rates = {name: lr[name] for name in names}
    else:
        rates = dict.fromkeys(names, lr)
    return {name: check_nonnegative(f"lr of {name}", rate) for name, rate in rates.items()}


def _rate(schedule: str, done: float) -> float:
    """What a learning rate is multiplied by when this part of the steps is done."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.5 ** sum(done >= part for part in _HALVED) if schedule == "halving" else 1.0
