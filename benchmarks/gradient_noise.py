"""How much of a step's gradient is about the summary, and how much about what was drawn for the step: networks and real points.

    python benchmarks/gradient_noise.py                               the recipes below, on MNIST at one image a class
    python benchmarks/gradient_noise.py --recipes dc bptt --data digits --steps 50

Every recipe distils from the same images for `--steps` steps. Then its gradient is taken `--draws` times where the summary
stands, each time with networks and real points of their own. With g_1, ..., g_n these gradients, m their mean and q the mean of
|g_i|^2, (n |m|^2 - q) / (n - 1) is an unbiased estimate of the squared length of the expected gradient; its share in q is the
`signal`. Noise is as large as the signal after averaging (1 - signal) / signal draws, and the last column says how many
processor seconds these take. A recipe that keeps a pool draws its networks from there, so that its draws differ less than
networks do.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, image_data, write_results
from table1 import prepared
from torch import Tensor

from datastill.condense.common import run_recipe
from datastill.errors import require
from datastill.evaluation import format_table
from datastill.loop import Result
from datastill.modalities.base import Modality
from datastill.rng import generator

RECIPES = ("kip", "rfad", "dm", "dc", "frepo", "bptt")


def measured(modality: Modality, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The signal of one recipe's gradient after so many steps, and the seconds that a gradient takes."""
    changes = {"real_size": options.real_size}
    recipe = prepared(name, options.width, changes, {"init": "kmeans"}, steps=options.steps)
    recipe = dataclasses.replace(recipe, validate_every=0)  # the last step is looked at, and not the best
    result = run_recipe(modality, [options.per_class] * modality.num_groups, recipe, progress=False)
    began = time.process_time()
    drawn = gradients(result, options.draws)
    seconds = (time.process_time() - began) / options.draws
    share = signal(drawn)
    return {
        "settings": dict(recipe.settings),
        "signal": share,
        "seconds": seconds,
        "draws": (1 - share) / share if share > 0 else None,
        "loss": [step["loss"] for step in result.history if "loss" in step][-1],
    }


def gradients(result: Result, draws: int) -> list[Tensor]:
    """That of all that the summary learns but labels, for one draw of networks and real points after the other, each flat."""
    objective = result.objective
    require(
        objective is not None, f"recipes must be optimised, and {result.recipe!r} only chooses points: leave it out."
    )
    assert objective is not None
    roles = result.summary.parameter_groups()
    points = [value for role, values in roles.items() if role != "labels" for value in values]
    found = []
    for number in range(draws):
        result.summary.zero_grad()
        objective.loss(generator(number, "gradient noise")).backward()
        found.append(torch.cat([value.grad.flatten() for value in points if value.grad is not None]))
        objective.after_step(generator(number, "after gradient noise"))
    return found


def signal(drawn: Sequence[Tensor]) -> float:
    """The share of the expected gradient in the mean squared length of these draws; below zero by chance where it is small."""
    found, count = torch.stack(list(drawn)).double(), len(drawn)
    each = found.square().sum(1).mean()
    return float((count * found.mean(0).square().sum() - each) / (count - 1) / each)


def main() -> None:
    """Measure the recipes, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--data", default=str(DATA / "images" / "MNIST"), help="as --data of `datastill image`")
    parser.add_argument("--per-class", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="steps of distillation before")
    parser.add_argument("--draws", type=int, default=24, help="gradients")
    parser.add_argument("--width", type=int, default=32, help="filters of the networks, where a recipe does not say")
    parser.add_argument("--real-size", type=int, default=20, help="real points a class")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gradient_noise.json")
    options = parser.parse_args()
    modality = image_data(options.data)
    rows: dict[str, dict[str, Any]] = {}
    body = []
    for name in options.recipes:
        row = rows[name] = measured(modality, name, options)
        draws = row["draws"]
        body.append(
            [
                name,
                f"{row['signal']:.3f}",
                f"{row['seconds']:.2f}",
                "-" if draws is None else f"{draws:.1f}",
                "-" if draws is None else f"{draws * row['seconds']:.1f}",
            ]
        )
        print(" ".join(body[-1]), flush=True)
        chosen = {key: getattr(options, key) for key in ("per_class", "steps", "draws", "width", "real_size")}
        write_results(options.out, {"options": {"data": Path(options.data).name, **chosen}, "rows": rows})
    print(format_table(["recipe", "signal", "seconds a gradient", "draws for 1:1", "seconds for 1:1"], body))


if __name__ == "__main__":
    main()
