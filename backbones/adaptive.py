"""Adaptive optimisers that published methods step with and PyTorch does not have: AdaBelief (RFAD) and LAMB (FRePo)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class _Adaptive(Optimizer):
    """Moments of the gradient by exponential means, of which a subclass makes steps."""

    EPS = 1e-8

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": self.EPS if eps is None else eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                first, second = group["betas"]
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(parameter.grad, 1 - first)
                self._remember(square, parameter.grad, mean, second, group["eps"])
                age = float(state["step"])
                deviation = (square / (1 - second**age)).sqrt_().add_(group["eps"])
                direction = mean / (1 - first**age) / deviation
                parameter.add_(direction, alpha=-group["lr"] * self._length(parameter, direction))
        return value

    def _remember(self, square: Tensor, slope: Tensor, mean: Tensor, decay: float, eps: float) -> None:
        """Bring the second moment up to date, in place; it decays by `decay`."""
        square.mul_(decay).addcmul_(slope, slope, value=1 - decay)

    def _length(self, parameter: Tensor, direction: Tensor) -> float:
        """Factor of the learning rate."""
        return 1.0


class AdaBelief(_Adaptive):
    """Adam whose second moment is of the gradient's deviation from its mean: long steps where gradients agree.

    Zhuang et al. (NeurIPS 2020), arXiv 2010.07468, algorithm 2, with the eps that RFAD has.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the mean and of the second moment, in [0, 1).
        eps: added to the second moment at each step, and to its root; None is 1e-16.
    """

    EPS = 1e-16

    def _remember(self, square: Tensor, slope: Tensor, mean: Tensor, decay: float, eps: float) -> None:
        surprise = slope - mean
        square.mul_(decay).addcmul_(surprise, surprise, value=1 - decay).add_(eps)


class LAMB(_Adaptive):
    """Adam whose step is, for each tensor, as long as a share `lr` of the tensor itself.

    You et al. (ICLR 2020), arXiv 1904.00962, algorithm 2, without weight decay; a tensor of zeros moves as by Adam.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the mean and of the second moment, in [0, 1).
        eps: added to the root of the second moment; None is 1e-8.
    """

    def _length(self, parameter: Tensor, direction: Tensor) -> float:
        sizes = float(parameter.norm()), float(direction.norm())
        return sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
