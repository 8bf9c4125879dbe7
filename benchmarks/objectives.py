"""Seconds and peak memory of an outer step of each objective, beside a plain loop in the style of the papers' programs.

    python benchmarks/objectives.py                        every row
    python benchmarks/objectives.py --rows dm dc --rounds 2
    python benchmarks/objectives.py --device cuda          writes results/objectives_cuda.json

The plain loops are in plain_images.py. Both sides have the same networks, batch sizes and augmentations; the images are random,
since no number depends on them. Every measurement is a process of its own, the two sides take turns, and the ratio is that of
their medians in the same run: of processor seconds, which other work on the machine disturbs little, of wall seconds, and of
memory. `classes` rows compare the library with itself at 10 and 100 classes of the same number of points in all. On a GPU, where
processor seconds say little, both sides wait for it before each look at the clock, and memory is the most that tensors took. In
`bfloat16` rows the library multiplies the convolutions of real images in it (option `real_precision`), the plain loop in float32;
this needs a processor or a GPU that does so natively.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, STARTED, write_results
from plain_images import Step, plain

from datastill.errors import check_device
from datastill.evaluation import format_table
from datastill.modalities.image import ImageModality
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.feature_regression import FeatureRegression
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator

ROWS: dict[str, dict[str, Any]] = {
    "dm": {"per_class": 10, "width": 128, "real": 256},
    "dc": {"per_class": 1, "width": 128, "real": 256},
    "dsa": {"per_class": 1, "width": 128, "real": 256},
    "dm bfloat16": {"per_class": 10, "width": 128, "real": 256, "real_precision": "bfloat16"},
    "dc bfloat16": {"per_class": 1, "width": 128, "real": 256, "real_precision": "bfloat16"},
    "dsa bfloat16": {"per_class": 1, "width": 128, "real": 256, "real_precision": "bfloat16"},
    "mtt": {"per_class": 1, "width": 64, "inner_steps": 50},
    "frepo": {"per_class": 10, "width": 128, "real": 102},
    "kip": {"per_class": 10, "width": 128, "real": 500},
    "dm classes": {"per_class": 10, "width": 32, "real": 100, "many": True},
    "dc classes": {"per_class": 10, "width": 32, "real": 100, "many": True},
    "dm classes w128": {"per_class": 10, "width": 128, "real": 250, "many": True},
    "dc classes w128": {"per_class": 10, "width": 128, "real": 250, "many": True},
}


def data(classes: int, each: int, device: torch.device) -> ImageModality:
    """Random 28x28 grey images on a device."""
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.rand(len(labels), 1, 28, 28, generator=generator("images"))
    held = torch.arange(classes)
    return ImageModality(images, labels, validation=(images[:classes], held)).to(device)


# --- the library ------------------------------------------------------------------------------------------------------


def library(row: str, classes: int, share: int, device: torch.device) -> Step:
    """A step of the library's objective; `share` divides the points of a class."""
    what, has = row.split()[0], ROWS[row]
    real = max(1, has.get("real", 256) // share)
    net = f"convnet-d3-w{has['width']}"
    precision = has.get("real_precision", "full")
    objective: Objective
    if what == "dm":
        objective = DistributionMatching(learner=net, real_size=real, real_precision=precision)
    elif what in ("dc", "dsa"):
        augment = what == "dsa"
        objective = GradientMatching(
            learner=net, outer_loops=1, real_size=real, real_precision=precision, augment=augment
        )
    elif what == "mtt":
        objective = TrajectoryMatching(
            learner=net,
            experts=1,
            max_start=1,
            span=1,
            expert_interval=1,
            expert_batch=10,
            inner_steps=has["inner_steps"],
        )
    elif what == "frepo":
        objective = FeatureRegression(learner=net, pool=2, real_size=real)
    else:
        objective = KernelRidge(kernel="ntk", depth=1, real_size=real)
    modality = data(classes, max(real, 10), device)
    summary = modality.summary([has["per_class"] // share or 1] * classes, rng=generator("summary")).to(device)
    objective.start(modality, summary)
    parameters = [value for values in summary.parameter_groups().values() for value in values]
    optimizer = torch.optim.SGD([*parameters, *objective.learnables().values()], lr=1e-3, momentum=0.5)

    def step(number: int) -> None:
        optimizer.zero_grad()
        objective.loss(generator("loss", number)).backward()
        optimizer.step()
        summary.project_()
        objective.after_step(generator("after", number))

    return step


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(row: str, side: str, steps: int, device: torch.device) -> dict[str, Any]:
    """In this process: the fastest step after a first one, and the growth of memory in use over all of them."""
    torch.manual_seed(0)
    if side == "plain":
        has = ROWS[row]
        sizes = {"width": has["width"], "per_class": has["per_class"], "real": has.get("real", 256)}
        modality = data(10, max(sizes["real"], 10), device)
        step = plain(row.split()[0], modality, **sizes, inner_steps=has.get("inner_steps", 0))
    else:
        many = side == "100 classes"
        step = library(row, 100 if many else 10, 10 if many else 1, device)
    before = _used(device)
    step(0)
    seconds, processor = [], []
    for number in range(1, steps + 1):
        began, used = _now(device), time.process_time()
        step(number)
        seconds.append(_now(device) - began)
        processor.append(time.process_time() - used)
    return {"seconds": min(seconds), "processor": min(processor), "bytes": max(0, _peak(device) - before)}


def _now(device: torch.device) -> float:
    """Seconds, once everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _used(device: torch.device) -> int:
    """Bytes of the process, or of tensors on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak(device: torch.device) -> int:
    """The most of `_used` since it was asked."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure the rows, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a turn; the fastest counts")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where to compute")
    parser.add_argument("--out", type=Path, help="by default results/objectives.json, on a GPU objectives_cuda.json")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        row, side = options.one
        print(json.dumps(measure(row, side, options.steps, options.device)))
        return
    check_device(options.device)
    on_processor = options.device.type == "cpu"
    default = "objectives.json" if on_processor else f"objectives_{options.device.type}.json"
    out = options.out or ROOT / "benchmarks" / "results" / default
    results: dict[str, Any] = json.loads(out.read_text())["rows"] if out.exists() else {}
    for row in options.rows:
        sides = ("100 classes", "10 classes") if "many" in ROWS[row] else ("plain", "library")
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                call = [sys.executable, __file__, "--one", row, side]
                call += ["--steps", str(options.steps), "--device", str(options.device)]
                done = subprocess.run(call, capture_output=True, text=True, check=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        first, second = (
            {key: statistics.median(one[key] for one in found[side]) for key in ("seconds", "processor", "bytes")}
            for side in sides
        )
        ratios = {key: first[key] / max(second[key], 1e-9) for key in first}
        results[row] = {
            "settings": ROWS[row],
            "commit": STARTED["commit"],
            "threads": torch.get_num_threads(),
            "device": str(options.device),
            "runs": found,
            sides[0]: first,
            sides[1]: second,
            "ratio": ratios,
        }
        print(
            f"{row}: seconds {ratios['seconds']:.2f}x, processor {ratios['processor']:.2f}x, memory {ratios['bytes']:.2f}x",
            flush=True,
        )
        write_results(out, {"rows": results})
    clock, name = ("processor", "cpu s") if on_processor else ("seconds", "s")
    body = []
    for row, one in results.items():
        sides = [side for side in ("plain", "library", "100 classes", "10 classes") if side in one]
        cells = [f"{one[side][clock]:.{2 if on_processor else 4}f}" for side in sides] + [
            f"{one[side]['bytes'] / 2**20:.0f}" for side in sides
        ]
        body.append(
            [row, " / ".join(sides), *cells, *(f"{one['ratio'][key]:.2f}" for key in ("processor", "seconds", "bytes"))]
        )
    head = ["row", "a / b", f"a, {name}", f"b, {name}", "a, MiB", "b, MiB", "cpu a/b", "wall a/b", "memory a/b"]
    print(format_table(head, body))


if __name__ == "__main__":
    main()
