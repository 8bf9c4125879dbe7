"""Graph classification against DosCond's published table: MUTAG, NCI1, ogbg-molbace and ogbg-molbbbp.

    python benchmarks/graph_sets.py                                  every run that the result file lacks
    python benchmarks/graph_sets.py --sets MUTAG --per-class 1 10    some of them
    python benchmarks/graph_sets.py --sets NCI1 --methods doscond --per-class 1 --nodes 45   in graphs of up to 45 nodes

Each row condenses (or draws) `--runs` times with other seeds and trains one fresh network on each; the full data are trained on
three times. Selection is on validation graphs, scores are of the test graphs. TU sets are split as DosCond's code does (seed 0,
a tenth for testing, a tenth for validation), OGB's by their scaffold split. "number" reads atoms as raw integers, as DosCond's
code has it, and "onehot" as the categories that they are, as the recipe has it; rows are to be compared within one reading.
A run is written when it is done, and is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, STARTED, modality, write_results

from datastill import condense_graphs, evaluate
from datastill.evaluation import format_table
from datastill.modalities.base import Modality
from datastill.objectives.coresets import coreset
from datastill.sources_graphs import read_graph_sets

FOLDERS = {
    "MUTAG": "graphs/tu/MUTAG",
    "NCI1": "graphs/tu/NCI1",
    "ogbg-molbace": "molecules/ogbg_molbace",
    "ogbg-molbbbp": "molecules/ogbg_molbbbp",
}
# DosCond, arXiv 2206.07746, table 2: mean and deviation in percent at 1, 10 and 50 (MUTAG 20) graphs a class, and all graphs.
# Accuracy for the TU sets, ROC-AUC for OGB's.
PUBLISHED: dict[str, dict[str, dict[int, tuple[float, float | None]]]] = {
    "MUTAG": {
        "random": {1: (67.47, None), 10: (77.89, None), 20: (78.21, None)},
        "herding": {1: (70.84, None), 10: (80.42, None), 20: (80.00, None)},
        "k-center": {1: (70.84, None), 10: (81.00, None), 20: (82.97, None)},
        "doscond": {1: (82.21, 1.61), 10: (82.76, 2.31), 20: (83.26, 2.34)},
        "full data": {0: (88.63, 1.44)},
    },
    "NCI1": {
        "random": {1: (51.27, None), 10: (54.33, None), 50: (58.51, None)},
        "herding": {1: (53.98, None), 10: (57.11, None), 50: (58.94, None)},
        "k-center": {1: (53.98, None), 10: (53.21, None), 50: (56.58, None)},
        "doscond": {1: (56.58, 0.48), 10: (58.02, 1.05), 50: (60.07, 1.58)},
        "full data": {0: (71.70, 0.20)},
    },
    "ogbg-molbace": {
        "random": {1: (58.0, None), 10: (59.8, None), 50: (63.2, None)},
        "herding": {1: (54.8, None), 10: (63.9, None), 50: (68.3, None)},
        "k-center": {1: (54.8, None), 10: (59.1, None), 50: (58.9, None)},
        "doscond": {1: (65.7, 3.4), 10: (67.4, 3.5), 50: (68.8, 1.2)},
        "full data": {0: (71.4, 0.5)},
    },
    "ogbg-molbbbp": {
        "random": {1: (51.9, None), 10: (58.6, None), 50: (60.6, None)},
        "herding": {1: (54.6, None), 10: (60.5, None), 50: (61.7, None)},
        "k-center": {1: (54.6, None), 10: (53.0, None), 50: (57.6, None)},
        "doscond": {1: (58.1, 0.5), 10: (60.5, 0.8), 50: (62.0, 0.7)},
        "full data": {0: (64.6, 0.4)},
    },
}
RECIPE = "doscond"
CORESETS = ("random", "herding", "k-center")
FULL = "full data"
METHODS = (*CORESETS, RECIPE, FULL)


def split_of(count: int) -> dict[str, torch.Tensor]:
    """DosCond's split of a TU set: shuffled by seed 0, a tenth for testing, the next tenth for validation."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tenth = int(0.1 * count)
    return {"test": order[:tenth], "valid": order[tenth : 2 * tenth], "train": order[2 * tenth :]}


class Target:
    """A dataset, read once for each reading of its integers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        found = read_graph_sets(str(folder / FOLDERS[name]))
        self.given = {"split": found["split"] or split_of(len(found["data"])), "metric": found["metric"]}
        self.data = found["data"]
        self.categorical = not self.data[0].x.is_floating_point()
        self.budgets = list(PUBLISHED[name]["doscond"])
        self._read: dict[str, Modality] = {}

    def modality(self, reading: str) -> Modality:
        """The target dataset with integers read this way."""
        if reading not in self._read:
            self._read[reading] = modality("graphs")(self.data, integers=reading, **self.given)
        return self._read[reading]

    def readings(self, method: str) -> tuple[str, ...]:
        """How a method's rows read integers; a recipe says it itself."""
        if not self.categorical:
            return ("number",)
        return ("onehot",) if method == RECIPE else ("number", "onehot")


def measure(target: Target, method: str, reading: str, per_class: int, seed: int, nodes: int | None) -> dict[str, Any]:
    """One run of a row: condense (into graphs of at most `nodes` nodes) or draw, train a fresh network, score it."""
    data = target.modality(reading)
    began, cpu, best = time.perf_counter(), time.process_time(), None
    if method == RECIPE:
        options = {
            **target.given,
            "per_class": per_class,
            "recipe": method,
            "nodes": nodes,
            "seed": seed,
            "progress": False,
        }
        result = condense_graphs.job(target.data, **options).run()
        small, best = result.export(), result.best_step
    elif method == FULL:
        small = data.pick(torch.arange(sum(data.full_sizes)))
    else:
        small = coreset(data, [per_class] * data.num_groups, method=method, seed=seed)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    row = evaluate(small, data, seeds=1, seed=seed, baselines=False, progress=False).rows[0]
    return {
        "seed": seed,
        "scores": {metric: values[0] for metric, values in row.scores.items()},
        "points": row.points,
        "bytes": row.nbytes,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "best_step": best,
        "commit": STARTED["commit"],
    }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """By which rows are told apart, and in which order they stand."""
    return (
        list(FOLDERS).index(row["set"]),
        row["per_class"] or 10**6,
        row["reading"],
        METHODS.index(row["method"]),
        row.get("nodes", 0),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows with the published figures beside them."""
    body = []
    for row in rows:
        runs = row["runs"]
        values = [100 * run["scores"][row["metric"]] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        published = PUBLISHED[row["set"]].get(row["method"], {}).get(row["per_class"])
        known = "" if published is None else f"{published[0]:.1f}" + (f" ± {published[1]:.1f}" if published[1] else "")
        seconds = statistics.median(run["cpu_seconds"] for run in runs)
        body.append(
            [
                row["set"],
                row["method"] + (f", nodes={row['nodes']}" if "nodes" in row else ""),
                row["reading"],
                str(row["per_class"] or "all"),
                row["metric"],
                f"{statistics.fmean(values):.1f} ± {spread:.1f}",
                str(len(values)),
                known,
                f"{runs[0]['points']:,}",
                f"{runs[0]['bytes']:,}",
                f"{seconds:.1f}" if row["method"] == RECIPE else "",
            ]
        )
    head = [
        "set",
        "trained on",
        "atoms",
        "a class",
        "metric",
        "score, %",
        "runs",
        "published",
        "points",
        "bytes",
        "CPU s",
    ]
    return format_table(head, body)


def load(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a result file, if it is there."""
    return {key(row): row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--per-class", nargs="+", type=int, default=[1, 10, 20, 50])
    parser.add_argument(
        "--nodes", type=int, help="of the largest synthetic graph, in place of the recipe's; rows of their own"
    )
    parser.add_argument("--runs", type=int, default=5, help="seeds of each row; of the full data at most 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so many")
    parser.add_argument("--folder", type=Path, default=DATA, help="where the datasets lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "graph_sets.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()

    for name in options.sets:
        target = Target(name, options.folder)
        budgets = [budget for budget in target.budgets if budget in options.per_class]
        jobs = [(method, budget) for budget in budgets for method in options.methods if method != FULL]
        jobs += [(FULL, 0)] if FULL in options.methods else []
        # One seed of every row first, so that a file that is not finished says something of each.
        for seed, (method, budget) in itertools.product(range(options.runs), jobs):
            for reading in target.readings(method):
                rows = load(options.out)
                head = {"set": name, "per_class": budget, "method": method, "reading": reading}
                if options.nodes is not None and method == RECIPE:
                    head["nodes"] = options.nodes
                row = rows.setdefault(key(head), {**head, "metric": target.modality(reading).metric, "runs": []})
                known = any(run["seed"] == seed for run in row["runs"]) or (method == FULL and seed >= 3)
                if known or time.perf_counter() - began > 60 * options.minutes:
                    continue
                run = measure(target, method, reading, budget, seed, options.nodes)
                rows = load(options.out)  # another process may have added rows meanwhile
                row = rows.setdefault(key(head), row)
                row["runs"] = sorted([*row["runs"], run], key=lambda one: one["seed"])
                write_results(options.out, {"rows": [rows[mark] for mark in sorted(rows)]})
                print(table([row]).splitlines()[-1], flush=True)
    rows = load(options.out)
    print(table([rows[mark] for mark in sorted(rows)]))


if __name__ == "__main__":
    main()
