"""Steps of PyTorch's fused optimisers: safe for parameters of any layout, and many quick ones on few parameters.

A fused step reads a parameter, its gradient and its moments in the order in which they lie in memory, and does not look whether
that is the same order. It is not where a parameter is a view that was transposed and its moments were read from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam


def aligned(optimizer: Optimizer) -> Optimizer:
    """The optimiser itself, which from now on brings gradients and moments into the layout of their parameters before a step."""
    optimizer.register_step_pre_hook(lambda chosen, *_: _align(chosen))
    return optimizer


def _align(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = _like(parameter.grad, parameter)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = _like(value, parameter)


def _like(values: Tensor, parameter: Tensor) -> Tensor:
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter, requires_grad=False).copy_(values)


def stepper(optimizer: Optimizer) -> Callable[[], Any]:
    """What does the same as `optimizer.step()`, in less time if that is fused Adam which has made a step before.

    Valid as long as the optimiser keeps its parameters, settings and state; gradients may be other tensors at each step.
    """
    plain = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False, "fused": True}
    groups: list[tuple[list[Any], list[Any], list[Any], list[Any], dict[str, Any]]] = []
    _align(optimizer)
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
        states = [optimizer.state.get(parameter) for parameter in parameters]
        ready = type(optimizer) is torch.optim.Adam and all(group[name] is value for name, value in plain.items())
        if not ready or not all(states):
            return optimizer.step
        kept: list[list[Any]] = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]  # type: ignore[index]
        settings = {name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
        settings["beta1"], settings["beta2"] = group["betas"]
        groups.append((parameters, kept[0], kept[1], kept[2], settings))

    @torch.no_grad()
    def step() -> None:
        for parameters, means, squares, steps, settings in groups:
            slopes = [_like(parameter.grad, parameter) for parameter in parameters]
            adam(parameters, slopes, means, squares, [], steps, foreach=False, fused=True, **settings)

    return step
