"""How good recommenders are that were trained on a distilled log: MovieLens-1M with the split of Distill-CF, and MovieLens-100K.

    python benchmarks/interactions_quality.py                                     everything (hours on two cores)
    python benchmarks/interactions_quality.py --data ml-1m --jobs default-500     one row
    python benchmarks/interactions_quality.py --table                             the table of what has been measured

Each job makes a training set from the training interactions, with the validation split to choose by; recommenders are then
trained on it, their ridge or moment chosen on the validation split, and scored on the test split. "exported" is the log of (user,
item, weight) rows that a user gets; "without weights" are its bare (user, item) rows; "continuous" is the summary as it is
optimised, where that is something else. Beside them stand as many random users, as many random interactions, and the full data.
Rows that are measured anew replace those of the same job and seed in the result file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, ROOT, STARTED, write_results

from datastill.backbones.batch import Batch
from datastill.condense.common import find_recipe, run_recipe
from datastill.evaluation import format_table
from datastill.modalities.base import Size
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_table import Interactions
from datastill.recommenders import all_metrics
from datastill.rng import derive_seed, generator

FILES = {
    "ml-1m": ("interactions/ml-1m/ml-1m.csv.gz", {"split_column": "split"}),
    "ml-100k": ("interactions/ml-100k/ml-100k.inter", {}),
}
OUT = ROOT / "benchmarks" / "results" / "interactions_quality.json"
Made = Iterator[tuple[str, Batch, Size]]
Job = Callable[[InteractionsModality, int], Made]


def full(modality: InteractionsModality, seed: int) -> Made:
    """All training interactions."""
    yield "real", modality.full(), modality.full_size()


def random_users(users: int) -> Job:
    """All interactions of so many random users."""

    def make(modality: InteractionsModality, seed: int) -> Made:
        table = modality.pick(torch.randperm(len(modality.trained), generator=generator(seed, "users"))[:users])
        yield "real", modality.read(table), modality.size(table)

    return make


def random_interactions(count: int) -> Job:
    """So many random interactions of any users."""

    def make(modality: InteractionsModality, seed: int) -> Made:
        train = modality.splits.train.tocoo()
        some = torch.randperm(train.nnz, generator=generator(seed, "interactions"))[:count].numpy()
        ids = modality.splits
        table = Interactions(np.asarray(ids.user_ids)[train.row[some]], np.asarray(ids.item_ids)[train.col[some]])
        yield "real", modality.read(table), modality.size(table)

    return make


def distilled(recipe: str, users: int, *, steps: int | None = None, **options: Any) -> Job:
    """A recipe's summary of so many users: its export and, where that is something else, the summary itself."""

    def make(modality: InteractionsModality, seed: int) -> Made:
        chosen = find_recipe(recipe, "interactions")
        found = run_recipe(modality, [users], chosen, seed=seed, steps=steps, progress=False, **options)
        table = found.export()
        yield "exported", modality.read(table), modality.size(table)
        if recipe == "interactions-default":
            bare = Interactions(table.users, table.items)
            yield "without weights", modality.read(bare), modality.size(bare)
        if not found.summary.exact_export:
            with torch.no_grad():
                rows = found.summary().detach()
            yield "continuous", rows, Size(users, found.summary.nbytes)

    return make


def jobs_of(data: str) -> dict[str, Job]:
    """The rows of the table by name."""
    mean, large, small = {"ml-1m": (131, 500, 100), "ml-100k": (86, 100, 50)}[data]
    equal = large * mean
    found = {
        "full": full,
        f"random-users-{large}": random_users(large),
        f"random-users-{small}": random_users(small),
        f"random-interactions-{equal}": random_interactions(equal),
        f"clusters-{large}": distilled("interactions-dense", large, steps=1, anneal=None),
        f"default-{large}": distilled("interactions-default", large),
        f"default-{small}": distilled("interactions-default", small),
        f"dense-{large}": distilled("interactions-dense", large),
        f"dense-{small}": distilled("interactions-dense", small),
    }
    for share in (0.3, 0.65, 1.5):
        count = round(share * equal, -2)
        found[f"default-{large}-of-{count:.0f}"] = distilled("interactions-default", large, interactions=int(count))
    # As published but for the number of steps; 200 draws a row and step on MovieLens-1M take 16 s of one core.
    steps, draws = {"ml-1m": (50, 200), "ml-100k": (100, 50)}[data]
    found[f"distill-cf-{large}"] = distilled("distill-cf", large, steps=steps, draws=draws)
    return found


def measure(
    modality: InteractionsModality, name: str, job: Job, seed: int, learners: list[str]
) -> list[dict[str, Any]]:
    """Make the training set, train and score every learner on it."""
    counts = torch.from_numpy(np.asarray(modality.splits.train.sum(0), dtype=np.float64).ravel())
    found = []
    began, cpu = time.perf_counter(), time.process_time()
    for form, batch, size in job(modality, seed):
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        rows = batch.inputs
        entries = len(rows.values) if hasattr(rows, "values") and not isinstance(rows, torch.Tensor) else rows.numel()
        for learner in learners:
            started = time.process_time()
            rng = generator(derive_seed(seed, "benchmark", name), learner)
            with torch.no_grad() if learner != "mult-vae" else torch.enable_grad():
                predictor = modality.fit(batch, learner, rng=rng)
            with torch.no_grad():
                scores = all_metrics(predictor, modality.held_out("test"), counts)
            found.append(
                {
                    "job": name,
                    "form": form,
                    "learner": learner,
                    "seed": seed,
                    "users": size.points,
                    "interactions": entries,
                    "bytes": size.nbytes,
                    "seconds": round(seconds, 2),
                    "cpu_seconds": round(cpu_seconds, 2),
                    "train_and_score_cpu_seconds": round(time.process_time() - started, 2),
                    "scores": scores,
                    "environment": STARTED,
                }
            )
            shown = " ".join(f"{key} {100 * scores[key]:.2f}" for key in ("hr@10", "ndcg@10", "hr@100"))
            print(f"  {name} {form} {learner} seed {seed}: {shown} ({entries:,} entries)", flush=True)
    return found


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds of what has been measured."""
    head = ["data", "trained on", "form", "learner", "hr@10", "ndcg@10", "hr@100", "psp@10", "auc", "coverage@10"]
    head += ["users", "interactions", "bytes", "cpu, s", "seeds"]
    body = []
    for data, measured in rows.items():
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in measured:
            groups.setdefault((row["job"], row["form"], row["learner"]), []).append(row)
        for (job, form, learner), same in groups.items():
            cells = []
            for metric in head[4:10]:
                values = [100 * row["scores"][metric] for row in same]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.2f}{spread}")
            sizes = [
                f"{round(statistics.fmean(row[key] for row in same)):,}" for key in ("users", "interactions", "bytes")
            ]
            cpu = f"{statistics.median(row['cpu_seconds'] for row in same):.0f}"
            body.append([data, job, form, learner, *cells, *sizes, cpu, str(len(same))])
    return format_table(head, body)


def measured(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the result file by dataset."""
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    return found


def main() -> None:
    """Measure the jobs asked for, keep them in the result file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--jobs", nargs="+", help="names as in the table; default: all")
    parser.add_argument("--learners", nargs="+", default=["ntk", "ease", "als"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=DATA, help="where the datasets lie")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()

    for data in [] if options.table else options.data:
        path, columns = FILES[data]
        modality = InteractionsModality.from_logs(str(options.folder / path), **columns)
        known = jobs_of(data)
        for name in options.jobs or known:
            if name not in known:
                parser.error(f"--jobs: {data} has {', '.join(known)}")
            for seed in options.seeds[:1] if name == "full" else options.seeds:
                learners = [*options.learners, "popularity"] if name == "full" else options.learners
                # A fresh one each time, so that the teacher's fit counts.
                recipe = "distill-cf" if name.startswith("distill-cf") else "interactions-default"
                own = InteractionsModality(modality.splits, **find_recipe(recipe, "interactions").target)
                fresh = measure(own, name, known[name], seed, learners)
                mine = {(row["job"], row["form"], row["learner"], row["seed"]) for row in fresh}
                rows = measured(options.out)  # read late, because another process may have added to it
                kept = [r for r in rows.get(data, []) if (r["job"], r["form"], r["learner"], r["seed"]) not in mine]
                rows[data] = kept + fresh
                write_results(options.out, {"rows": rows})
    print(table(measured(options.out)))


if __name__ == "__main__":
    main()
