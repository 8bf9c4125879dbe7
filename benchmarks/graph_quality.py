"""Quality of condensed graphs, beside what was published: Cora at 35, 70 and 140 nodes, and the Facebook page graph.

    python benchmarks/graph_quality.py                       everything that is not in the result file yet
    python benchmarks/graph_quality.py --jobs cora-35-gcond  of that, what begins so
    python benchmarks/graph_quality.py --jobs                the tables only

Every run is written as soon as it is there. A summary is distilled from the start `--runs` times, each with its own seed, and
each one trains a network once by the published protocol (GCond's: two layers, 256 units, 600 epochs of Adam, a tenth of the
learning rate for the second half, the best moment on the validation nodes, tested on the whole graph). Nothing is selected on
test nodes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import DATA, ROOT, write_results

from datastill import condense_graph, evaluate, recipes
from datastill.evaluation import format_table
from datastill.modalities.graph import GraphModality
from datastill.rng import generator
from datastill.sources import read_graph_source

PROTOCOL = "gcond"
NETWORK = {"layers": 2, "hidden": 256, "dropout": 0.5}
TRANSFER = ("gcn", "sage", "appnp", "sgc", "cheb", "mlp", "gat", "transformer")
RECIPES = ("gcond", "gcond-x", "gcdm", "doscond", "sfgc", "geom")
BASELINES = ("random", "herding", "k-center")
FULL = "whole graph"
SIZES = (35, 70, 140)


def facebook(folder: Path) -> Any:
    """Pages that like each other (Rozemberczki et al. 2021): 22,470 nodes, 4,714 binary features, four kinds of page.

    The files hold no split. `condense_graph` makes one: 60/20/20 of each class, by the seed 0.
    """
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    with (folder / "target.csv").open(encoding="utf-8") as file:
        kinds = [row["page_type"] for row in csv.DictReader(file)]
    names = sorted(set(kinds))
    x = torch.zeros(len(kinds), 4714)
    for node, words in json.loads((folder / "features.json").read_text()).items():
        x[int(node), words] = 1.0
    with (folder / "edges.csv").open() as file:
        pairs = [(int(row["id_1"]), int(row["id_2"])) for row in csv.DictReader(file)]
    edges = to_undirected(torch.tensor(pairs).T)
    return Data(x=x, edge_index=edges, y=torch.tensor([names.index(kind) for kind in kinds]))


@dataclasses.dataclass(frozen=True)
class Part:
    """A row of the table: what is condensed, to how many nodes, and how; or the whole graph, which is not."""

    graph: str
    nodes: int
    what: str
    options: dict[str, Any]
    learners: tuple[str, ...] = ("gcn",)

    @property
    def name(self) -> str:
        return f"{self.graph}-{self.nodes}-{self.what}"


def parts() -> Iterator[Part]:
    """All rows, in the order of the table."""
    for nodes in SIZES:
        yield Part("cora", nodes, "default", {}, TRANSFER if nodes == 70 else ("gcn",))
        yield Part("cora", nodes, "default, unlabelled ignored", {"unlabelled": "ignore"})
        for recipe in (*RECIPES, *BASELINES):
            yield Part("cora", nodes, recipe, {"recipe": recipe})
    yield Part("cora", 140, FULL, {})
    yield Part("facebook", 224, "default", {})
    for recipe in BASELINES:
        yield Part("facebook", 224, recipe, {"recipe": recipe})
    yield Part("facebook", 13482, FULL, {})


class Graphs:
    """The target datasets, each read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data: dict[str, Any] = {}
        self._modalities: dict[str, GraphModality] = {}

    def data(self, graph: str) -> Any:
        if graph not in self._data:
            if graph == "cora":
                self._data[graph] = read_graph_source(str(self.folder / "planetoid/Cora"))["data"]
            else:
                self._data[graph] = facebook(self.folder / "facebook")
        return self._data[graph]

    def modality(self, graph: str) -> GraphModality:
        """The judge: what summaries are scored on, whatever they were distilled from."""
        if graph not in self._modalities:
            self._modalities[graph] = GraphModality(self.data(graph))
        return self._modalities[graph]


def run(part: Part, graphs: Graphs, seed: int, row: dict[str, Any]) -> None:
    """One more run of a part: its scores are added to `row`, with sizes and seconds."""
    judge = graphs.modality(part.graph)
    began = time.perf_counter()
    if part.what == FULL:
        plan = judge.published[PROTOCOL].on(sum(judge.full_sizes), judge.num_classes, full=True)
        predictor = judge.fit(judge.full(), "gcn", rng=generator(seed, "full"), protocol=plan)
        row["scores"]["gcn"].append(judge.score(predictor, "test")["accuracy"])
        size = judge.full_size()
        row.update(points=size.points, bytes=size.nbytes)
    else:
        small = condense_graph(graphs.data(part.graph), nodes=part.nodes, seed=seed, progress=False, **part.options)
        row["seconds"].append(time.perf_counter() - began)
        found = evaluate(
            small, judge, learners=part.learners, seeds=1, baselines=False, protocol=PROTOCOL, seed=seed, progress=False
        )
        for one in found.rows:
            row["scores"][one.learner] += one.scores["accuracy"]
        row.update(points=found.rows[0].points, bytes=found.rows[0].nbytes)
    print(f"  {part.name} {seed}: {100 * row['scores']['gcn'][-1]:.1f}", flush=True)


def table(results: dict[str, Any]) -> str:
    """Every row by a GCN, with the published figure, nodes, bytes and seconds."""
    body = []
    for part in parts():
        if part.name in results:
            row = results[part.name]
            published = recipes[part.what].published if part.what in recipes else {}
            figure = published.get("Cora", {}).get(part.nodes, "") if part.graph == "cora" else ""
            seconds = f"{statistics.median(row['seconds']):.1f}" if row["seconds"] else ""
            sizes = (f"{row['points']:,}", f"{row['bytes']:,}")
            body.append([part.graph, part.what, _percent(row["scores"]["gcn"]), str(figure), *sizes, seconds])
    return format_table(["graph", "trained on", "GCN, %", "published", "points", "bytes", "condense, s"], body)


def transfer(results: dict[str, Any]) -> str:
    """The default's summaries by the network that is trained on them; "mean" is of the first six."""
    body = []
    for part in parts():
        if len(part.learners) > 1 and part.name in results:
            scores = results[part.name]["scores"]
            mean = statistics.fmean(statistics.fmean(scores[name]) for name in TRANSFER[:6])
            body.append([part.graph, str(part.nodes), *(_percent(scores[n]) for n in TRANSFER), f"{100 * mean:.1f}"])
    return format_table(["graph", "nodes", *TRANSFER, "mean"], body)


def _percent(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}"


def main() -> None:
    """Run what is missing or asked for, print the tables, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="*", help="rows, or how their names begin")
    parser.add_argument("--runs", type=int, default=5, help="distillations from the start, each with its own seed")
    parser.add_argument("--folder", type=Path, default=DATA / "graphs", help="where planetoid/ and facebook/ lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "graph_quality.json")
    options = parser.parse_args()

    results: dict[str, Any] = {}
    if options.out.exists():
        results = json.loads(options.out.read_text())["parts"]
    graphs = Graphs(options.folder)
    for part in parts():
        if options.jobs is not None and not part.name.startswith(tuple(options.jobs)):
            continue
        row = results.get(part.name, {"scores": {name: [] for name in part.learners}, "seconds": []})
        for seed in range(len(row["scores"]["gcn"]), options.runs):
            run(part, graphs, seed, row)
            results[part.name] = row
            content = {
                "protocol": {PROTOCOL: dataclasses.asdict(GraphModality.published[PROTOCOL])},
                "network": NETWORK,
                "parts": results,
            }
            write_results(options.out, content)
    print(f"{GraphModality.published[PROTOCOL].training}\n{NETWORK}")
    print(table(results))
    print(transfer(results))


if __name__ == "__main__":
    main()
