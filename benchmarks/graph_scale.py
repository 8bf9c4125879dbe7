"""What condensing a large graph costs: seconds and peak memory against its size, and what the result is worth.

    python benchmarks/graph_scale.py                              20,000 to 2,000,000 nodes
    python benchmarks/graph_scale.py --nodes 20000 60000          these sizes
    python benchmarks/graph_scale.py --nodes 2000000 --cache DIR  with the propagated features in files

Graphs are generated, in O(edges): nodes of skewed classes have topics, 40 % of the edges stay within a topic and the others
lead to popular nodes anywhere, features are noisy prototypes of topic and class, and a share of the labels is wrong, so that no
learner gets near 1. Each has 7 edges a node in both directions (10 from 500,000 nodes on), 128 features and 40 classes, with
54/18/28 % of the nodes for training, validation and test; 170,000 nodes are the size of ogbn-arxiv. `condense_graph` runs with
its defaults and a budget of 850 nodes, 0.5 % of 170,000, so that what grows is the graph alone. Every size has a process of its
own, whose peak resident memory is read when the summary is there, before anything is evaluated. Scores are an SGC's on the test
nodes, on the summary, on a random subset of as many training nodes and on all of them, in mini-batches of at most 16,384 nodes.

Results of sizes that were not asked for stay in the file, with the commit that they are from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, STARTED, write_results
from torch import Tensor

from datastill import condense_graph, evaluate
from datastill.evaluation import format_table

SIZES = (20_000, 60_000, 170_000, 500_000, 2_000_000)
WIDTH, CLASSES, TOPICS, BUDGET = 128, 40, 5, 850
OWN, NOISE, WRONG = 0.4, 4.0, 0.15  # edges within a topic; standard deviation of features; labels that are random
PLACE = ROOT / "benchmarks/results/graph_scale.json"
HEAD = ("nodes", "edges", "seconds", "peak GiB", "data GiB", "random", "summary", "full")


def edges_of(nodes: int) -> int:
    """Edges, each of which is stored in both directions."""
    return round(nodes * (10 if nodes >= 500_000 else 120 / 17))


def generated(nodes: int, edges: int, seed: int = 0) -> Any:
    """The graph, a PyG `Data`."""
    from torch_geometric.data import Data

    rng = torch.Generator().manual_seed(seed)
    shares = (1 + torch.arange(CLASSES)) ** -0.7
    labels = torch.multinomial(shares, nodes, replacement=True, generator=rng)
    topics = labels * TOPICS + torch.randint(TOPICS, (nodes,), generator=rng)
    prototypes = torch.randn(CLASSES, 1, WIDTH, generator=rng) + torch.randn(CLASSES, TOPICS, WIDTH, generator=rng)
    features = torch.randn(nodes, WIDTH, generator=rng).mul_(NOISE)
    for rows in torch.arange(nodes).split(2**16):
        features[rows] += prototypes.flatten(0, 1)[topics[rows]]
    source = torch.randint(nodes, (edges,), generator=rng)
    popular = torch.rand(edges, generator=rng).square_()  # from 0, the most popular, to 1
    by_topic = topics.argsort(stable=True)
    counts = topics.bincount(minlength=CLASSES * TOPICS)
    mine = topics[source]
    target = by_topic[counts.cumsum(0)[mine] - 1 - (popular * counts[mine]).long().clamp_(max=counts[mine] - 1)]
    away = torch.rand(edges, generator=rng) >= OWN
    anywhere = torch.randperm(nodes, generator=rng)
    target[away] = anywhere[(popular[away] * nodes).long().clamp_(max=nodes - 1)]
    wrong = torch.rand(nodes, generator=rng) < WRONG
    labels[wrong] = torch.randint(CLASSES, (int(wrong.sum()),), generator=rng)
    part = torch.rand(nodes, generator=rng)
    return Data(
        x=features,
        edge_index=torch.stack([torch.cat([source, target]), torch.cat([target, source])]),
        y=labels,
        train_mask=part < 0.54,
        val_mask=(part >= 0.54) & (part < 0.72),
        test_mask=part >= 0.72,
    )


def peak() -> float:
    """Peak resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stored(tensors: list[Tensor]) -> float:
    """GiB of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**30


def measure(nodes: int, cache: str | None, seeds: int) -> dict[str, Any]:
    """One size, in this process."""
    edges = edges_of(nodes)
    data = generated(nodes, edges)
    before = peak()
    began = time.perf_counter()
    job = condense_graph.job(data, nodes=BUDGET, cache=cache, progress=False)
    read = time.perf_counter() - began
    result = job.run()
    seconds, reached = time.perf_counter() - began, peak()
    print(f"{nodes} nodes: {seconds:.1f} s, {reached:.2f} GiB", file=sys.stderr, flush=True)
    protocol = dataclasses.replace(job.modality.protocol("sgc"), batch_size=16384)
    table = evaluate(result, learners=["sgc"], seeds=seeds, protocol=protocol, progress=False)
    names = {"random": "random subset", "summary": "summary", "full": "full data"}
    return {
        "nodes": nodes,
        "edges": edges,
        "budget": BUDGET,
        "seconds": seconds,
        "reading_seconds": read,
        "run_seconds": result.seconds,
        "peak_gib": reached,
        "peak_before_gib": before,
        "data_gib": stored([value for value in data.to_dict().values() if isinstance(value, Tensor)]),
        "accuracy": {name: table.row(row).mean("accuracy") for name, row in names.items()},
        "validation": result.best_score,
        "best_step": result.best_step,
        "seeds": seeds,
        "cache": cache is not None,
        "threads": torch.get_num_threads(),
        "commit": STARTED["commit"],
    }


def exponent(rows: list[dict[str, Any]], value: str) -> float:
    """Slope of log(value) over log(nodes + edges), by least squares."""
    points = [(math.log(row["nodes"] + row["edges"]), math.log(row[value])) for row in rows]
    x0, y0 = (sum(part) / len(points) for part in zip(*points))
    return sum((x - x0) * (y - y0) for x, y in points) / sum((x - x0) ** 2 for x, _ in points)


def main() -> None:
    """Parse arguments, measure each size in its own process, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES, help="sizes of graphs")
    parser.add_argument("--cache", help="folder for propagated features (default: memory)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each score")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.nodes[0], options.cache, options.seeds)))
        return
    rows = {row["nodes"]: row for row in json.loads(PLACE.read_text())["rows"]} if PLACE.exists() else {}
    for nodes in options.nodes:
        command = [sys.executable, __file__, "--one", "--nodes", str(nodes), "--seeds", str(options.seeds)]
        command += [] if options.cache is None else ["--cache", options.cache]
        environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        rows[nodes] = json.loads(done.stdout.splitlines()[-1])
        report([rows[size] for size in sorted(rows)], PLACE)


def report(rows: list[dict[str, Any]], place: Path) -> None:
    """Print the table so far and write it."""
    body = [
        [
            f"{row['nodes']:,}",
            f"{row['edges']:,}",
            f"{row['seconds']:.1f}",
            f"{row['peak_gib']:.2f}",
            f"{row['data_gib']:.2f}",
            *(f"{100 * row['accuracy'][name]:.1f}" for name in ("random", "summary", "full")),
        ]
        for row in rows
    ]
    print(format_table(HEAD, body))
    growth = {}
    if len(rows) > 1:
        growth = {value: exponent(rows, value) for value in ("seconds", "peak_gib")}
        print(f"growth over nodes + edges: seconds ^{growth['seconds']:.2f}, peak memory ^{growth['peak_gib']:.2f}")
    write_results(place, {"growth": growth, "rows": rows})


if __name__ == "__main__":
    main()
