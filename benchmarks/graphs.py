"""How much faster a step of gradient matching is than a plain loop of the same losses, what the adjacency takes, how cost grows.

    python benchmarks/graphs.py                    all of it
    python benchmarks/graphs.py --jobs gcond       one job

The plain loops are in `plain_graphs.py`. The two take turns in one process, so that both see the same machine: of ten steps, as
in a run, and of single ones, which begin with what the other loop has left of the caches. Medians of seconds are compared.
Before that both run in float64, where their losses have to agree: to the last digits, save for what the library knows of
constant graphs (A X of small ones), which it computes in float32 once.

How the cost of a whole run grows with the graph ("scale") is measured by graph_scale.py, in processes of their own; its result
file and table have larger graphs too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import plain_graphs
import torch
from harness import DATA, ROOT, modality_of, write_results
from torch import Tensor, nn

from datastill import distill
from datastill.evaluation import format_table
from datastill.loop import Event
from datastill.modalities.graph_adjacency import PairMLP
from datastill.objectives.gradient_matching import GradientMatching
from datastill.rng import generator
from datastill.sources_graphs import read_graph_sets

SEED = 0
STRETCH = 10
GROWTH = (20_000, 60_000, 170_000)
Prepare = Callable[[torch.dtype], tuple[Callable[[Callable[[Event], None], int], None], Iterator[float]]]


def gcond(folder: Path) -> Prepare:
    """GCond on Cora at 70 nodes: 20 matches a network, 15 steps of training in between, hidden width 128."""
    outer, inner, lr, turns = 20, 15, 1e-4, (10, 40)

    def prepare(dtype: torch.dtype) -> Any:
        modality: Any = modality_of("graph", folder=folder).to(dtype=dtype)
        summary = modality.summary(
            modality.allocate(70), rng=generator(SEED, "summary"), init="real", adjacency="learned"
        )
        objective = GradientMatching(
            learner="sgc", outer_loops=outer, inner_epochs=inner, inner_optimizer="adam", weighting="size"
        )
        plain = plain_graphs.gcond(modality, deepcopy(summary), seed=SEED, outer=outer, inner=inner, lr=lr, turns=turns)
        options: dict[str, Any] = {"lr": lr, "alternate": {"adjacency": turns[0], "features": turns[1]}}
        return _ours(modality, summary, objective, options), plain

    return prepare


def doscond(folder: Path) -> Prepare:
    """DosCond on 500 graphs of NCI1 a step, 250 of each class, with 10 synthetic graphs of each class."""
    graphs = read_graph_sets(str(folder / "graphs/tu/NCI1"))["data"]
    lr = {"features": 0.01, "adjacency": 0.1}

    def prepare(dtype: torch.dtype) -> Any:
        from datastill.modalities.graphs import GraphsModality

        modality: Any = GraphsModality(graphs, seed=SEED).to(dtype=dtype)
        summary = modality.summary([10, 10], rng=generator(SEED, "summary"), padding="keep")
        objective = GradientMatching(learner="gcn", outer_loops=1, inner_epochs=0, real_size=250, distance="relative")
        plain = plain_graphs.doscond(modality, deepcopy(summary), graphs, seed=SEED, size=250, lr=lr)
        return _ours(modality, summary, objective, {"lr": lr}), plain

    return prepare


def _ours(modality: Any, summary: Any, objective: Any, options: dict[str, Any]) -> Callable[..., None]:
    def run(callback: Callable[[Event], None], steps: int) -> None:
        distill(
            modality,
            summary,
            objective,
            steps=steps,
            seed=SEED,
            validate_every=0,
            callbacks=[callback],
            progress=False,
            **options,
        )

    return run


def race(prepare: Prepare, steps: int, dtype: torch.dtype, stretch: int = 1) -> dict[str, Any]:
    """Stretches of so many steps of the library and of the plain loop in turns."""
    run, plain = prepare(dtype)
    seconds: dict[str, list[float]] = {"plain": [], "library": []}
    losses: dict[str, list[float]] = {"plain": [], "library": []}
    began = time.perf_counter()

    def take_turns(event: Event) -> None:
        nonlocal began
        if event.kind != "step":
            return
        seconds["library"].append(time.perf_counter() - began)
        losses["library"].append(event.record["loss"])
        if event.step % stretch == 0 or event.step == steps:
            while len(losses["plain"]) < event.step:
                began = time.perf_counter()
                losses["plain"].append(next(plain))
                seconds["plain"].append(time.perf_counter() - began)
        began = time.perf_counter()

    run(take_turns, steps)
    gaps = [abs(a - b) / abs(b) for a, b in zip(losses["library"], losses["plain"])]
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first step fills caches
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "steps": steps,
        "stretch": stretch,
        "median_seconds": medians,
        "ratio": medians["plain"] / medians["library"],
        "ratio_of_totals": sum(seconds["plain"][1:]) / sum(seconds["library"][1:]),
        "largest_relative_gap": max(gaps),
        "losses": losses,
    }


def pair_memory(width: int = 1433, hidden: int = 128) -> list[dict[str, Any]]:
    """Bytes that the adjacency keeps for its backward pass, beside those of n * n * hidden and n * n * 2 width floats."""
    rows = []
    for count in (70, 140, 280):
        torch.manual_seed(SEED)
        ours = PairMLP(width, hidden)
        features = torch.rand(count, width, requires_grad=True)
        rows.append(
            {
                "nodes": count,
                "library": _kept(ours, features),
                "plain": _kept(plain_graphs.PlainPairs(ours), features),
                "n_n_hidden": count * count * hidden * 4,
                "n_n_2_width": count * count * 2 * width * 4,
            }
        )
    return rows


def _kept(module: nn.Module, features: Tensor) -> int:
    known = {parameter.untyped_storage().data_ptr() for parameter in (*module.parameters(), features)}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = module(features)
    del result
    return sum(found.values())


def main() -> None:
    """Run the jobs, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs: dict[str, tuple[int, Callable[[Path], Prepare]]] = {"gcond": (51, gcond), "doscond": (40, doscond)}
    parser.add_argument("--jobs", nargs="+", default=[*jobs, "memory", "scale"], choices=[*jobs, "memory", "scale"])
    parser.add_argument("--steps", type=int, help="timed steps of each, in float32")
    parser.add_argument("--check-steps", type=int, default=12, help="steps in float64 whose losses have to agree")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=DATA, help="where the datasets lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "graphs.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    content: dict[str, Any] = {"threads": options.threads, "speed": {}}
    body = []
    for name, (steps, job) in jobs.items():
        if name not in options.jobs:
            continue
        prepare = job(options.folder)
        exact = race(prepare, options.check_steps, torch.float64)
        if exact["largest_relative_gap"] > 1e-5:
            raise SystemExit(f"{name}: the losses are not the plain loop's: {exact['largest_relative_gap']:.1e}")
        content["speed"][name] = {"what": job.__doc__, "exact": exact}
        for turns, stretch in (("timed", STRETCH), ("timed_by_single_steps", 1)):
            timed = race(prepare, options.steps or steps, torch.float32, stretch)
            content["speed"][name][turns] = timed
            plain, library = (f"{1000 * timed['median_seconds'][key]:.1f}" for key in ("plain", "library"))
            gaps = (f"{one['largest_relative_gap']:.0e}" for one in (exact, timed))
            ratios = (f"{timed[key]:.1f}" for key in ("ratio", "ratio_of_totals"))
            body.append([name, "", str(stretch), plain, library, *ratios, *gaps])
        columns = ["plain, ms", "library, ms", "ratio", "ratio of sums", "gap, float64", "gap, float32"]
        print(format_table(["step", "", "in turns of", *columns], body))
    if "memory" in options.jobs:
        content["pair_memory"] = pair_memory()
        table = [
            [f"{row['nodes']}", "", *(f"{row[key] / 2**20:.1f}" for key in list(row)[1:])]
            for row in content["pair_memory"]
        ]
        print(format_table(["nodes", "", "library, MiB", "plain, MiB", "n n h floats", "n n 2d floats"], table))
    if content["speed"] or "pair_memory" in content:
        write_results(options.out, content)
    if "scale" in options.jobs:
        command = [sys.executable, str(ROOT / "benchmarks" / "graph_scale.py"), "--nodes", *map(str, GROWTH)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
