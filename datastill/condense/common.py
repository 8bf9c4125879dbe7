"""What every `condense_*` function does once it has a modality: run a recipe, keep its run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datastill.condense import observe
from datastill.errors import check_count
from datastill.loop import Callback, Result, distill
from datastill.metrics_log import MetricsLog
from datastill.modalities.base import Modality
from datastill.recipe import Recipe
from datastill.recipebook import recipes
from datastill.rng import derive_seed, generator


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
    observe.note_start(modality)
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
    observe.note_result(result)
    return result
