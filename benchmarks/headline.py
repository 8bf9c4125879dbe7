"""The library's defaults on small real datasets: scores beside a random subset of equal size and the full data, and seconds.

    python benchmarks/headline.py                     all jobs whose data are there
    python benchmarks/headline.py --jobs digits-10    one of them

Every job calls `condense_*` with nothing but a budget and a seed, several times from the start with other seeds, and scores the
*exported* dataset by the modality's own protocol. Selection is on validation data; scores are on the test split. Every job is
written as soon as it is there, with the commit and the machine that it was measured on, in place of what was there of it before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, STARTED, modality_of

from datastill import condense_graph, condense_images, condense_interactions, condense_text, evaluate
from datastill.condense.common import Job
from datastill.evaluation import Evaluation, format_table
from datastill.modalities.base import Modality
from datastill.sources import read_graph_source, read_images, read_texts

Prepare = Callable[[int], Job[Any]]


def digits(per_class: int) -> tuple[Modality, Prepare]:
    """scikit-learn's digits, a fifth of them for testing."""
    found = read_images("digits")
    return modality_of("image"), lambda seed: condense_images.job(
        found["data"], test=found["test"], per_class=per_class, seed=seed, progress=False
    )


def cora(folder: Path, ratio: float) -> tuple[Modality, Prepare]:
    """Cora, public split; `ratio` of its 2,708 nodes."""
    data = read_graph_source(str(folder / "graphs/planetoid/Cora"))["data"]
    return modality_of("graph", folder=folder), lambda seed: condense_graph.job(
        data, ratio=ratio, seed=seed, progress=False
    )


def movielens(folder: Path) -> tuple[Modality, Prepare]:
    """MovieLens-100K, 50 users."""
    path = str(folder / "interactions/ml-100k/ml-100k.inter")
    # The split of the log is part of the target dataset, so it stays while the seed of the distillation changes.
    modality = modality_of("interactions", folder=folder)

    def prepare(seed: int) -> Job[Any]:
        job = condense_interactions.job(path, users=50, progress=False)
        return dataclasses.replace(job, options={**job.options, "seed": seed})

    return modality, prepare


def sst(folder: Path) -> tuple[Modality, Prepare]:
    """SST-2 with a GloVe file, 10 sentences a class."""
    parts = {part: str(folder / f"text/sst/stsa.binary.{part}") for part in ("train", "dev", "test")}
    found = read_texts(parts["train"], parts["test"], validation=parts["dev"])
    glove = str(folder / "text/glove/glove-50d-5k.json")
    return modality_of("text", folder=folder), lambda seed: condense_text.job(
        **found, embeddings=glove, per_class=10, seed=seed, progress=False
    )


def score(modality: Modality, prepare: Prepare, runs: int, seeds: int) -> dict[str, Any]:
    """Condense `runs` times and score each; the baselines are scored once."""
    found: dict[str, dict[str, list[float]]] = {}
    seconds, sizes = [], {}
    for seed in range(runs):
        began = time.perf_counter()
        result = prepare(seed).run()
        seconds.append(time.perf_counter() - began)
        summary = result.summary
        shown = result.export() if summary.exact_export else summary
        evaluation = evaluate(shown, modality, seeds=seeds, seed=seed, baselines=seed == 0, progress=False)
        _collect(evaluation, found, sizes)
        row = evaluation.rows[0]
        print(f"  seed {seed}: {100 * row.mean(modality.metric):.2f} in {seconds[-1]:.1f} s", flush=True)
    return {
        "metric": modality.metric,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "sizes": sizes,
        "scores": found,
    }


def _collect(evaluation: Evaluation, found: dict[str, dict[str, list[float]]], sizes: dict[str, Any]) -> None:
    for row in evaluation.rows:
        sizes[row.data] = {"points": row.points, "bytes": row.nbytes}
        for metric in row.scores:
            mine = found.setdefault(row.data, {}).setdefault(metric, [])
            # A distilled summary counts once by its mean; a baseline by each of its seeds.
            mine += row.scores[metric] if row.data in ("random subset", "full data") else [row.mean(metric)]


def import_seconds(statement: str) -> float:
    """The shortest of several times that a fresh interpreter takes for `statement`."""
    code = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Run the jobs, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs: dict[str, tuple[int, Callable[[Path], tuple[Modality, Prepare]]]] = {
        "digits-1": (2, lambda folder: digits(1)),
        "digits-10": (2, lambda folder: digits(10)),
        "cora-35": (1, lambda folder: cora(folder, 0.013)),
        "cora-70": (1, lambda folder: cora(folder, 0.026)),
        "cora-140": (1, lambda folder: cora(folder, 0.052)),
        "movielens-50": (2, movielens),
        "sst-10": (2, sst),
    }
    parser.add_argument("--jobs", nargs="+", default=list(jobs), choices=list(jobs))
    parser.add_argument("--runs", type=int, default=5, help="distillations from the start, each with its own seed")
    parser.add_argument("--seeds", type=int, default=5, help="evaluation seeds of each")
    parser.add_argument("--folder", type=Path, default=DATA, help="where the datasets lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "headline.json")
    options = parser.parse_args()

    stored = json.loads(options.out.read_text()) if options.out.exists() else {"jobs": {}}
    body = []
    for name in options.jobs:
        threads, job = jobs[name]
        torch.set_num_threads(threads)
        print(name, flush=True)
        found = score(*job(options.folder), options.runs, options.seeds)
        stored["jobs"][name] = {"environment": STARTED, **found}
        options.out.write_text(json.dumps(stored, indent=1) + "\n")
        for metric in found["scores"]["full data"]:
            for data, scores in found["scores"].items():
                values = [100 * value for value in scores[metric]]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                size = found["sizes"][data]
                seconds = "" if data in ("random subset", "full data") else f"{statistics.median(found['seconds']):.1f}"
                mean = f"{statistics.fmean(values):.2f} ± {spread:.2f}"
                body.append([name, data, metric, mean, f"{size['points']:,}", f"{size['bytes']:,}", seconds])
    print(format_table(["job", "trained on", "metric", "score, %", "points", "bytes", "condense, s"], body))
    torch_alone = import_seconds("import torch")
    both = import_seconds("import torch, datastill")
    print(f"import datastill over import torch: {both - torch_alone:.3f} s")
    stored["import_seconds"] = {"environment": STARTED, "torch": torch_alone, "torch, datastill": both}
    options.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
