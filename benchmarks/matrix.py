"""Every objective on every modality: 8 x 4 cells, each beside a random subset of equal size and the full data.

    python benchmarks/matrix.py                      digits, Cora, SST-2 with GloVe, MovieLens-100K from --folder
    python benchmarks/matrix.py --embedded           stand-ins from installed packages alone

The recipe of a cell is the published method of its family with the settings that `datastill.recipes` has for that kind of data.
Summaries are selected on a validation split of the training data; scores are on the test split. "start" is the summary before its
first step: where it comes from clusters of real points it can be most of the way already. Cells that stand in the
file and are not asked for stay as they are, with the commit that they were measured at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from harness import DATA, ROOT, STARTED, modality_of, write_results

from datastill import evaluate, recipes
from datastill.condense.common import run_recipe
from datastill.evaluation import Evaluation, format_table
from datastill.recipe import Recipe
from datastill.rng import generator

FAMILIES = {
    "distribution matching": "dm",
    "layer matching": "cafe",
    "gradient matching": "dc",
    "kernel ridge": "kip",
    "feature regression": "frepo",
    "unrolled": "dd",
    "trajectory matching": "mtt",
    "statistics matching": "sre2l",
}
BUDGETS = {"image": 10, "text": 20, "graph": 35, "interactions": 50}
# The published schedules of the image recipes take hours; these are for a table of minutes on 8 x 8 images.
_SHORT: dict[str, Any] = {"optimizer": "adam", "momentum": None}
QUICK: dict[tuple[str, str], dict[str, Any]] = {
    ("image", "dm"): {**_SHORT, "steps": 200, "lr": 0.05, "settings": {"real_size": 64}},
    ("image", "cafe"): {**_SHORT, "steps": 200, "lr": 0.05, "settings": {"real_size": 64, "query_size": 32}},
    ("image", "dc"): {
        **_SHORT,
        "steps": 100,
        "lr": 0.05,
        "settings": {"outer_loops": 5, "inner_epochs": 10, "real_size": 64},
    },
    ("image", "kip"): {**_SHORT, "steps": 200, "lr": 0.02, "settings": {"ridge": 1e-3, "real_size": None}},
    ("image", "frepo"): {
        "summary": {"labels": "signed", "clamp": False},
        "steps": 300,
        "lr": {"points": 0.1, "labels": 0.005},
        "settings": {"learner": "convnet-w64-frepo-none", "unit_outputs": 10, "margin": 10.0},
    },
    ("image", "dd"): {
        **_SHORT,
        "steps": 100,
        "lr": 0.02,
        "settings": {"inner_steps": 10, "inner_lr": 0.05, "momentum": 0.5, "lr_per_step": False, "real_size": 20},
    },
    ("image", "mtt"): {
        **_SHORT,
        "steps": 100,
        "lr": 0.02,
        "settings": {"experts": 3, "expert_lr": 0.05, "expert_interval": 5, "inner_steps": 10, "inner_lr": 0.05},
    },
}


def main() -> None:
    """Run the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true", help="stand-ins from installed packages instead of files")
    parser.add_argument("--folder", type=Path, default=DATA, help="where the datasets lie")
    parser.add_argument("--kinds", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--recipes", nargs="+", default=list(FAMILIES.values()), choices=list(FAMILIES.values()))
    parser.add_argument("--seeds", type=int, default=5, help="evaluation seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "matrix.json")
    options = parser.parse_args()

    began = time.perf_counter()
    cells, minutes = [], 0.0
    if options.out.exists():
        stored = json.loads(options.out.read_text())
        if stored["embedded"] == options.embedded:
            again = {(kind, name) for kind in options.kinds for name in options.recipes}
            cells = [cell for cell in stored["cells"] if (cell["kind"], cell["recipe"]) not in again]
            minutes = stored["minutes"] if cells else 0.0
    for kind in options.kinds:
        modality = modality_of(kind, embedded=options.embedded, folder=options.folder)
        counts = modality.allocate(BUDGETS[kind])
        baselines: Evaluation | None = None
        for family, name in FAMILIES.items():
            if name not in options.recipes:
                continue
            recipe = recipe_of(kind, name)
            start = modality.summary(counts, rng=generator(0, "summary"), **recipe.summary)
            untrained = evaluate(start, modality, seeds=options.seeds, baselines=False, progress=False).rows[0]
            result = run_recipe(modality, counts, recipe, seed=0, progress=False)
            found = evaluate(result, seeds=options.seeds, baselines=baselines is None, progress=False)
            if baselines is None:
                baselines = found
            else:
                others = [row for row in baselines.rows if row.data in ("random subset", "full data")]
                found = Evaluation(found.metric, [*found.rows, *others])
            cells.append(
                {
                    "kind": kind,
                    "family": family,
                    "recipe": name,
                    "commit": STARTED["commit"],
                    "points": sum(counts),
                    "best_step": result.best_step,
                    "validation": result.best_score,
                    "start": untrained.mean(modality.metric),
                    "seconds": result.seconds,
                    **found.to_json(),
                }
            )
            print(line(found, kind, family, result.seconds), flush=True)
    minutes += (time.perf_counter() - began) / 60
    cells.sort(key=lambda cell: ([*BUDGETS].index(cell["kind"]), [*FAMILIES].index(cell["family"])))

    head = ["kind", "objective", "metric", "random", "start", "distilled", "exported", "full", "gap closed", "seconds"]
    print("\n" + format_table(head, [row_of(cell) for cell in cells]))
    print(f"\n{len(cells)} cells in {minutes:.1f} minutes")
    losers = [f"{cell['kind']} x {cell['recipe']}" for cell in cells if not beats_random(cell)]
    print("cells below their random subset: " + (", ".join(losers) or "none"))
    write_results(options.out, {"embedded": options.embedded, "minutes": minutes, "cells": cells})


def recipe_of(kind: str, name: str) -> Recipe:
    """The recipe of a cell, with its short schedule where it has one."""
    recipe = recipes[name]
    if (kind, name) in QUICK:
        recipe = dataclasses.replace(recipe, overrides={**recipe.overrides, kind: QUICK[kind, name]})
    return recipe.on(kind)


def line(found: Evaluation, kind: str, family: str, seconds: float) -> str:
    """One cell, as soon as it is there."""
    scores = ", ".join(f"{row.data} {100 * row.mean(found.metric):.2f}" for row in found.rows)
    return f"{kind} x {family}: {scores} ({seconds:.0f} s)"


def mean_of(cell: dict[str, Any], data: str) -> float | None:
    """The mean score of one row of a cell."""
    for row in cell["rows"]:
        if row["data"] == data:
            mean: float = row["summary"][cell["metric"]]["mean"]
            return mean
    return None


def beats_random(cell: dict[str, Any]) -> bool:
    """Whether the distilled summary scores above the random subset."""
    distilled, random = mean_of(cell, "summary"), mean_of(cell, "random subset")
    return distilled is not None and random is not None and distilled > random


def row_of(cell: dict[str, Any]) -> list[str]:
    """One line of the printed table, scores in percent."""
    random, ours, full = (mean_of(cell, name) for name in ("random subset", "summary", "full data"))
    exported = mean_of(cell, "exported")
    assert random is not None
    assert ours is not None
    assert full is not None
    values = (random, cell["start"], ours, exported, full)
    scores = ["-" if value is None else f"{100 * value:.2f}" for value in values]
    gap = f"{100 * (ours - random) / (full - random):.0f} %"
    return [cell["kind"], cell["family"], cell["metric"], *scores, gap, f"{cell['seconds']:.0f}"]


if __name__ == "__main__":
    main()
