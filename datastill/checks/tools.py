"""What the checks are made of."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.backbones.batch import tensors_of
from datastill.errors import InputError
from datastill.loop import Event, distill
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective
from datastill.rng import generator


class CheckFailed(AssertionError):
    """A component breaks the contract; the message says where and how."""


def demand(condition: bool, message: str) -> None:
    """Raise `CheckFailed(message)` unless `condition` holds."""
    if not condition:
        raise CheckFailed(message)


def same(a: Any, b: Any) -> bool:
    """Whether two nests hold equal tensors, bit for bit."""
    left, right = tensors_of(a), tensors_of(b)
    return len(left) == len(right) and all(
        x.layout == y.layout and x.shape == y.shape and torch.equal(_dense(x), _dense(y)) for x, y in zip(left, right)
    )


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _torch_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


@contextmanager
def global_random_state_untouched(what: str) -> Iterator[None]:
    """Demand that a block leaves the global generators of torch, NumPy and Python as they were."""
    torch_states, numpy_state, python_state = _torch_states(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    demand(
        all(torch.equal(before, after) for before, after in zip(torch_states, _torch_states())),
        f"{what} changes the global random state of torch; draw from the generator that is passed.",
    )
    after = np.random.get_state()  # noqa: NPY002
    untouched = all(np.array_equal(a, b) for a, b in zip(numpy_state, after))
    demand(untouched, f"{what} changes the global random state of NumPy; draw from the generator that is passed.")
    demand(
        python_state == random.getstate(),
        f"{what} changes the global random state of Python; draw from the generator that is passed.",
    )


def refused(call: Callable[[], Any], what: str) -> str:
    """Demand that `call` raises `InputError` with a sentence, and give its message."""
    try:
        call()
    except InputError as error:
        message = str(error)
        demand(
            len(message.split()) >= 4 and message.rstrip()[-1] in ".!?",
            f"{what} is refused with {message!r}, which is not a sentence that says what is allowed and what came.",
        )
        return message
    except Exception as error:
        raise CheckFailed(f"{what} raises {type(error).__name__}: {error}; it should raise InputError.") from error
    raise CheckFailed(f"{what} is accepted silently; it should raise InputError before any work starts.")


def small_summary(modality: Modality, **options: Any) -> Summary:
    """A summary of two points a group (or two in all), drawn with a fixed seed."""
    counts = [2] * modality.num_groups
    return modality.summary(counts, rng=generator("checks", "summary"), **options)


def check_derivatives(loss: Callable[[], Tensor], summary: Summary, what: str, *, every: bool = True) -> None:
    """Demand that the gradient of `loss()` reaches the summary's parameters and agrees with central differences.

    The summary and whatever `loss` uses have to be in float64.
    """
    summary.zero_grad()
    loss().backward()
    groups = summary.parameter_groups()
    for name, parameters in groups.items():
        for parameter in parameters:
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            demand(reached or not every, f"{what} gives no gradient to the summary's parameters {name!r}.")
    parameters = [parameter for members in groups.values() for parameter in members]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    scale = float(sum(grad.square().sum() for grad in grads)) ** 0.5
    # Along a direction that is half random and half uphill the derivative is never small by accident.
    rng = generator("checks", "direction")
    direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p) for p in parameters]
    length = float(sum(part.square().sum() for part in direction)) ** 0.5
    direction = [part / length + grad / max(scale, 1e-300) for part, grad in zip(direction, grads)]
    exact = float(sum((grad * part).sum() for grad, part in zip(grads, direction)))
    start = [parameter.detach().clone() for parameter in parameters]
    errors = []
    for width in (1e-4, 1e-5, 1e-6):  # a kink of a ReLU may lie within one of them, hardly within all
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for parameter, value, part in zip(parameters, start, direction):
                    parameter.copy_(value + sign * width * part)
            values.append(float(loss().detach()))
        errors.append(abs((values[0] - values[1]) / (2 * width) - exact) / max(abs(exact), 1e-12))
    with torch.no_grad():
        for parameter, value in zip(parameters, start):
            parameter.copy_(value)
    demand(
        min(errors) < 1e-4,
        f"{what} has a gradient that disagrees with finite differences by {100 * min(errors):.3g} %; "
        "is part of the computation detached, rounded or drawn anew at each call?",
    )


class _Stop(Exception):
    """Stands in for a kill."""


def check_resume(
    modality: Modality, make_objective: Callable[[], Objective], *, steps: int = 6, lr: float = 1e-2, **options: Any
) -> None:
    """Demand that a run cut off after each of several steps and resumed equals the uninterrupted run, bit for bit."""

    def run(folder: str, stop_after: int | None) -> Summary:
        def stop(event: Event) -> None:
            if event.kind == "step" and event.step == stop_after:
                raise _Stop

        summary = small_summary(modality, **options)
        distill(
            modality,
            summary,
            make_objective(),
            steps=steps,
            lr=lr,
            seed=3,
            validate_every=0,
            callbacks=[stop],
            checkpoint_dir=folder,
            checkpoint_every=1,
            progress=False,
        )
        return summary

    with tempfile.TemporaryDirectory() as root:
        whole = run(str(Path(root) / "whole"), None)
        for cut in sorted({1, steps // 2, steps - 1}):
            folder = str(Path(root) / f"cut-{cut}")
            with suppress(_Stop):
                run(folder, cut)
            resumed = run(folder, None)
            demand(
                same(list(whole.state_dict().values()), list(resumed.state_dict().values())),
                f"A run of {make_objective().name} on {modality.kind} that is stopped after step {cut} and resumed differs "
                "from an uninterrupted one; is something that it carries from step to step missing in state_dict()?",
            )
