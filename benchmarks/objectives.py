"""Seconds and peak memory of an outer step of each objective, beside a plain loop in the style of the papers' programs.

    python benchmarks/objectives.py                        every row
    python benchmarks/objectives.py --rows dm dc --rounds 2

The plain loops are below, written from the papers: one class at a time, PyTorch's own modules, the graphs of all classes kept
until one backward pass, autograd through the whole of an unrolled training. Both sides have the same networks, batch sizes and
augmentations; the images are random, since no number depends on them. Every measurement is a process of its own, the two sides
take turns, and the ratio is that of their medians in the same run: of processor seconds, which other work on the machine disturbs
little, of wall seconds, and of memory. `classes` rows compare the library with itself at 10 and 100
classes of the same number of points in all. In `bfloat16` rows the library multiplies the convolutions of real images in it
(option `real_precision`), the plain loop in float32; this needs a processor that does so natively.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, STARTED, write_results
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from datastill.evaluation import format_table
from datastill.modalities.augmentation import Augmentation
from datastill.modalities.image import ImageModality
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.feature_regression import FeatureRegression
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator

Step = Callable[[int], None]
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


def data(classes: int, each: int) -> ImageModality:
    """Random 28x28 grey images."""
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.rand(len(labels), 1, 28, 28, generator=generator("images"))
    held = torch.arange(classes)
    return ImageModality(images, labels, validation=(images[:classes], held))


# --- the library ------------------------------------------------------------------------------------------------------


def library(row: str, classes: int, share: int) -> Step:
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
    modality = data(classes, max(real, 10))
    summary = modality.summary([has["per_class"] // share or 1] * classes, rng=generator("summary"))
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


# --- the plain loops --------------------------------------------------------------------------------------------------


def network(width: int, classes: int) -> nn.Sequential:
    """ConvNet-3 of PyTorch's modules."""
    parts: list[nn.Module] = []
    for fan_in in (1, width, width):
        parts += [nn.Conv2d(fan_in, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(inplace=True)]
        parts.append(nn.AvgPool2d(2, ceil_mode=True))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(width * 16, classes))


def plain(row: str, classes: int) -> Step:
    """A step of the plain loop of a row."""
    what, has = row.split()[0], ROWS[row]
    width, ipc, real_size = has["width"], has["per_class"], has.get("real", 256)
    modality = data(classes, max(real_size, 10))
    images = modality.real().inputs
    of_class = [images[modality.real().groups == number] for number in range(classes)]
    labels = torch.arange(classes).repeat_interleave(ipc)
    synthetic = torch.cat([found[:ipc] for found in of_class]).clone().requires_grad_()
    optimizer = torch.optim.SGD([synthetic], lr=1e-3, momentum=0.5)
    augmentation = Augmentation.parse("color_crop_cutout_scale_rotate")

    def draw(number: int) -> Tensor:
        return of_class[number][torch.randperm(len(of_class[number]))[:real_size]]

    def matching_means(seed: int) -> None:
        net = network(width, classes).requires_grad_(False)
        embed = net[:-1]
        loss = torch.zeros(())
        for number in range(classes):
            real = augmentation(draw(number), seed * classes + number)
            ours = augmentation(synthetic[number * ipc : (number + 1) * ipc], seed * classes + number)
            loss = loss + (embed(real).detach().mean(0) - embed(ours).mean(0)).square().sum()
        update(loss)

    def matching_gradients(seed: int) -> None:
        net = network(width, classes)
        parameters = list(net.parameters())
        loss = torch.zeros(())
        for number in range(classes):
            real, ours = draw(number), synthetic[number * ipc : (number + 1) * ipc]
            if what == "dsa":
                real, ours = (augmentation(x, seed * classes + number) for x in (real, ours))
            target = torch.full((len(real),), number)
            real_grads = [
                g.detach().clone() for g in torch.autograd.grad(F.cross_entropy(net(real), target), parameters)
            ]
            ours_loss = F.cross_entropy(net(ours), target[:1].expand(ipc))
            for a, b in zip(real_grads, torch.autograd.grad(ours_loss, parameters, create_graph=True)):
                if a.dim() > 1:
                    x, y = a.flatten(1), b.flatten(1)
                    loss = loss + (1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-6)).sum()
        update(loss)

    def matching_trajectories(seed: int) -> None:
        net = network(width, classes)
        theta = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
        goal = {name: value + 0.01 * torch.randn_like(value) for name, value in theta.items()}
        start = theta
        for _ in range(has["inner_steps"]):
            loss = F.cross_entropy(functional_call(net, theta, (synthetic,)), labels)
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: value - 0.01 * grad for (name, value), grad in zip(theta.items(), grads)}
        gap = sum(((theta[name] - goal[name].detach()).square().sum() for name in goal), torch.zeros(()))
        whole = sum(((start[name] - goal[name]).detach().square().sum() for name in goal), torch.zeros(()))
        update(gap / whole)

    pool: list[Any] = []

    def regression(seed: int) -> None:
        if not pool:
            pool.append(network(width, classes))
            pool.append(torch.optim.Adam(pool[0].parameters(), lr=3e-4))
        net, inner = pool
        real = torch.cat([draw(number) for number in range(classes)])
        wanted = F.one_hot(torch.arange(classes).repeat_interleave(real_size), classes) - 1 / classes
        ours, theirs = (
            net[:-1](synthetic),
            net[:-1](real),
        )  # the graph of the real features is built, though nobody needs it
        update(_ridge(ours @ ours.T, theirs @ ours.T, F.one_hot(labels, classes) - 1 / classes, wanted))
        inner.zero_grad()
        (net(synthetic.detach()) - (F.one_hot(labels, classes) - 1 / classes)).square().mean().backward()
        inner.step()

    def kernel(seed: int) -> None:
        real = torch.cat([draw(number) for number in range(classes)]).flatten(1).double()
        wanted = F.one_hot(torch.arange(classes).repeat_interleave(real_size), classes).double() - 1 / classes
        ours = synthetic.flatten(1).double()
        update(_ridge(_ntk(ours, ours), _ntk(real, ours), F.one_hot(labels, classes).double() - 1 / classes, wanted))

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        "dm": matching_means,
        "dc": matching_gradients,
        "dsa": matching_gradients,
        "mtt": matching_trajectories,
        "frepo": regression,
        "kip": kernel,
    }[what]


def _ridge(gram: Tensor, cross: Tensor, ours: Tensor, wanted: Tensor) -> Tensor:
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + 1e-6 * gram.trace() / len(gram) * eye, ours.to(gram.dtype))
    return 0.5 * (cross @ weights - wanted).square().mean()


def _ntk(a: Tensor, b: Tensor) -> Tensor:
    """Of one hidden ReLU layer, from the arc-cosine kernels (Cho & Saul 2009)."""
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)[None]
    cosine = (a @ b.T / lengths).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = torch.acos(cosine)
    slope = (torch.pi - angle) / torch.pi
    value = lengths * (torch.sin(angle) + (torch.pi - angle) * cosine) / torch.pi
    return (value + lengths * cosine * slope) / a.shape[1]


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(row: str, side: str, steps: int) -> dict[str, Any]:
    """In this process: seconds of each step after a first one, and the growth of the resident set over all of them."""
    torch.manual_seed(0)
    if side == "plain":
        step = plain(row, 10)
    else:
        step = library(row, 100 if side == "100 classes" else 10, 10 if side == "100 classes" else 1)
    before = _resident()
    step(0)
    seconds, processor = [], []
    for number in range(1, steps + 1):
        began, used = time.perf_counter(), time.process_time()
        step(number)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(seconds), "processor": min(processor), "bytes": max(0, peak - before)}


def _resident() -> int:
    status = Path("/proc/self/statm").read_text().split()
    return int(status[1]) * resource.getpagesize()


def main() -> None:
    """Measure the rows, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a turn; the fastest counts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "objectives.json")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.steps)))
        return
    results: dict[str, Any] = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for row in options.rows:
        sides = ("100 classes", "10 classes") if "many" in ROWS[row] else ("plain", "library")
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side in sides:
                call = [sys.executable, __file__, "--one", row, side, "--steps", str(options.steps)]
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
            "runs": found,
            sides[0]: first,
            sides[1]: second,
            "ratio": ratios,
        }
        print(
            f"{row}: seconds {ratios['seconds']:.2f}x, processor {ratios['processor']:.2f}x, memory {ratios['bytes']:.2f}x",
            flush=True,
        )
        write_results(options.out, {"rows": results})
    body = []
    for row, one in results.items():
        sides = [side for side in ("plain", "library", "100 classes", "10 classes") if side in one]
        cells = [f"{one[side]['processor']:.2f}" for side in sides] + [
            f"{one[side]['bytes'] / 2**20:.0f}" for side in sides
        ]
        body.append(
            [row, " / ".join(sides), *cells, *(f"{one['ratio'][key]:.2f}" for key in ("processor", "seconds", "bytes"))]
        )
    print(
        format_table(
            ["row", "a / b", "a, cpu s", "b, cpu s", "a, MiB", "b, MiB", "cpu a/b", "wall a/b", "memory a/b"], body
        )
    )


if __name__ == "__main__":
    main()
