"""The commands of the shell. Each takes the arguments after its name; imports happen here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.errors import ArtifactError, InputError, MissingExtraError, check_device, require
from datastill.options import Parser, add_options, make_parser, with_dashes

if TYPE_CHECKING:
    from datastill.artifact import Artifact
    from datastill.modalities.base import Modality

SETTINGS = "run.json"
_SCORING = (
    "quiet",
    "seeds",
    "learners",
    "protocol",
    "baselines",
    "baseline_space",
    "out",
    "memory",
)  # options that do not change what is distilled

# For each kind of data: the function that condenses it, the one that finds it, and the one that makes the target dataset of both.
_KINDS = {
    "image": (
        "datastill.condense.images:condense_images",
        "datastill.sources:read_images",
        "datastill.modalities.image:ImageModality",
    ),
    "text": (
        "datastill.condense.text:condense_text",
        "datastill.sources:read_texts",
        "datastill.modalities.text:TextModality",
    ),
    "graph": (
        "datastill.condense.graph:condense_graph",
        "datastill.sources:read_graph_source",
        "datastill.condense.graph:target",
    ),
    "graphs": (
        "datastill.condense.graphs:condense_graphs",
        "datastill.sources_graphs:read_graph_sets",
        "datastill.condense.graphs:target",
    ),
    "interactions": (
        "datastill.condense.interactions:condense_interactions",
        "datastill.sources:read_logs",
        "datastill.condense.interactions:target",
    ),
}


def condense(kind: str, arguments: Sequence[str]) -> None:
    """Condense data of one kind, score the summary, and write the run folder."""
    function, source, _ = (_find(place) for place in _KINDS[kind])
    parser = make_parser(kind, (inspect.getdoc(function) or "").split("\n")[0])
    from_source = add_options(parser, source, skip=("seed",))
    taken = [*from_source, *_given_by(kind), "out", "progress", "callbacks"]
    from_function = add_options(parser, function, skip=taken)
    parser.add_argument("--out", type=str, default=f"runs/{kind}", help="run folder; a killed run there goes on")
    _add_evaluation(parser)
    options = vars(parser.parse_args(with_dashes(arguments)))
    check_device(options.get("device"))
    folder = Path(options["out"])

    from datastill import artifact, memory, processes
    from datastill.evaluation import baseline_methods, evaluate
    from datastill.objectives.coresets import check_space
    from datastill.rules import Rules

    require(
        options["seeds"] >= 0, f"seeds must be at least 0, which leaves the evaluation out, got {options['seeds']}."
    )
    with memory.limit(options["memory"]):
        baselines = _baselines(options["baselines"])
        baseline_methods(baselines)  # a wrong name is said before the work, not after
        found = source(**{name: options[name] for name in from_source}, **_seed(source, options))
        chosen = {name: options[name] for name in from_function}
        job = function.job(**found, **chosen, out=folder, progress=not options["quiet"])
        rules = Rules.named(options["protocol"], job.modality)
        for name in _listed(options["learners"]) or ():
            rules.check_learner(name)
        if options["seeds"] > 0:
            job.modality.check_split("test")
            rules.check_learns(job.recipe.objective is not None and job.recipe.make_objective().learns_rate)
        check_space(job.modality, options["baseline_space"])
        if job.modality.scope():
            print(f"Scope: {job.modality.scope()}.")
        result = job.run()
        if processes.is_main():
            _write_settings(folder, kind, options)
        evaluation = None
        if options["seeds"] > 0:
            evaluation = evaluate(
                result,
                seeds=options["seeds"],
                learners=_listed(options["learners"]),
                baselines=baselines,
                baseline_space=options["baseline_space"],
                protocol=options["protocol"],
                progress=not options["quiet"] and processes.is_main(),
            )
            print(evaluation.table())
        if processes.is_main():
            stored = artifact.save(result, folder / artifact.RUN_SUBFOLDER, evaluation=evaluation)
            _finish(folder, stored)


def evaluate_run(arguments: Sequence[str]) -> None:
    """Score the summary in a run folder with other learners, baselines or more seeds; all other scores are kept."""
    from datastill import artifact, memory
    from datastill.evaluation import evaluate

    about = "Train fresh learners on the summary in a run folder and score them on held-out real data."
    parser = make_parser("evaluate", about)
    parser.add_argument("run", type=str, help="run folder of `datastill image`, `text`, `graph` or `interactions`")
    parser.add_argument("--data", type=str | None, default=None, help="where the target data lie now, if they moved")
    parser.add_argument("--device", type=str | None, default=None, help="where to train and score; default: the CPU")
    parser.add_argument(
        "--memory", type=str | None, default=None, help="bytes that may be used, such as 4GiB; default: what is free"
    )
    _add_evaluation(parser)
    options = vars(parser.parse_args(with_dashes(arguments)))
    require(options["seeds"] > 0, f"seeds must be at least 1, got {options['seeds']}.")
    check_device(options["device"])
    folder = Path(options["run"])
    stored = artifact.load(folder)
    kind, used = _read_settings(folder)
    if kind != stored.kind:
        raise ArtifactError(f"{folder / SETTINGS} is of a run on {kind} data, the artifact holds {stored.kind} data.")
    used["out"] = folder  # which may have moved
    if options["data"] is not None:
        used["data"] = options["data"]
    with memory.limit(options["memory"]):
        modality = open_modality(kind, used)
        if modality.fingerprint() != stored.fingerprint:
            raise InputError(
                f"The data in {used.get('data')!r} are not those that {folder} was distilled from; name the right ones by --data."
            )
        evaluation = evaluate(
            stored,
            modality.to(options["device"]),
            seeds=options["seeds"],
            learners=_listed(options["learners"]),
            baselines=_baselines(options["baselines"]),
            baseline_space=options["baseline_space"],
            protocol=options["protocol"],
            progress=not options["quiet"],
        )
    print(evaluation.table())
    found, before = evaluation.to_json(), stored.evaluation or {}
    now = {(row.data, row.learner, row.protocol) for row in evaluation.rows}
    rows = [row for row in before.get("rows", []) if (row["data"], row["learner"], row.get("protocol")) not in now]
    merged = {**found, "rows": [*rows, *found["rows"]], "rules": {**before.get("rules", {}), **found["rules"]}}
    stored = artifact.save(dataclasses.replace(stored, evaluation=merged), artifact.find_artifact(folder))
    _finish(folder, stored)


def report_run(arguments: Sequence[str]) -> None:
    """Write `report.html` into a run folder."""
    from datastill.report import report

    parser = make_parser("report", "Write a run folder's report.html: scores, curves and a look at the summary.")
    parser.add_argument("run", type=str, help="run folder, or a folder of run folders")
    print(report(parser.parse_args(with_dashes(arguments)).run))


def list_recipes(arguments: Sequence[str]) -> None:
    """Print the recipes, or one of them in full."""
    from datastill.recipebook import recipes

    parser = make_parser("recipes", "List the recipes, or show one in full.")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help="a recipe to show")
    name = parser.parse_args(with_dashes(arguments)).name
    print(recipes.table() if name is None else recipes[name].page())


def run_demo(arguments: Sequence[str]) -> None:
    """Condense scikit-learn's digits, as images and as a graph."""
    from datastill.demo import demo

    parser = make_parser("demo", (inspect.getdoc(demo) or "").split("\n")[0])
    names = add_options(parser, demo, skip=("progress",))
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    options = vars(parser.parse_args(with_dashes(arguments)))
    demo(**{name: options[name] for name in names}, progress=not options["quiet"])


def open_modality(kind: str, options: dict[str, Any]) -> Modality:
    """The target dataset of the command `kind` with these options.

    Those that decide something else, such as budgets and the device, are left alone: what they need may not be here any more.
    """
    _, source, target = (_find(place) for place in _KINDS[kind])
    known, taken = inspect.signature(source).parameters, inspect.signature(target).parameters
    found = source(**{name: value for name, value in options.items() if name in known})
    rest = {name: value for name, value in options.items() if name in taken and name not in found}
    modality: Modality = target(**found, **rest)
    return modality


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _given_by(kind: str) -> tuple[str, ...]:
    # The parameters of `condense_*` that a source fills with objects, whatever the options say.
    return {
        "image": ("data", "labels", "test", "validation"),
        "text": ("texts", "labels", "test", "validation"),
        "graph": ("data",),
        "graphs": ("data", "split", "metric"),
        "interactions": ("logs",),
    }[kind]


def _seed(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    return {"seed": options["seed"]} if "seed" in inspect.signature(function).parameters else {}


def _add_evaluation(parser: Parser) -> None:
    parser.add_argument("--seeds", type=int, default=5, help="trainings for each score; 0 leaves the evaluation out")
    parser.add_argument(
        "--learners", type=str | None, default=None, help="what to train, as a,b; default: the usual one"
    )
    parser.add_argument(
        "--baselines",
        type=str | None,
        default=None,
        help="real points scored beside the summary and the full data, as a,b out of random, herding, k-center, kmeans-real, "
        "forgetting, correct, confident and rded; none leaves them and the full data out; default: random",
    )
    parser.add_argument(
        "--baseline-space",
        type=str,
        default="vectors",
        help="a learner, in whose features after training they are chosen; default: vectors, those of the data",
    )
    parser.add_argument(
        "--protocol",
        type=str | None,
        default=None,
        help="a paper's rules of training, such as dsa; default: the library's",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def _listed(learners: str | None) -> list[str] | None:
    return None if learners is None else [name.strip() for name in learners.split(",")]


def _baselines(given: str | None) -> bool | list[str]:
    if given is None or given.strip() == "none":
        return given is None
    return _listed(given) or []


def _write_settings(folder: Path, kind: str, options: dict[str, Any]) -> None:
    kept = {name: value for name, value in options.items() if name not in _SCORING}
    (folder / SETTINGS).write_text(json.dumps({"command": kind, "options": kept}, indent=1) + "\n", encoding="utf-8")


def _read_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind, options = stored["command"], {"data": stored["options"]["data"], **stored["options"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); evaluate needs the folder of a whole run.") from error
    if kind not in _KINDS:
        raise ArtifactError(f"{path} names the unknown command {kind!r}.")
    return kind, options


def _finish(folder: Path, stored: Artifact) -> None:
    print(f"{stored.points:,} points, {stored.nbytes:,} bytes, distilled in {stored.seconds:.1f} s -> {folder}")
    try:
        from datastill.report import report

        print(report(folder))
    except MissingExtraError as error:
        print(f"No report was written. {error}")
