"""What every `condense_*` function does once it has a modality: run a recipe, keep its run folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, get_args

import torch

from datastill.errors import check_count, check_device
from datastill.loop import Callback, Result, distill
from datastill.metrics_log import MetricsLog
from datastill.modalities.base import Modality
from datastill.recipe import Recipe
from datastill.recipebook import recipes
from datastill.rng import derive_seed, generator

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def find_recipe(recipe: str | Recipe | None, kind: str) -> Recipe:
    """The recipe named, or the default, as it is for `kind` of data; an `InputError` if it is unknown or not for it."""
    if recipe is None:
        return recipes.default(kind)
    return (recipes[recipe] if isinstance(recipe, str) else recipe).on(kind)


def run_recipe(
    modality: Modality,
    counts: Sequence[int],
    recipe: Recipe,
    *,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Result:
    """Distil `modality` into a summary of `counts` points a group by `recipe`.

    Args:
        modality: the target dataset.
        counts: synthetic points of each group.
        recipe: as `find_recipe` gives it.
        seed: of everything random.
        steps: in place of the recipe's.
        out: run folder: `artifact/`, `metrics.jsonl`, and `checkpoint/` from which a killed run goes on. None writes nothing.
        device: where to compute.
        progress: whether a progress bar is shown.
        callbacks: further ones.
        options: of `modality.summary`, in place of the recipe's.
    """
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=check_count("steps", steps))
    objective = recipe.make_objective()
    summary = modality.summary(counts, rng=generator(seed, "summary"), **{**recipe.summary, **options})
    folder = None if out is None else Path(out)
    log = [] if folder is None else [MetricsLog(folder / "metrics.jsonl")]
    result = distill(
        modality,
        summary,
        objective,
        **recipe.loop_options(),
        seed=derive_seed(seed, "distill"),
        callbacks=[*log, *callbacks],
        checkpoint_dir=None if folder is None else folder / "checkpoint",
        device=device,
        progress=progress,
    )
    result.recipe, result.seed = recipe.name, seed
    if folder is not None:
        from datastill.artifact import save

        save(result, folder / "artifact")
    return result


@dataclasses.dataclass(frozen=True)
class Job(Generic[T]):
    """A distillation that is ready to run: the data read and checked, the budget shared out, the recipe chosen.

    `T` is the type of the dataset that comes out. Attributes and `options` are the arguments of `run_recipe`.
    """

    modality: Modality
    counts: Sequence[int]
    recipe: Recipe
    options: dict[str, Any]

    def run(self) -> Result:
        """Distil, and give the summary with its history."""
        return run_recipe(self.modality, self.counts, self.recipe, **self.options)


class Condense(Protocol[P, T_co]):
    """A `condense_*` function: called, it distils; its `job` stops before, for those who need more than the dataset."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """The job of a call with these arguments, not yet run."""
        ...


def condenser(prepare: Callable[P, Job[T]]) -> Condense[P, T]:
    """Make a function that prepares a job into one that runs it and gives the dataset that comes out."""
    signature = inspect.signature(prepare, eval_str=True)

    @functools.wraps(prepare)
    def job(*args: P.args, **kwargs: P.kwargs) -> Job[T]:
        # Reading the data can take long; what is wrong with the other arguments is said before.
        given = signature.bind(*args, **kwargs).arguments
        check_count("seed", given.get("seed", 0), least=0)
        check_device(given.get("device"))
        if given.get("steps") is not None:
            check_count("steps", given["steps"])
        return prepare(*args, **kwargs)

    @functools.wraps(prepare)
    def condense(*args: P.args, **kwargs: P.kwargs) -> T:
        exported: T = job(*args, **kwargs).run().export()
        return exported

    (dataset,) = get_args(signature.return_annotation)  # what `help` has to show is what a call gives
    condense.__signature__ = signature.replace(return_annotation=dataset)  # type: ignore[attr-defined]
    condense.job = job  # type: ignore[attr-defined]
    return cast(Condense[P, T], condense)
