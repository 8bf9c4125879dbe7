"""Published recipes under the protocols of their papers, with random subsets and the full data beside (survey, Table 1).

    python benchmarks/table1.py                                  every recipe with scores on MNIST at 1 and 10 images a class
    python benchmarks/table1.py --rows dm:1 dsa:10 --seeds 5     some of them
    python benchmarks/table1.py --data cifar10 --dataset CIFAR-10 --out cifar10.json   on a folder with its images
    python benchmarks/table1.py --rows dm:1 --steps 100 --width 32 --set real_size=64 --out trial.json
    python benchmarks/table1.py --data digits --protocol library --rows sre2l:1 rded:1   on 8 x 8 digits, by the library's rules

A recipe that stores its images factorised or by a codec gets as many of them as fit into the bytes of so many float32 images.
Beside it stand random subsets of as many images, stored in full, and of as many bytes.

Every row distils `--runs` times from the start, and trains `--seeds` fresh networks on each result by the recipe's protocol. Rows
and baselines that stand in the file already are passed over, unless a row's settings differ, so that a run that was stopped goes
on; the distillation of a row goes on from its checkpoint. The baselines are trained once for each protocol and number of images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, STARTED, image_data, write_results

from datastill import recipes
from datastill.backbones.training import Protocol
from datastill.condense.common import run_recipe
from datastill.condense.images import images_within
from datastill.evaluation import evaluate, format_table
from datastill.modalities.base import Modality
from datastill.modalities.image import ImageModality
from datastill.modalities.image_storages import is_compact
from datastill.objectives.remembered import remembering
from datastill.recipe import Recipe
from datastill.registry import find
from datastill.rng import generator

HEAD = 256  # bytes of a file that name its tensors
LIBRARY = "library"  # in place of a published protocol: the library's own
# Fields of a recipe that are options here.
OUTER = ("steps", "lr", "validate_every", "validator", "validation_protocol")


def known_rows(dataset: str) -> list[str]:
    """Every recipe with published scores on it at 1 and 10 images a class."""
    names = [name for name in recipes if "image" in recipes[name].modalities]
    return [f"{name}:{ipc}" for name in names for ipc in (1, 10) if ipc in recipes[name].published.get(dataset, {})]


def prepared(
    name: str,
    width: int,
    changes: Mapping[str, Any],
    storage: Mapping[str, Any],
    **outer: Any,
) -> Recipe:
    """The recipe for images, its network (if it has one and names none) of `width` filters, with those settings of `changes`
    that its objective has, `storage` among the options of its summary and, of `outer`, such fields of the recipe as its rate or
    what validates, where they are not None."""
    recipe = recipes[name].on("image")
    if recipe.objective is not None and outer["steps"] is not None:
        recipe = recipe.lasting(outer["steps"])
    fields = (
        {} if recipe.objective is None else {f.name for f in dataclasses.fields(find("objectives", recipe.objective))}
    )
    settings = dict(recipe.settings)
    if "learner" in fields and not settings.get("learner") and "kernel" not in settings:
        settings["learner"] = f"convnet-w{width}"
    settings |= {key: value for key, value in changes.items() if key in fields}
    changed: dict[str, Any] = {"settings": settings, "summary": {**recipe.summary, **storage}}
    if recipe.objective is not None:
        changed |= {key: value for key, value in outer.items() if value is not None}
    return dataclasses.replace(recipe, **changed)


def rules_of(protocol: str, learners: Sequence[str] | None, training: Mapping[str, Any] | None) -> str:
    """The name of a protocol, with another network than its own and what is changed of the training behind strokes."""
    changed = [",".join(f"{name}={value}" for name, value in sorted(training.items()))] if training else []
    return "/".join([protocol, *(learners or []), *changed])


def rules_of_training(modality: Modality, protocol: str, options: Any) -> str | Protocol | None:
    """The `protocol` of `evaluate`: a published one, the library's own, or that with the changes of `--training`."""
    if protocol != LIBRARY:
        return protocol
    if not options.training:
        return None
    learner = (options.learners or [modality.evaluator or modality.learners[0]])[0]
    return dataclasses.replace(modality.protocol(learner), **options.training)


def same_training(modality: Modality, one: str, other: str) -> bool:
    """Whether two published protocols train alike, as those of DSA and DM, so that one baseline serves both."""
    if any(LIBRARY in name or "/" in name for name in (one, other)):
        return one == other
    alike = "learner", "training", "steps_by_points", "unit_scale_classes", "learned_lr", "rates", "ridges"
    rules = [modality.published_protocol(name) for name in (one, other)]
    return all(getattr(rules[0], name) == getattr(rules[1], name) for name in alike)


def parsed(value: str) -> Any:
    """A JSON value, or the string itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def budget(modality: Modality, recipe: Recipe, ipc: int, seed: int) -> tuple[Sequence[int], int | None]:
    """Images of each class: `ipc`, or as many as are stored in a file of so many float32 images, and the bytes of that."""
    if "codec" in recipe.summary or is_compact(recipe.summary.get("storage", "pixels")):
        assert isinstance(modality, ImageModality)
        pixels = modality.real(1, rng=generator(0)).inputs.numel()  # of one image a class
        nbytes = 4 * ipc * pixels + HEAD
        return images_within(modality, recipe, nbytes, seed=seed), nbytes
    return [ipc] * modality.num_groups, None


def trained(row: Any) -> dict[str, Any]:
    """A row of an evaluation for the file."""
    return {"accuracy": row.scores["accuracy"], "points": row.points, "bytes": row.nbytes, "seconds": row.seconds}


def distilled(
    modality: Modality, recipe: Recipe, ipc: int, protocol: str, options: Any, folder: Path
) -> dict[str, Any]:
    """The scores of `options.runs` distillations."""
    runs = []
    # A published score stands beside what was measured on the same data by the same protocol, and beside nothing else.
    published = recipe.published.get(options.dataset, {}) if protocol == recipe.scored_by(options.dataset) else {}
    for run in range(options.runs):
        began = time.perf_counter()
        out = folder / f"{recipe.name}-{ipc}-{run}"
        with remembering():  # the training by which points are chosen, if any, also for the budget in bytes
            counts, nbytes = budget(modality, recipe, ipc, run)
            result = run_recipe(
                modality,
                counts,
                recipe,
                seed=run,
                nbytes=nbytes,
                out=out,
                device=options.device,
                progress=options.progress,
            )
        # A run that goes on from its checkpoint also counts what it took before.
        seconds = max(time.perf_counter() - began, result.seconds)
        found = evaluate(
            result,
            protocol=rules_of_training(modality, protocol, options),
            learners=options.learners,
            seeds=options.seeds,
            seed=run,
            baselines=False,
            progress=options.progress,
        )
        runs.append({**trained(found.rows[0]), "distilled_seconds": seconds, "best_step": result.best_step})
    return {
        "per_class": counts[0],
        "runs": runs,
        "mean": statistics.fmean(score for run in runs for score in run["accuracy"]),
        "published": published.get(ipc),
    }


def baselines(modality: Modality, per_class: int, protocol: str, options: Any, stored: dict[str, Any]) -> None:
    """Train on random subsets of as many images and on the full data, unless `stored` has them."""
    named = rules_of(protocol, options.learners, options.training)
    key = f"random:{per_class}:{named}"
    for other in [name for name in stored if name.startswith(f"random:{per_class}:") and key not in stored]:
        if same_training(modality, named, other.rpartition(":")[2]):
            stored[key] = stored[other]
    subset = modality.subset([per_class] * modality.num_groups, rng=generator(0, "subset"))
    rules = rules_of_training(modality, protocol, options)
    again = {"protocol": rules, "learners": options.learners, "seeds": options.seeds, "progress": options.progress}
    if options.full_seeds and f"full:{named}" not in stored:
        found = evaluate(subset, modality, **{**again, "seeds": options.full_seeds})
        full = [row for row in found.rows if row.data == "full data"]  # too many points for a kernel
        stored[f"full:{named}"] = trained(full[0]) if full else None
    if key not in stored:
        scores: list[dict[str, Any]] = []
        for number in range(options.seeds):
            drawn = modality.subset([per_class] * modality.num_groups, rng=generator(number, "subset"))
            found = evaluate(drawn, modality, **{**again, "seeds": 1}, seed=number, baselines=False)
            scores.append(trained(found.rows[0]))
        stored[key] = {**scores[0], "accuracy": [score for one in scores for score in one["accuracy"]]}


def main() -> None:
    """Run the rows that are missing, write each as it is done, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="RECIPE:IPC")
    parser.add_argument("--data", default=str(DATA / "images" / "MNIST"), help="as --data of `datastill image`")
    parser.add_argument("--dataset", choices=["MNIST", "CIFAR-10"], help="that --data is; else the name of its folder")
    parser.add_argument("--protocol", help="in place of each recipe's own; 'library' is the library's")
    parser.add_argument("--steps", type=int, help="outer steps in place of each recipe's")
    parser.add_argument("--lr", type=parsed, help="in place of each recipe's: a number, or JSON with one for each role")
    parser.add_argument("--validate-every", type=int, metavar="STEPS", help="in place of each recipe's")
    parser.add_argument("--validator", metavar="LEARNER", help="what validation trains, in place of each recipe's")
    parser.add_argument(
        "--validation-protocol", metavar="NAME", help="how it is trained then, in place of each recipe's"
    )
    parser.add_argument("--width", type=int, default=128, help="filters of the networks that distil")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, for objectives that have them"
    )
    parser.add_argument(
        "--summary", nargs="+", default=[], metavar="NAME=VALUE", help="options of the summary, as bases=64"
    )
    parser.add_argument("--learners", nargs=1, help="what is trained on the result, in place of the protocol's")
    parser.add_argument("--runs", type=int, default=1, help="distillations of a row")
    parser.add_argument("--seeds", type=int, default=5, help="networks trained on each result")
    parser.add_argument("--full-seeds", type=int, default=1, help="networks trained on the full data; 0 leaves it out")
    parser.add_argument("--device", help="where to compute")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "table1.json")
    parser.add_argument(
        "--training",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="what to change of the training of --protocol library",
    )
    options = parser.parse_args()
    options.dataset = options.dataset or Path(options.data).name
    rows = options.rows or known_rows(options.dataset)
    if not rows:
        parser.error(f"no recipe has scores on {options.dataset}: name --rows, or the --dataset that this is")

    content: dict[str, Any] = {"rows": {}, "baselines": {}}
    if options.out.exists():
        stored = json.loads(options.out.read_text())
        content = {name: stored[name] for name in content}
    changes, storage, options.training = (
        {key: parsed(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        for pairs in (options.set, options.summary, options.training)
    )
    if options.training and options.protocol != LIBRARY:
        parser.error("--training changes the library's own training: add --protocol library")
    outer = {key: getattr(options, key) for key in OUTER}
    modality = image_data(options.data).to(options.device)
    for row in rows:
        name, _, ipc = row.partition(":")
        recipe = prepared(name, options.width, changes, storage, **outer)
        protocol = options.protocol or recipe.scored_by(options.dataset) or "dsa"
        settings = {
            "data": Path(options.data).name,
            "protocol": protocol,
            "steps": recipe.steps,
            "settings": dict(recipe.settings),
            "summary": dict(recipe.summary),
            "runs": options.runs,
            "seeds": options.seeds,
        }
        if options.learners is not None:  # else the protocol's
            settings["learners"] = options.learners
        if options.training:  # else the protocol's
            settings["training"] = options.training
        settings |= {
            key: value for key, value in outer.items() if value is not None and key != "steps"
        }  # else the recipe's
        settings = json.loads(json.dumps(settings))
        if content["rows"].get(row, {}).get("options") != settings:
            print(f"{row} ...", flush=True)
            folder = options.out.parent / f"{options.out.stem}-runs"
            found = distilled(modality, recipe, int(ipc), protocol, options, folder)
            content["rows"][row] = {"options": settings, "commit": STARTED["commit"], **found}
            write_results(options.out, content)
        for count in sorted({content["rows"][row]["per_class"], int(ipc)}):
            baselines(modality, count, protocol, options, content["baselines"])
            write_results(options.out, content)
    body = []
    for row, found in content["rows"].items():
        protocol = rules_of(*(found["options"].get(name) for name in ("protocol", "learners", "training")))
        counts = (found["per_class"], row.partition(":")[2])
        keys = (*(f"random:{count}:{protocol}" for count in counts), f"full:{protocol}")
        beside = [content["baselines"].get(key) for key in keys]
        scores = [score for run in found["runs"] for score in run["accuracy"]]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        body.append(
            [
                row,
                protocol,
                f"{100 * found['mean']:.2f} ± {100 * spread:.2f}",
                f"{found['published']}" if found["published"] else "-",
                *(f"{100 * statistics.fmean(one['accuracy']):.2f}" if one else "-" for one in beside),
                f"{found['runs'][0]['points']:,}",
                f"{found['runs'][0]['bytes']:,}",
                str(found["options"]["steps"]),
                f"{statistics.fmean(run['distilled_seconds'] for run in found['runs']):.0f}",
            ]
        )
    head = ["row", "protocol", "score, %", "published", "random", "same bytes", "full"]
    head += ["points", "bytes", "steps", "distil, s"]
    print(f"threads: {torch.get_num_threads()}")
    print(format_table(head, body))


if __name__ == "__main__":
    main()
