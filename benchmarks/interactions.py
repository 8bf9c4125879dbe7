"""Speed and scale of recommender logs: an outer step and a full fit against plain references, and a log of 20 million rows.

    python benchmarks/interactions.py step          # one outer step, MovieLens-1M: 500 users, 1,000 real ones, 200 draws
    python benchmarks/interactions.py full          # fit and evaluation of the infinite autoencoder on all of MovieLens-1M
    python benchmarks/interactions.py scale         # generated logs: parquet to shards, outer steps, export; time and memory

Each part is one run on one machine; its ratios compare what ran in that run. Results go to benchmarks/results/interactions.json,
where a part replaces itself. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DATA, ROOT, STARTED
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from datastill.loop import distill
from datastill.modalities.interactions import InteractionsModality
from datastill.recipebook import recipes
from datastill.recommenders import InfiniteAutoencoder
from datastill.rng import generator

RESULTS = ROOT / "benchmarks/results/interactions.json"
ML_1M = DATA / "interactions/ml-1m/ml-1m.csv.gz"
USERS, REAL, DRAWS, TEMPERATURE = 500, 1000, 200, 10.0
RIDGES = (1.0, 5.0, 20.0, 50.0, 100.0)


# --- the plain references ---------------------------------------------------------------------------------------------


def plain_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The NTK of one hidden ReLU layer on dense rows, as the formulas stand in a paper."""
    width = a.shape[1]
    inner = 2 * a @ b.T / width + 0.01
    left, right = 2 * a.square().sum(1) / width + 0.01, 2 * b.square().sum(1) / width + 0.01
    scale = (left[:, None] * right[None, :]).sqrt()
    cosine = (inner / scale).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()
    value = scale * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    step = (math.pi - angle) / (2 * math.pi)
    return 2 * value + 0.01 + 2 * step * inner


def plain_solve(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    regularised = gram + ridge * gram.trace() / len(gram) * torch.eye(len(gram))
    return torch.linalg.solve(regularised, targets)


def plain_draw(logits: Tensor) -> Tensor:
    gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)))
    return torch.softmax((logits + gumbel) / TEMPERATURE, dim=1)


class PlainStep:
    """Distill-CF's outer step on dense rows: 200 Gumbel-softmax passes, a fresh Gram matrix, autograd, Adam.

    As in the published program a draw's noise is made again in the backward pass, so that memory does not grow with draws;
    with `keep` autograd keeps it all, which is faster and takes 7 GiB.
    """

    def __init__(self, rows: np.ndarray, keep: bool = False) -> None:
        self.rows, self.keep = torch.from_numpy(rows), keep
        self.logits = self.rows[:USERS].clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.logits], lr=0.04)

    def __call__(self) -> None:
        real = self.rows[torch.randperm(len(self.rows))[:REAL]]
        sample = torch.zeros_like(self.logits)
        for _ in range(DRAWS):
            drawn = plain_draw(self.logits) if self.keep else checkpoint(plain_draw, self.logits, use_reentrant=False)
            sample = sample + drawn
        sample = torch.nn.functional.hardtanh(sample)
        coefficients = plain_solve(plain_kernel(sample, sample), sample, 1.0)
        scores = plain_kernel(real, sample) @ coefficients
        loss = -(real * scores.log_softmax(1)).sum(1).mean() + 1e-3 * sample.sum(1).mean() / real.sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def plain_fit(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> float:
    """Kernels and solutions anew for every ridge and split, metrics in loops; the test nDCG@10 of the best ridge."""

    def score(ridge: float, known: Tensor, wanted: np.ndarray) -> tuple[float, float]:
        rows = torch.from_numpy(train)
        predicted = plain_kernel(known, rows) @ plain_solve(plain_kernel(rows, rows), rows, ridge)
        predicted[known > 0] = -1e6
        order = predicted.argsort(1, descending=True).numpy()
        hits, gains = [], []
        for user in range(len(train)):
            positives = set(np.flatnonzero(wanted[user]).tolist())
            if not positives:
                continue
            found, gain = 0, 0.0
            for place, item in enumerate(order[user, :100].tolist()):
                if item in positives:
                    found += 1
                    gain += 1 / math.log2(place + 2) if place < 10 else 0.0
            hits.append(found / min(len(positives), 100))
            gains.append(gain / sum(1 / math.log2(place + 2) for place in range(min(len(positives), 10))))
        return float(np.mean(hits)), float(np.mean(gains))

    known = torch.from_numpy(train)
    best = max(RIDGES, key=lambda ridge: score(ridge, known, validation)[0])
    return score(best, known + torch.from_numpy(validation), test)[1]


# --- parts ------------------------------------------------------------------------------------------------------------


def seconds_of(step: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Median and all times of `repeats` steps after one that is not counted; wall and processor seconds."""
    step()
    wall, processor = [], []
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return {"seconds": statistics.median(wall), "processor_seconds": statistics.median(processor), "all": wall}


def step_of(modality: InteractionsModality, recipe: str, steps: int, **options: Any) -> dict[str, Any]:
    """Median step of a recipe in the library's own loop, without validation."""
    chosen = recipes[recipe].on("interactions")
    objective = chosen.make_objective()
    objective.real_size = REAL  # type: ignore[attr-defined]
    summary = modality.summary([USERS], rng=generator(0), **{**chosen.summary, **options})
    settings = {**chosen.loop_options(), "steps": steps + 2, "validate_every": 0}
    clock: list[tuple[float, float]] = []

    def note(event: Any) -> None:
        if event.kind == "step":
            clock.append((time.perf_counter(), time.process_time()))

    distill(modality, summary, objective, **settings, callbacks=[note], progress=False)
    times = np.diff(np.array(clock)[1:], axis=0)
    return {
        "seconds": float(np.median(times[:, 0])),
        "processor_seconds": float(np.median(times[:, 1])),
        "all": times[:, 0].tolist(),
    }


def run_step() -> dict[str, Any]:
    modality = InteractionsModality.from_logs(ML_1M, split_column="split", holdout=0)
    taught = InteractionsModality.from_logs(ML_1M, split_column="split", **recipes["interactions-default"].target)
    plain = seconds_of(PlainStep(modality.splits.train.toarray()), 2)
    print(f"plain reference    {plain['seconds']:8.3f} s a step", flush=True)
    kept = seconds_of(PlainStep(modality.splits.train.toarray(), keep=True), 2)
    print(f"the same, 7 GiB    {kept['seconds']:8.3f} s a step", flush=True)
    ours = {
        "published recipe": step_of(modality, "distill-cf", 2, draws=DRAWS, temperature=TEMPERATURE),
        "default recipe": step_of(taught, "interactions-default", 10),
    }
    for name, found in ours.items():
        found["times faster"] = plain["seconds"] / found["seconds"]
        found["times faster than with all draws kept"] = kept["seconds"] / found["seconds"]
        found["times less processor time"] = plain["processor_seconds"] / found["processor_seconds"]
        print(
            f"{name:18} {found['seconds']:8.3f} s a step, {found['times faster']:.1f} times faster "
            f"({found['times faster than with all draws kept']:.1f} times than with all draws kept), "
            f"{found['times less processor time']:.1f} times less processor time"
        )
    return {
        "users": USERS,
        "real": REAL,
        "draws": DRAWS,
        "plain reference": plain,
        "plain reference, all draws kept": kept,
        **ours,
    }


def run_full() -> dict[str, Any]:
    modality = InteractionsModality.from_logs(ML_1M, split_column="split")
    splits = modality.splits
    dense = [part.toarray().astype(np.float32) for part in (splits.train, splits.validation, splits.test)]
    found: dict[str, Any] = {}
    for name, job in (
        ("plain reference", lambda: plain_fit(*dense)),
        ("library", lambda: library_fit(modality)),
    ):
        began, spent = time.perf_counter(), time.process_time()
        score = job()
        found[name] = {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - spent,
            "test ndcg@10": score,
        }
        print(f"{name:16} {found[name]['seconds']:7.1f} s, test nDCG@10 {100 * score:.2f}")
    found["times faster"] = found["plain reference"]["seconds"] / found["library"]["seconds"]
    print(f"{found['times faster']:.1f} times faster")
    return {"ridges": list(RIDGES), **found}


def library_fit(modality: InteractionsModality) -> float:
    model = InfiniteAutoencoder(ridge=RIDGES).fit(modality.splits.train, modality.held_out("validation"))
    return modality.score(model, "test")["ndcg@10"]


# --- scale ------------------------------------------------------------------------------------------------------------


def generate(path: Path, rows: int, users: int, items: int) -> None:
    """A log with string ids: popularity falls as rank^-0.9, users have a heavy-tailed number of rows, at least 3."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rng = np.random.default_rng(0)
    heights = np.cumsum(np.arange(1, items + 1) ** -0.9)
    activity = np.cumsum(rng.pareto(2.0, users) + 0.3)
    names = np.array([f"item-{number:07x}" for number in rng.permutation(items)])
    writer, done = None, 0
    while done < rows:
        count = min(1_000_000, rows - done)
        drawn = np.searchsorted(activity, rng.random(count) * activity[-1])
        owners = drawn if done >= 3 * users else np.arange(done, done + count) % users
        chosen = names[np.searchsorted(heights, rng.random(count) * heights[-1])]
        columns = {"user_id": np.char.add("u", owners.astype("U8")), "item_id": chosen}
        table = arrow.table({**columns, "timestamp": rng.integers(1_500_000_000, 1_600_000_000, count)})
        writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        done += count
    if writer is not None:
        writer.close()


def peak() -> float:
    """Peak resident GiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def worker(job: str, folder: str, steps: int) -> dict[str, Any]:
    """What is measured in a process of its own."""
    log, store = Path(folder) / "log.parquet", Path(folder) / "store"
    imported = peak()
    began = time.perf_counter()
    modality = InteractionsModality.from_logs(log, store=store)
    found: dict[str, Any] = {"seconds": time.perf_counter() - began, "imports_gib": imported, "peak_gib": peak()}
    if job == "shards":
        splits = modality.splits
        found["interactions"] = int(splits.train.indptr[-1] + splits.validation.indptr[-1] + splits.test.indptr[-1])
        return {**found, "scope": modality.scope()}
    chosen = recipes["interactions-default"].on("interactions")
    summary = modality.summary([USERS], rng=generator(0), **chosen.summary)
    settings = {**chosen.loop_options(), "steps": steps, "validate_every": steps}
    stamps: list[float] = []

    def note(event: Any) -> None:
        if event.kind == "step":
            stamps.append(time.perf_counter())

    began = time.perf_counter()
    result = distill(modality, summary, chosen.make_objective(), **settings, callbacks=[note], progress=False)
    exported = result.export()
    exported.save(Path(folder) / "small.parquet")
    times = np.diff(stamps)
    return {
        **found,
        "steps": steps,
        "run_seconds": time.perf_counter() - began,
        "seconds_a_step": float(np.median(times)),
        "exported_rows": len(exported),
        "validation": result.best_score,
        "peak_gib": peak(),
    }


def in_process(job: str, folder: Path, steps: int) -> dict[str, Any]:
    arguments = [sys.executable, __file__, "worker", job, str(folder), str(steps)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_scale(sizes: list[int], steps: int, keep: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows in sizes:
        users, items = rows // 20, 100_000
        with tempfile.TemporaryDirectory() if keep is None else nullcontext(f"{keep}/{rows}") as folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if not (Path(folder) / "log.parquet").exists():
                generate(Path(folder) / "log.parquet", rows, users, items)
            shutil.rmtree(Path(folder) / "store", ignore_errors=True)
            shards = in_process("shards", Path(folder), 0)
            run = in_process("run", Path(folder), steps if rows == max(sizes) else min(steps, 10))
        found[f"{rows:,} rows"] = {"users": users, "items": items, "shards": shards, "run": run}
        print(
            f"{rows:>11,} rows: shards in {shards['seconds']:.0f} s, peak {shards['peak_gib']:.2f} GiB; "
            f"{run['steps']} steps of {run['seconds_a_step']:.2f} s, peak {run['peak_gib']:.2f} GiB, "
            f"{run['exported_rows']:,} rows out"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["step", "full", "scale", "worker"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--steps", type=int, default=100, help="outer steps on the largest log")
    parser.add_argument("--keep", help="a folder in which generated logs are kept, and found the next time")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.part == "worker":
        print(json.dumps(worker(options.rest[0], options.rest[1], int(options.rest[2]))))
        return
    parts = {"step": run_step, "full": run_full, "scale": lambda: run_scale(options.rows, options.steps, options.keep)}
    measured = parts[options.part]()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = stored.get(options.part, {}) if options.part == "scale" else {}
    stored[options.part] = {**known, **measured, "environment": STARTED}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
