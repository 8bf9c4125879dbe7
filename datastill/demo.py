"""The demo: scikit-learn's digits, distilled as images and as a graph, on one page. It needs no download."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill import artifact
from datastill.condense.common import Job
from datastill.condense.graph import condense_graph
from datastill.condense.images import condense_images
from datastill.errors import load_extra
from datastill.evaluation import Evaluation, evaluate, format_table
from datastill.report import report
from datastill.sources import load_digits, split_by_class

PER_CLASS = 10
RATIO = 0.02
NEIGHBOURS = 10
QUICK_STEPS = 20


def demo(out: str | Path = "runs/demo", seed: int = 0, quick: bool = False, progress: bool = True) -> Path:
    """Distil scikit-learn's 1,797 digits as images and as a graph, score both summaries, and write a run folder.

    As images: 10 a class. As a graph: digits are nodes, each linked to the 10 that look most alike, the digit is the node's
    label; distilled to 2 % of the nodes. A fifth of the digits is for testing, and never seen before the final scores.

    Args:
        out: run folder: `images/` and `graph/` with an artifact and `metrics.jsonl` each, and `report.html` on both.
        seed: of everything random.
        quick: take few steps and seeds, to see that it works; the scores are then lower.
        progress: whether progress bars are shown on stderr.

    Returns:
        The path of the report.
    """
    for module, extra in (
        ("sklearn", "all"),
        ("torch_geometric", "graphs"),
        ("matplotlib", "report"),
        ("jinja2", "report"),
    ):
        load_extra(module, extra)
    folder, steps, seeds = Path(out), QUICK_STEPS if quick else None, 2 if quick else 5
    pixels, labels = load_digits()
    kept, held = split_by_class(labels, seed)
    options: dict[str, Any] = {"seed": seed, "steps": steps, "progress": progress}

    def images() -> Job[Any]:
        train, test = ((pixels[part], labels[part]) for part in (kept, held))
        return condense_images.job(train, per_class=PER_CLASS, test=test, out=folder / "images", **options)

    def graph() -> Job[Any]:
        data = neighbour_graph(pixels, labels, held, seed)
        return condense_graph.job(data, ratio=RATIO, out=folder / "graph", **options)

    body: list[list[str]] = []
    for name, prepare in (("images", images), ("graph", graph)):
        _forget(folder / name)
        with _one_thread():
            began = time.perf_counter()
            result = prepare().run()
            seconds = time.perf_counter() - began
            evaluation = evaluate(result, seeds=seeds, seed=seed, progress=progress)
        artifact.save(result, folder / name / artifact.RUN_SUBFOLDER, evaluation=evaluation)
        body += _rows(name, seconds, evaluation)
    print(format_table(["digits as", "trained on", "accuracy, %", "points", "bytes", "distil, s", "train, s"], body))
    page = report(folder)
    print(f"\nmean ± std of {seeds} trainings; pictures and curves: {page}")
    sys.stdout.flush()
    return page


def neighbour_graph(pixels: Tensor, labels: Tensor, held: Tensor, seed: int) -> Any:
    """A PyG `Data` whose nodes are images, each linked both ways to its nearest neighbours in pixel space.

    Args:
        pixels: (n, 1, height, width).
        labels: (n,) int64.
        held: nodes of the test mask; a fifth of each class of the others is the validation mask.
        seed: of that split.
    """
    features = pixels.flatten(1)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    nearest = distances.topk(NEIGHBOURS, largest=False).indices
    count = len(features)
    linked = torch.zeros(count, count, dtype=torch.bool)
    linked[torch.arange(count)[:, None], nearest] = True
    masks = {name: torch.zeros(count, dtype=torch.bool) for name in ("train_mask", "val_mask", "test_mask")}
    masks["test_mask"][held] = True
    others = (~masks["test_mask"]).nonzero().squeeze(1)
    train, validation = split_by_class(labels[others], seed + 1)
    masks["train_mask"][others[train]] = True
    masks["val_mask"][others[validation]] = True
    edges = (linked | linked.T).nonzero().T.contiguous()
    return load_extra("torch_geometric.data", "graphs").Data(
        x=features.clone(), edge_index=edges, y=labels.clone(), **masks
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    # These tensors are small: more threads gain nothing on a free machine and wait for each other on a busy one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _forget(run: Path) -> None:
    # A demo starts anew each time; a run of the library would go on from what is there.
    for part in ("checkpoint", artifact.RUN_SUBFOLDER):
        shutil.rmtree(run / part, ignore_errors=True)
    (run / "metrics.jsonl").unlink(missing_ok=True)


def _rows(name: str, seconds: float, evaluation: Evaluation) -> list[list[str]]:
    order = {"random subset": 0, "full data": 2}
    metric = evaluation.metric
    return [
        [
            name,
            row.data,
            f"{100 * row.mean(metric):.1f} ± {100 * row.std(metric):.1f}",
            f"{row.points:,}",
            f"{row.nbytes:,}",
            "" if row.data in order else f"{seconds:.1f}",
            f"{row.seconds / len(row.scores[metric]):.1f}",
        ]
        for row in sorted(evaluation.rows, key=lambda row: order.get(row.data, 1))
    ]
