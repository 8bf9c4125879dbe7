"""Reads and checks a set of graphs with a class each: nodes, edges, labels, and which of them train, validate and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from datastill.errors import InputError, load_extra, require
from datastill.rng import generator

Splits: TypeAlias = Mapping[str, Any]
PARTS = ("train", "validation", "test")
_KEYS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_SHARE = 0.1  # of the graphs that test, and that validate, where no split is given
_LARGEST = 1e15  # of features: float32 holds its square


@dataclass(frozen=True)
class GraphSet:
    """Graphs laid end to end.

    Attributes:
        x: (n, columns) of all nodes, float32 or int64; None where nodes have no features.
        edge_index: (2, edges) int64, numbered over all nodes.
        sizes: (m,) int64, nodes of each graph, at least 1.
        labels: (m,) int64.
        label_shape: of y in a single graph, (1,) or (1, 1).
    """

    x: Tensor | None
    edge_index: Tensor
    sizes: Tensor
    labels: Tensor
    label_shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def degrees(self) -> Tensor:
        """(n,) int64, edges that arrive at each node."""
        return torch.bincount(self.edge_index[1], minlength=int(self.sizes.sum()))

    def fingerprint(self, parts: Mapping[str, Tensor]) -> str:
        """A sha256 hex digest of the graphs and of the parts."""
        digest = hashlib.sha256()
        tensors = {"edge_index": self.edge_index, "sizes": self.sizes, "labels": self.labels, **parts}
        if self.x is not None:
            tensors["x"] = self.x
        for name in sorted(tensors):
            array = tensors[name].contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def read_graphs(data: Any) -> GraphSet:
    """Take x, edge_index and y of every graph in a PyG dataset or a list of `Data`, which stay as they are.

    Attributes of edges are not read. Edges that are given in one direction carry values in that direction only.

    Raises:
        InputError: naming the graph in which something is missing or wrong.
    """
    kind = load_extra("torch_geometric.data", "graphs").Data
    require(
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (kind, str)),
        f"data must be a dataset or a list of torch_geometric.data.Data, got {type(data).__name__}.",
    )
    graphs = [data[number] for number in range(len(data))]
    require(bool(graphs), "data has no graph; it needs some of every class.")
    for number, graph in enumerate(graphs):
        if not isinstance(graph, kind):
            raise InputError(f"data[{number}] must be a torch_geometric.data.Data, got {type(graph).__name__}.")
    with_x = [isinstance(graph.x, Tensor) for graph in graphs]
    require(
        all(with_x) or not any(with_x),
        f"data[{with_x.index(False) if False in with_x else 0}] has no x, but others have one; give all nodes features, "
        "or none.",
    )
    features = [_features(number, graph) for number, graph in enumerate(graphs)] if with_x[0] else None
    sizes = torch.tensor([_count_nodes(number, graph) for number, graph in enumerate(graphs)])
    starts = sizes.cumsum(0) - sizes
    edges = [
        _edges(number, graph, size) + start
        for number, (graph, size, start) in enumerate(zip(graphs, sizes.tolist(), starts.tolist()))
    ]
    labels = [_label(number, graph) for number, graph in enumerate(graphs)]
    x = None
    if features is not None:
        widths = {part.shape[1] for part in features}
        require(len(widths) == 1, f"x must have as many columns in every graph, got {sorted(widths)}.")
        require(
            len({part.dtype for part in features}) == 1, "x must be floating in every graph, or integer in every graph."
        )
        x = torch.cat(features)
    shape = (1, 1) if isinstance(graphs[0].y, Tensor) and graphs[0].y.dim() == 2 else (1,)
    return GraphSet(x, torch.cat(edges, 1), sizes, torch.tensor(labels), shape)


def _features(number: int, graph: Any) -> Tensor:
    x = graph.x.detach()
    require(
        x.dim() == 2 and x.shape[1] > 0 and x.layout == torch.strided and not x.is_complex(),
        f"data[{number}].x must be a dense real tensor of shape (nodes, features), got {tuple(x.shape)} of {x.dtype}.",
    )
    if not x.is_floating_point():
        return x.to("cpu", torch.int64)
    x = x.to("cpu", torch.float32)
    require(bool(x.isfinite().all()), f"data[{number}].x has a NaN or infinite number; replace it first.")
    largest = float(x.abs().max()) if x.numel() else 0.0
    require(
        largest <= _LARGEST,
        f"data[{number}].x must hold numbers up to {_LARGEST:g}, whose square float32 holds, got {largest:g}; rescale x.",
    )
    return x


def _count_nodes(number: int, graph: Any) -> int:
    count = graph.x.shape[0] if isinstance(graph.x, Tensor) else graph.num_nodes
    require(isinstance(count, int) and count > 0, f"data[{number}] has no node; drop graphs without nodes.")
    return int(count)


def _edges(number: int, graph: Any, count: int) -> Tensor:
    edges = graph.edge_index
    require(
        isinstance(edges, Tensor)
        and edges.dim() == 2
        and edges.shape[0] == 2
        and not edges.is_floating_point()
        and not edges.is_complex(),
        f"data[{number}].edge_index must be an integer tensor of shape (2, edges); use an empty one for no edges.",
    )
    edges = edges.detach().to("cpu", torch.int64)
    require(
        edges.numel() == 0 or (int(edges.min()) >= 0 and int(edges.max()) < count),
        f"data[{number}].edge_index must hold node ids from 0 to {count - 1}.",
    )
    return edges


def _label(number: int, graph: Any) -> int:
    y = graph.y
    require(y is not None, f"data[{number}] has no y; every graph needs its class, counted from 0.")
    require(
        isinstance(y, (Tensor, int, float)),
        f"data[{number}].y must be a tensor with one class, got {type(y).__name__}.",
    )
    y = torch.as_tensor(y)
    require(
        y.numel() == 1,
        f"data[{number}].y holds {y.numel()} labels, but a graph may have only one class: of several tasks, as some OGB "
        "datasets have, keep one by y = y[:, [task]] and drop the graphs where it is unknown.",
    )
    value = float(y)
    require(
        value == value and value == int(value) and value >= 0,
        f"data[{number}].y must be a class counted from 0, got {value:g}; renumber the classes, and drop graphs whose label is "
        "unknown.",
    )
    return int(value)


def read_parts(data: Any, split: Splits | None, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Positions of the training, validation and test graphs, each ascending.

    Args:
        data: the dataset; if it has `get_idx_split`, as OGB's do, that is the split where none is given.
        split: {"train": ..., "valid": ..., "test": ...}, each positions or a mask of graphs. Without it a tenth of the graphs
            is for testing and a tenth for validation, as in DosCond (arXiv 2206.07746), at random but with the classes in
            proportion, so that those of few graphs train too.
        labels: (m,) classes.
        seed: of a split that has to be made.
    """
    if split is None and hasattr(data, "get_idx_split"):
        split = data.get_idx_split()
    count = len(labels)
    _check_classes(labels)
    if split is None:
        parts = _random_parts(labels, generator(seed, "graphs split"))
    else:
        require(isinstance(split, Mapping), f"split must be a dict of positions by part, got {type(split).__name__}.")
        unknown = set(split) - {key for keys in _KEYS.values() for key in keys}
        require(not unknown, f"split may have the keys 'train', 'valid' and 'test', got {sorted(map(str, unknown))}.")
        parts = {}
        for name, keys in _KEYS.items():
            given = next((split[key] for key in keys if key in split), None)
            require(given is not None, f"split lacks {keys[-1] if name != 'validation' else 'valid'!r}.")
            parts[name] = _positions(name, given, count)
    owners = torch.zeros(count, dtype=torch.int64)
    for name in PARTS:
        require(len(parts[name]) > 0, f"The {name} part of the split is empty.")
        owners[parts[name]] += 1
    require(
        int(owners.max()) == 1, f"The split puts graph {int(owners.argmax())} into two parts; they must be disjoint."
    )
    supply = torch.bincount(labels)
    missing = (torch.bincount(labels[parts["train"]], minlength=len(supply)) == 0).nonzero().flatten().tolist()
    if missing:
        label = missing[0]
        raise InputError(
            f"Class {label} has no training graph ({int(supply[label])} in all), so no summary can hold it; move one into the "
            "train part of the split, or drop the class and number the others without gaps."
        )
    return {name: parts[name].sort().values for name in PARTS}


def _check_classes(labels: Tensor) -> None:
    known = labels.unique()
    require(len(known) >= 2, "All graphs have one class, so there is nothing to classify.")
    gaps = (known != torch.arange(len(known))).nonzero().flatten().tolist()
    if gaps:
        raise InputError(
            f"Classes go up to {int(known[-1])}, but no graph has class {gaps[0]}; number them without gaps."
        )


def _random_parts(labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    count = len(labels)
    held = max(1, round(_SHARE * count))
    require(count >= 2 * held + 2, f"{count} graphs are too few to be split; give at least 4, or a split.")
    order = torch.randperm(count, generator=rng)
    ordered = order[labels[order].argsort(stable=True)]
    # The first graph of each class trains. Evenly spaced ones of the others, in order of classes, have them in proportion.
    share = torch.bincount(labels)
    first = torch.zeros(count, dtype=torch.bool)
    first[share.cumsum(0) - share] = True
    free = ordered[~first]
    require(
        len(free) >= 2 * held,
        f"{count} graphs of {len(share)} classes are too few to be split; give a split.",
    )
    places = (torch.arange(2 * held) * 2 + 1) * len(free) // (4 * held)
    taken = free[places]
    rest = torch.ones(count, dtype=torch.bool)
    rest[taken] = False
    return {"test": taken[::2], "validation": taken[1::2], "train": rest.nonzero().flatten()}


def _positions(name: str, given: Any, count: int) -> Tensor:
    found = torch.as_tensor(given).detach().cpu()
    if found.dtype == torch.bool:
        require(found.shape == (count,), f"The {name} mask of the split must have the length {count}, one a graph.")
        return found.nonzero().flatten()
    require(
        found.dim() == 1 and not found.is_floating_point() and not found.is_complex(),
        f"The {name} part of the split must be positions of graphs or a mask, got {tuple(found.shape)} of {found.dtype}.",
    )
    require(
        found.numel() == 0 or (int(found.min()) >= 0 and int(found.max()) < count),
        f"The {name} part of the split must hold positions from 0 to {count - 1}.",
    )
    require(len(found.unique()) == len(found), f"The {name} part of the split names a graph twice.")
    return found.long()
