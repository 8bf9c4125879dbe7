"""Gradient descent on a summary as a differentiable function, with an exact reverse pass in constant graph memory.

Plain autograd through T training steps keeps T graphs. Here the forward pass keeps only the T parameter vectors; the reverse
pass rebuilds one step at a time and pulls the adjoint of the parameters through it. The result is the true gradient.

    v' = m v + grad L(theta, batch) + w theta        theta' = theta - lr v'
    backwards:  u <- m u - lr lambda;   (d batch, d theta) = u . d grad L;   lambda <- lambda + d theta + w u

TESLA (Cui et al., ICML 2023, arXiv 2211.10586) holds the parameters of every step constant: lambda stays what it was at the end,
and what a point does to later steps is left out. It costs the same memory and a little less time, and is not the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.backbones.base import Learner, call_with
from datastill.backbones.batch import Batch, tensors_of, with_tensors
from datastill.backbones.precision import Precision, convolved_in
from datastill.errors import require
from datastill.modalities.base import Modality
from datastill.rng import generator

Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Descent:
    """What the inner loop does at each step; constant during one outer step.

    Attributes:
        learner: whose structure is trained.
        loss: of outputs and targets.
        momentum: m, in [0, 1).
        weight_decay: w, at least 0.
        picks: for each step the positions of its mini-batch, or None for all points.
        augment: batch and step to batch, or None. Must be a pure function: it is replayed in the reverse pass.
        precision: in what convolutions are multiplied, forth and back (`convolved_in`).
    """

    learner: Learner
    loss: Callable[[Tensor, Any], Tensor]
    picks: Sequence[Tensor | None]
    momentum: float = 0.0
    weight_decay: float = 0.0
    augment: Callable[[Batch, int], Batch] | None = None
    precision: Precision = "full"

    def gradient(
        self, step: int, names: Sequence[str], theta: Tensors, batch: Batch, *, differentiable: bool
    ) -> list[Tensor]:
        """The gradient of step `step`'s loss at `theta` (which requires grad), itself differentiable if asked for."""
        pick = self.picks[step]
        points = batch if pick is None else batch.take(pick.to(batch.groups.device))
        if self.augment is not None:
            points = self.augment(points, step)
        with convolved_in(self.precision):
            outputs = call_with(self.learner, dict(zip(names, theta)), points.inputs)
        loss = self.loss(outputs, points.targets)
        grads = torch.autograd.grad(loss, theta, create_graph=differentiable, materialize_grads=True)
        return list(grads)


def check_unrolls(modality: Modality, name: str | None) -> None:
    """Raise `InputError` for a learner with batch norm: parameters alone do not say what it computes, and steps of unrolled
    training do not follow its running statistics."""
    net = modality.learner(name, rng=generator("unrolls"))
    require(
        not any(isinstance(part, _BatchNorm) for part in net.modules()),
        f"Learner {name!r} has batch norm, whose running statistics unrolled training does not follow: choose one with "
        "instance or group norm, or with none.",
    )


def unroll(
    descent: Descent, start: Mapping[str, Tensor], batch: Batch, rates: Tensor, *, exact: bool = True
) -> dict[str, Tensor]:
    """The parameters after `len(descent.picks)` steps of SGD on `batch`.

    Differentiable (once) in every floating tensor of `batch` and in `rates`.

    Args:
        descent: the inner loop.
        start: parameters before the first step; taken as constants.
        batch: the training points, usually synthetic.
        rates: (steps,) learning rates.
        exact: whether the backward pass gives the gradient, or TESLA's approximation of it.
    """
    return continued(descent, start, batch, rates, exact=exact)[0]


def continued(
    descent: Descent,
    start: Mapping[str, Tensor],
    batch: Batch,
    rates: Tensor,
    *,
    velocity: Mapping[str, Tensor] | None = None,
    exact: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As `unroll`, of training that goes on: with the velocity that it has at `start`, and with the one that it has at the end.

    Args:
        descent, start, batch, rates, exact: as in `unroll`.
        velocity: of the momentum by parameter, taken as constants; None is that of rest.

    Returns:
        The parameters, and their velocity, which is not differentiable.
    """
    names = list(start)
    constants = [start[name].detach() for name in names]
    speed = [torch.zeros_like(value) if velocity is None else velocity[name] for name, value in zip(names, constants)]
    finals = _Unroll.apply(exact, descent, names, constants, speed, batch, rates, *tensors_of(batch))
    return dict(zip(names, finals)), dict(zip(names, finals[len(names) :]))


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        exact: bool,
        descent: Descent,
        names: list[str],
        start: list[Tensor],
        velocity: Tensors,
        batch: Batch,
        rates: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        constant = with_tensors(batch, [leaf.detach() for leaf in leaves])
        theta: Tensors = start
        lengths = rates.tolist()
        trajectory: list[Tensors] = []
        velocities: list[Tensors] = []
        for step in range(len(descent.picks)):
            trajectory.append(theta)
            with torch.enable_grad():
                active = [value.detach().requires_grad_() for value in theta]
                grads: Tensors = descent.gradient(step, names, active, constant, differentiable=False)
            # One call for all parameters: of small networks these are most of the time.
            if descent.weight_decay:
                grads = torch._foreach_add(grads, theta, alpha=descent.weight_decay)
            velocity = torch._foreach_add(grads, velocity, alpha=descent.momentum) if descent.momentum else grads
            theta = torch._foreach_add(theta, velocity, alpha=-lengths[step])
            if rates.requires_grad:
                velocities.append(velocity)
        ctx.save_for_backward(rates, *leaves)
        ctx.exact, ctx.descent, ctx.names, ctx.batch = exact, descent, names, batch
        ctx.trajectory, ctx.velocities = trajectory, velocities
        # Copies, as rest and a run without momentum give back what they were given or what others keep.
        speed = tuple(value.clone() for value in velocity)
        ctx.mark_non_differentiable(*speed)
        return (*theta, *speed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *adjoint: Tensor) -> tuple[Any, ...]:
        descent: Descent = ctx.descent
        adjoint = adjoint[: len(ctx.names)]  # those of the velocity are none
        rates, *leaves = ctx.saved_tensors
        wanted = [needed and leaf.is_floating_point() for needed, leaf in zip(ctx.needs_input_grad[7:], leaves)]
        pulled = [torch.zeros_like(leaf) if want else None for want, leaf in zip(wanted, leaves)]
        rate_grads = torch.zeros_like(rates)
        adjoints: Tensors = adjoint
        impulse: Tensors = [torch.zeros_like(value) for value in adjoints]
        lengths = rates.tolist()
        for step in reversed(range(len(descent.picks))):
            if ctx.velocities:
                dots = [torch.dot(a.flatten(), v.flatten()) for a, v in zip(adjoints, ctx.velocities[step])]
                rate_grads[step] = -torch.stack(dots).sum()
            kept = torch._foreach_mul(impulse, descent.momentum)
            impulse = torch._foreach_add(kept, adjoints, alpha=-lengths[step])
            with torch.enable_grad():
                theta = [value.detach().requires_grad_() for value in ctx.trajectory[step]]
                active = [leaf.detach().requires_grad_(want) for want, leaf in zip(wanted, leaves)]
                grads = descent.gradient(step, ctx.names, theta, with_tensors(ctx.batch, active), differentiable=True)
                # A gradient that depends on nothing (a linear loss) has no graph and contributes nothing.
                alive = [(g, u) for g, u in zip(grads, impulse) if g.requires_grad]
                moved = theta if ctx.exact else []
                targets = moved + [leaf for leaf, want in zip(active, wanted) if want]
                if not targets:  # only rates are asked for, and theta is constant
                    continue
                results = torch.autograd.grad(
                    [g for g, _ in alive], targets, [u for _, u in alive], materialize_grads=True
                )
            if ctx.exact:
                adjoints = torch._foreach_add(adjoints, results[: len(theta)])
                if descent.weight_decay:
                    adjoints = torch._foreach_add(adjoints, impulse, alpha=descent.weight_decay)
            extra = iter(results[len(moved) :])
            pulled = [None if value is None else value + next(extra) for value in pulled]
        return (None, None, None, None, None, None, rate_grads if rates.requires_grad else None, *pulled)
