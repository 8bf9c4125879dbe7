"""What every `condense_*` function does once it has a modality: run a recipe, keep its run folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, get_args

import numpy as np
import torch

from datastill import memory, processes
from datastill.condense.estimate import estimate_memory, stand_in, trained_before
from datastill.errors import InputError, check_count, check_device, require
from datastill.loop import Callback, Event, Result, distill
from datastill.metrics_log import MetricsLog
from datastill.modalities.base import Modality, Summary
from datastill.objectives.coresets import COMPOSED, METHODS, VECTORS, RealPoints, choose, coreset, learner_of
from datastill.objectives.remembered import remembering
from datastill.objectives.teachers import Teachers
from datastill.recipe import Recipe
from datastill.recipebook import recipes
from datastill.rng import derive_seed, generator
from datastill.validation import Validation

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def find_recipe(recipe: str | Recipe | None, kind: str) -> Recipe:
    """The recipe named, or the default, as it is for `kind` of data; an `InputError` if it is unknown or not for it."""
    if recipe is None:
        return recipes.default(kind)
    require(
        isinstance(recipe, str | Recipe),
        f"recipe must be a name, such as {recipes.default(kind).name!r}, or a Recipe, got {recipe!r}.",
    )
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
    nbytes: int | None = None,
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
        nbytes: most bytes that the export may take, see `distill`; a warning says so if nothing that was optimised fits. Real
            points that are taken as they are may take more, as texts do; a warning says that too.
        options: of `modality.summary`, in place of the recipe's. Real points may have a `codec`, where summaries have one: nodes
            of a graph are then propagated features without edges, as its summaries begin.
    """
    start = {**recipe.summary, **options}
    if recipe.objective is None:
        allowed = set(start) if start.get("labels") == "teacher" else {"init", "space", "labels", "parts", "codec"}
        given = [*(["steps"] if steps is not None else []), *sorted(set(start) - allowed)]
        require(
            not given, f"Recipe {recipe.name!r} takes real points as they are, so {', '.join(given)} cannot be chosen."
        )
    elif steps is not None:
        recipe = recipe.lasting(check_count("steps", steps))
    folder = None if out is None else _run_folder(out, modality, counts, recipe, seed)
    log: list[Callback] = [] if folder is None or not processes.is_main() else [MetricsLog(folder / "metrics.jsonl")]
    heard = [*log, *callbacks]
    modality.to(device if recipe.objective is None else processes.local_device(device))
    validation = Validation(
        modality, recipe.validator, recipe.validation_protocol, recipe.validation_seeds, recipe.select_on
    )
    validation.check()
    objective = None if recipe.objective is None else recipe.make_objective()
    trained = trained_before(modality, recipe, validation, **start)
    quick = objective is not None and not trained
    summary = first_summary(modality, counts, seed=seed, **start) if quick else stand_in(modality, counts, **start)
    estimate = estimate_memory(modality, summary, objective, trained=trained)
    if progress and processes.is_main():
        print(estimate, file=sys.stderr)
    estimate.warn()
    if objective is None:
        result = choose_points(modality, counts, validation, seed=seed, callbacks=heard, **start)
    else:
        if trained:
            summary = first_summary(modality, counts, seed=seed, **start)
        result = distill(
            modality,
            summary,
            objective,
            **recipe.loop_options(),
            seed=derive_seed(seed, "distill"),
            callbacks=heard,
            nbytes=nbytes,
            checkpoint_dir=None if folder is None else folder / "checkpoint",
            identity={"recipe": recipe.name, "start": repr(sorted(start.items()))},
            device=device,
            progress=progress,
        )
    result.learned["memory"] = estimate.total
    result.recipe, result.seed = recipe.name, seed
    if modality.scope():
        result.learned["scope"] = modality.scope()
    if nbytes is not None:
        _warn_of_bytes(result, nbytes)
    if folder is not None and processes.is_main():
        from datastill.artifact import save

        save(result, folder / "artifact")
    return result


def _run_folder(out: str | Path, modality: Modality, counts: Sequence[int], recipe: Recipe, seed: int) -> Path:
    """The folder `out`, there from now on, in which no other run's results are; an `InputError` says what else it is."""
    require(
        isinstance(out, str | Path) and str(out).strip() != "",
        f"out must be the path of a folder, or None to write nothing, got {out!r}.",
    )
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {str(folder)!r} cannot be a run's folder ({error.strerror}): choose another.") from error
    # What is optimised tells its runs apart by their checkpoints.
    begun, done = (folder / "checkpoint").exists(), (folder / "artifact").exists()
    other = recipe.objective is None and begun
    if done and not begun:
        from datastill.artifact import load

        found = load(folder)
        same = (recipe.name, seed, sum(counts), modality.fingerprint())
        other = recipe.objective is not None or (found.recipe, found.seed, found.points, found.fingerprint) != same
    require(
        not other,
        f"out {str(folder)!r} holds another run, whose results those of {recipe.name!r} with seed {seed} and {sum(counts)} "
        "points would overwrite: choose another folder, or delete this one.",
    )
    return folder


def _warn_of_bytes(result: Result, nbytes: int) -> None:
    """Say so if real points take more than `nbytes`, or if everything that was optimised does."""
    if result.objective is None:
        takes = result.modality.size(result.export()).nbytes
        text = f"The summary takes {takes:,} bytes, more than the {nbytes:,} asked for: its content decides how many."
    else:
        sizes = [record["bytes"] for record in result.history if record["step"] > 0 and "bytes" in record]
        takes = min(sizes, default=0)
        text = (
            f"Optimised, the summary took {takes:,} bytes and more, above the {nbytes:,} asked for, so that the one that the run "
            "began from was kept: ask for fewer points, which leaves room for what optimising adds to the coded numbers or edges."
        )
    if takes > nbytes:
        warnings.warn(text, stacklevel=3)


def first_summary(
    modality: Modality,
    counts: Sequence[int],
    *,
    seed: int,
    init: str = "real",
    space: str = VECTORS,
    parts: Mapping[str, Any] | None = None,
    teachers: Teachers | None = None,
    **options: Any,
) -> Summary:
    """What a run begins from: `modality.summary`, whose `init` may also be a method by which `choose` picks real points.

    Args:
        modality: the target dataset.
        counts: points of each group.
        seed: of the initial values.
        init: a name that the modality knows, or one of `coresets.METHODS` or `coresets.COMPOSED`.
        space: of features, or the learner, for such a method.
        parts: options of such a method.
        teachers: whom such a method asks; None trains them for it.
        options: of the modality's summary.
    """
    rng = generator(seed, "summary")
    if init in METHODS or init in COMPOSED:
        modality.check_options(counts, **options)
        drawn = generator(seed, "coreset", init)
        chosen = choose(modality, counts, method=init, space=space, rng=drawn, teachers=teachers, **(parts or {}))
        return modality.summary(counts, rng=rng, init=chosen, **options)
    require(not parts, f"init={init!r} does not put points together, so parts has to be left out.")
    require(
        space == VECTORS, f"init={init!r} chooses in no space of features, so space has to be left out, got {space!r}."
    )
    return modality.summary(counts, rng=rng, init=init, **options)


def choose_points(
    modality: Modality,
    counts: Sequence[int],
    validation: Validation,
    *,
    seed: int,
    init: str,
    space: str = VECTORS,
    parts: Mapping[str, Any] | None = None,
    labels: str = "own",
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Result:
    """A `coreset` as the result of a run of no steps, with its validation score.

    Args:
        modality: the target dataset.
        counts: points of each group.
        validation: how the points are scored.
        seed: of everything random.
        init: one of `coresets.METHODS` or `coresets.COMPOSED`.
        space: of features, or the learner.
        parts: options of the method.
        labels: "own", or "teacher": distributions that a network gives which was trained on all points.
        callbacks: told of the score, and of the end.
        options: of the modality's summary, for points with labels of a teacher or stored by a `codec`; others are as they are.
    """
    began = time.perf_counter()
    summary: Summary
    start = {"init": init, "space": space, "parts": parts, **options}
    if labels == "teacher":
        teachers = Teachers(modality, learner_of(modality, space), seed=derive_seed(seed, "teacher"))
        summary = first_summary(modality, counts, seed=seed, teachers=teachers, labels="learned", **start)
        with torch.no_grad():
            summary.relabel_(teachers.labels(summary()))
        summary.to("cpu")
    elif options.get("codec") is not None:
        summary = first_summary(modality, counts, seed=seed, **start).to("cpu")
    else:
        dataset = coreset(modality, counts, method=init, space=space, seed=seed, **(parts or {}))
        summary = RealPoints(modality, dataset)
    score = validation.score(summary, seed=seed)
    record = {"step": 0, "score": score, "seconds": round(time.perf_counter() - began, 3)}
    for kind in ("validation", "end"):
        for callback in callbacks:
            callback(Event(kind, 0, 0, record, summary))
    return Result(summary, modality, None, seed, [record], 0, score, time.perf_counter() - began)


@dataclasses.dataclass(frozen=True)
class Job(Generic[T]):
    """A distillation that is ready to run: the data read and checked, the budget shared out, the recipe chosen.

    `T` is the type of the dataset that comes out. Attributes and `options` are the arguments of `run_recipe`; `memory` is what
    `datastill.memory.limit` takes.
    """

    modality: Modality
    counts: Sequence[int]
    recipe: Recipe
    options: dict[str, Any]
    memory: int | str | None = None

    def run(self) -> Result:
        """Distil, and give the summary with its history."""
        with memory.limit(self.memory):
            return run_recipe(self.modality, self.counts, self.recipe, **self.options)


class Condense(Protocol[P, T_co]):
    """A `condense_*` function: called, it distils; its `job` stops before, for those who need more than the dataset."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """The job of a call with these arguments, not yet run."""
        ...


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's, which is what checks know and files hold; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def condenser(prepare: Callable[P, Job[T]]) -> Condense[P, T]:
    """Make a function that prepares a job into one that runs it and gives the dataset that comes out."""
    signature = inspect.signature(prepare, eval_str=True)

    @functools.wraps(prepare)
    def job(*args: P.args, **kwargs: P.kwargs) -> Job[T]:
        args = tuple(map(_plain, args))  # type: ignore[assignment]
        kwargs = {name: _plain(value) for name, value in kwargs.items()}  # type: ignore[assignment]
        # Reading the data can take long; what is wrong with the other arguments is said before.
        given = signature.bind(*args, **kwargs).arguments
        check_count("seed", given.get("seed", 0), least=0)
        check_device(given.get("device"))
        if given.get("steps") is not None:
            check_count("steps", given["steps"])
        bytes_given = given.get("memory")
        with memory.limit(bytes_given):
            return dataclasses.replace(prepare(*args, **kwargs), memory=bytes_given)

    @functools.wraps(prepare)
    def condense(*args: P.args, **kwargs: P.kwargs) -> T:
        with remembering():  # a budget in bytes and the run may want points that the same training chooses
            made = job(*args, **kwargs)
            with memory.limit(made.memory):
                exported: T = made.run().export()
        return exported

    (dataset,) = get_args(signature.return_annotation)  # what `help` has to show is what a call gives
    condense.__signature__ = signature.replace(return_annotation=dataset)  # type: ignore[attr-defined]
    condense.job = job  # type: ignore[attr-defined]
    return cast(Condense[P, T], condense)
