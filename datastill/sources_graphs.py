"""What `--data` of `datastill graphs` may name: sets of small graphs, read from plain files."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.errors import InputError, load_extra, require
from datastill.sources import load_digits

_INKED = 0.25  # a pixel of a digit is a node from this intensity on


def read_graph_sets(data: str) -> dict[str, Any]:
    """A set of graphs by path: `data`, and `split` and `metric` where the files say them, as `condense_graphs` takes them.

    Args:
        data: "digits" (scikit-learn's images as graphs of inked pixels); a folder with the text files of a TU dataset, such
            as MUTAG_A.txt, or with `raw/` that has them; or the folder of an OGB dataset for graph classification, with its
            `raw/` and `split/` as they are downloaded. Nothing is written there.
    """
    if data == "digits":
        return {"data": digit_graphs(), "split": None, "metric": None}
    path = Path(data)
    require(
        path.is_dir(), f"There is no folder {data!r}. Data may be: digits, or the folder of a TU or an OGB dataset."
    )
    for folder in (path, path / "raw"):
        found = sorted(folder.glob("*_graph_indicator.txt"))
        if found:
            return {
                "data": _read_tu(folder, found[0].name.removesuffix("_graph_indicator.txt")),
                "split": None,
                "metric": None,
            }
    for folder in (path, path / "raw"):
        if (folder / "num-node-list.csv.gz").is_file():
            return _read_ogb(folder)
    raise InputError(
        f"{data} holds no graphs: it has neither a TU dataset's *_graph_indicator.txt nor OGB's raw files."
    )


def digit_graphs() -> list[Any]:
    """scikit-learn's digits as graphs: nodes are inked pixels (intensity, row and column in [0, 1]), edges join neighbours."""
    pixels, labels = load_digits()
    found = []
    for image, label in zip(pixels[:, 0], labels):
        place = (image >= _INKED).nonzero()
        near = (place[:, None] - place[None]).abs().amax(2) == 1
        x = torch.cat([image[place[:, 0], place[:, 1], None], place / 7], 1)
        found.append(_data(x=x, edge_index=near.nonzero().T.contiguous(), y=label.reshape(1)))
    return found


def _data(**tensors: Tensor) -> Any:
    return load_extra("torch_geometric.data", "graphs").Data(**tensors)


def _lay_out(x: Tensor | None, edges: Tensor, labels: Tensor, nodes: list[int], bonds: list[int]) -> list[Any]:
    """Graphs of these numbers of nodes and edges, one after another; `edges` (2, e) are numbered within each graph."""
    parts: list[dict[str, Tensor]] = [
        {"edge_index": edge, "y": label} for edge, label in zip(edges.split(bonds, 1), labels)
    ]
    if x is not None:
        for part, mine in zip(parts, x.split(nodes)):
            part["x"] = mine.clone()
        return [_data(**part) for part in parts]
    return [_data(**part, num_nodes=count) for part, count in zip(parts, nodes)]  # type: ignore[arg-type]


def _read_tu(folder: Path, name: str) -> list[Any]:
    """A TU dataset: x is the attributes of the nodes, then their labels one-hot; classes are numbered in ascending order."""
    files = {part: folder / f"{name}_{part}.txt" for part in ("A", "graph_labels", "node_labels", "node_attributes")}
    owner = _numbers(folder / f"{name}_graph_indicator.txt").long().flatten() - 1
    ends = _numbers(files["A"]).long() - 1
    _, labels = _numbers(files["graph_labels"]).long().flatten().unique(return_inverse=True)
    require(
        bool((owner.diff() >= 0).all()) and int(owner.max()) < len(labels) and int(ends.max()) < len(owner),
        f"The files of {name} in {folder} do not fit each other.",
    )
    columns = []
    if files["node_attributes"].is_file():
        columns.append(_numbers(files["node_attributes"]).float())
    if files["node_labels"].is_file():
        for column in _numbers(files["node_labels"]).long().T:
            columns.append(F.one_hot(column - column.min()).float())
    sizes = torch.bincount(owner, minlength=len(labels))
    ends = ends[ends[:, 0] != ends[:, 1]]
    places = torch.unique(ends[:, 0] * len(owner) + ends[:, 1])  # sorted by source, so graph by graph
    edges = torch.stack([places // len(owner), places % len(owner)], 1)
    bonds = torch.bincount(owner[edges[:, 0]], minlength=len(labels))
    starts = (sizes.cumsum(0) - sizes)[owner]
    edges = edges - starts[edges[:, 0], None]
    x = torch.cat(columns, 1) if columns else None
    return _lay_out(x, edges.T.contiguous(), labels[:, None], sizes.tolist(), bonds.tolist())


def _read_ogb(raw: Path) -> dict[str, Any]:
    """An OGB dataset: integer x, every edge in both directions, y of shape (1, tasks), the split that comes with it."""
    sizes = _table(raw / "num-node-list.csv.gz").long().flatten().tolist()
    bonds = _table(raw / "num-edge-list.csv.gz").long().flatten().tolist()
    x, edges = _table(raw / "node-feat.csv.gz").long(), _table(raw / "edge.csv.gz").long().T
    labels = _table(raw / "graph-label.csv.gz")
    require(
        len(x) == sum(sizes) and edges.shape[1] == sum(bonds) and len(labels) == len(sizes),
        f"The files of the OGB dataset in {raw} do not fit each other.",
    )
    both = torch.cat([torch.cat([edge, edge.flip(0)], 1) for edge in edges.split(bonds, 1)], 1)
    if bool(labels.isfinite().all()):
        labels = labels.long()
    graphs = _lay_out(x, both, labels[:, None], sizes, [2 * count for count in bonds])
    folders = sorted(path for path in (raw.parent / "split").glob("*") if (path / "train.csv.gz").is_file())
    split = None
    if folders:
        split = {part: _table(folders[0] / f"{part}.csv.gz").long().flatten() for part in ("train", "valid", "test")}
    return {"data": graphs, "split": split, "metric": "roc_auc" if int(labels.max()) == 1 else None}


def _numbers(path: Path) -> Tensor:
    """(rows, columns) of a text file of numbers with commas."""
    try:
        return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as rows of numbers: {error}.") from error


def _table(path: Path) -> Tensor:
    """(rows, columns) of a gzipped .csv without a header; an empty field is NaN."""
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = [[float(cell or "nan") for cell in row] for row in csv.reader(file)]
        return torch.tensor(rows, dtype=torch.float64)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read as rows of numbers: {error}.") from error
