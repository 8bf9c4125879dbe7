"""Does an objective keep the contract of `datastill.objectives.base`?"""

from __future__ import annotations

import ast
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from datastill.bundle import flatten_state
from datastill.checks.tools import (
    CheckFailed,
    check_derivatives,
    check_resume,
    demand,
    global_random_state_untouched,
    same,
    small_summary,
)
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective
from datastill.rng import generator, isolated

Make = Callable[[], Objective]


def check_objective(make: Make, modality: Modality | None = None, *, on_fail: str = "raise") -> list[str]:
    """Run every check on an objective.

    Args:
        make: gives a new objective with small settings (few inner steps, few experts) at each call.
        modality: small data to run it on; None takes a toy modality.
        on_fail: "raise" stops at the first failure; "report" runs all checks and gives back what failed.

    Returns:
        One sentence for each failure.

    Raises:
        CheckFailed: if a check fails and `on_fail` is "raise".
    """
    data = modality or ToyModality()
    failures = []
    for check in OBJECTIVE_CHECKS:
        try:
            check(make, data)
        except CheckFailed as error:
            if on_fail == "raise":
                raise
            failures.append(f"{check.__name__}: {error}")
    return failures


def _started(make: Make, modality: Modality, summary: Summary, seed: int = 0) -> Objective:
    objective = make()
    objective.start(modality, summary, seed=seed)
    return objective


def check_constructor(make: Make, modality: Modality) -> None:
    """The constructor stores its arguments and nothing else happens; they can be stored as JSON."""
    with global_random_state_untouched("The constructor"):
        first, second = make(), make()
    demand(isinstance(first, Objective), f"make() must give an Objective, got {type(first).__name__}.")
    demand(bool(getattr(type(first), "name", "")), f"{type(first).__name__} needs a class attribute `name`.")
    demand(first.config() == second.config(), "Two objectives made alike have different config().")
    try:
        flatten_state(first.config())
    except InputError as error:
        raise CheckFailed(f"config() holds something that cannot be stored: {error}") from error


def check_blindness(make: Make, modality: Modality) -> None:
    """The objective's file imports no modality but the base contract."""
    cls = type(make())
    try:
        source = inspect.getsource(inspect.getmodule(cls) or cls)
    except (OSError, TypeError):
        return  # defined at a prompt: there is no file to read
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            head = "datastill.modalities."
            demand(
                not module.startswith(head) or module.removeprefix(head).split(".")[0] == "base",
                f"The objective's file imports {module}: an objective names no modality, only datastill.modalities.base.",
            )


def check_loss(make: Make, modality: Modality) -> None:
    """The loss is a finite scalar whose gradient reaches every parameter of the summary."""
    summary = small_summary(modality)
    objective = _started(make, modality, summary)
    loss = objective.loss(generator("checks", "loss"))
    demand(isinstance(loss, torch.Tensor) and loss.dim() == 0, "loss() must give a scalar tensor.")
    demand(bool(loss.isfinite()), f"loss() is {float(loss.detach())}, which is not finite.")
    loss.backward()
    for name, parameters in summary.parameter_groups().items():
        for parameter in parameters:
            reached = parameter.grad is not None and bool((parameter.grad != 0).any())
            demand(reached, f"The loss gives no gradient to the summary's parameters {name!r}.")
    for name, learnable in objective.learnables().items():
        reached = learnable.grad is not None and bool((learnable.grad != 0).any())
        demand(reached, f"The loss gives no gradient to the objective's own parameter {name!r}.")


def check_finite_differences(make: Make, modality: Modality) -> None:
    """The gradient agrees with finite differences in float64."""
    before = modality.dtype
    modality.to(dtype=torch.float64)
    try:
        summary = small_summary(modality).double()

        def loss() -> torch.Tensor:
            return _started(make, modality, summary).loss(generator("checks", "loss"))

        check_derivatives(loss, summary, "The objective's loss()")
    finally:
        modality.to(dtype=before)


def check_same_seed_same_loss(make: Make, modality: Modality) -> None:
    """Equal generators give equal losses over several steps; the global random state is untouched and unused."""

    def losses() -> list[float]:
        summary = small_summary(modality)
        objective = _started(make, modality, summary, seed=1)
        found = []
        for step in range(3):
            found.append(float(objective.loss(generator("checks", "loss", step)).detach()))
            objective.after_step(generator("checks", "after", step))
        return found

    with global_random_state_untouched("The objective"):
        first = losses()
    with isolated(12345):
        second = losses()
    demand(
        first == second,
        f"The losses differ for equal generators: {first} and {second}; is something drawn from a global generator?",
    )


def check_target_unmutated(make: Make, modality: Modality) -> None:
    """The objective changes neither the target dataset nor the summary's values."""
    before = modality.fingerprint()
    real = modality.real()
    summary = small_summary(modality)
    values = [value.detach().clone() for value in summary.state_dict().values()]
    objective = _started(make, modality, summary)
    for step in range(2):
        objective.loss(generator("checks", "loss", step)).backward()
        objective.after_step(generator("checks", "after", step))
    demand(
        modality.fingerprint() == before and same(real, modality.real()), "The objective changed the target dataset."
    )
    demand(
        same(values, list(summary.state_dict().values())),
        "The objective changed the summary itself; only the outer optimiser may.",
    )


def check_state(make: Make, modality: Modality) -> None:
    """`state_dict` can be stored, and `learned` too, which has a rate if the objective says so."""
    objective = _started(make, modality, small_summary(modality))
    objective.loss(generator("checks", "loss")).backward()
    objective.after_step(generator("checks", "after"))
    for name, value in (("state_dict", objective.state_dict()), ("learned", objective.learned())):
        try:
            flatten_state(value)
        except InputError as error:
            raise CheckFailed(f"{name}() holds something that cannot be stored: {error}") from error
    if ("inner_lr" in objective.learned()) != objective.learns_rate:
        raise CheckFailed(
            f"learns_rate is {objective.learns_rate}: learned() must have 'inner_lr' where it is True, and nowhere else"
        )


def check_restart(make: Make, modality: Modality) -> None:
    """A stopped and resumed run equals an uninterrupted one."""
    check_resume(modality, make)


def check_workdir(make: Make, modality: Modality) -> None:
    """An objective that is given a folder does the same as one that is not."""
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for workdir in (None, Path(folder)):
            objective = make()
            objective.start(modality, small_summary(modality), seed=2, workdir=workdir)
            losses.append(float(objective.loss(generator("checks", "loss")).detach()))
    demand(losses[0] == losses[1], f"The loss depends on workdir: {losses[0]} without, {losses[1]} with it.")


OBJECTIVE_CHECKS: tuple[Callable[[Make, Modality], None], ...] = (
    check_constructor,
    check_blindness,
    check_loss,
    check_finite_differences,
    check_same_seed_same_loss,
    check_target_unmutated,
    check_state,
    check_restart,
    check_workdir,
)
