"""Reads and checks a PyG `Data`: features, edges, labels, and who trains, validates and tests."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from datastill.errors import InputError, load_extra, require
from datastill.modalities.graph_structural import structural_features
from datastill.rng import generator

SplitChoice: TypeAlias = "int | Mapping[str, Tensor]"
PARTS = ("train", "validation", "test")
_MASKS = {"train": "train_mask", "validation": "val_mask", "test": "test_mask"}
_KEYS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_LARGEST = 1e15  # and its inverse, of the largest feature: their squares are still float32 numbers
# Shares of the labelled nodes of each class where a graph brings no split, and of the training nodes where it has no
# validation nodes.
_VALIDATION_SHARE, _TEST_SHARE, _SPLIT_OFF = 0.2, 0.2, 0.2


@dataclass(frozen=True)
class GraphData:
    """A graph whose nodes are classified.

    Attributes:
        features: (n, d) float32.
        edge_index: (2, edges) int64, sources and targets.
        edge_weight: (edges,) float32, at least 0, or None.
        labels: (n,) int64, below 0 where unknown.
        parts: "train", "validation" and "test", each the sorted ids of its nodes; disjoint, "test" may be empty.
        num_classes: classes, every one of which has a training node.
        structural: whether the features were made of the edges, because the graph had none.
    """

    features: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    labels: Tensor
    parts: dict[str, Tensor]
    num_classes: int
    structural: bool = False

    def induced(self, nodes: Tensor) -> GraphData:
        """The graph of `nodes` alone, renumbered, with the edges among them."""
        position = torch.full((len(self.features),), -1)
        position[nodes] = torch.arange(len(nodes))
        inside = position >= 0
        kept = inside[self.edge_index[0]] & inside[self.edge_index[1]]
        parts = {name: position[ids][position[ids] >= 0] for name, ids in self.parts.items()}
        weight = None if self.edge_weight is None else self.edge_weight[kept]
        return replace(
            self,
            features=self.features[nodes],
            edge_index=position[self.edge_index[:, kept]],
            edge_weight=weight,
            labels=self.labels[nodes],
            parts=parts,
        )

    def fingerprint(self) -> str:
        """A sha256 hex digest of everything that distillation reads."""
        digest = hashlib.sha256()
        tensors = {"features": self.features, "edge_index": self.edge_index, "labels": self.labels, **self.parts}
        if self.edge_weight is not None:
            tensors["edge_weight"] = self.edge_weight
        for name in sorted(tensors):
            array = tensors[name].contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.data)
        return digest.hexdigest()


def read_graph(data: Any, split: SplitChoice = 0, seed: int = 0) -> GraphData:
    """Check a PyG `Data` and take what node classification needs; `data` is left as it is.

    Read are `x`, `edge_index` and `edge_weight` (if any) or `adj_t`, `y`, and `train_mask`, `val_mask`, `test_mask`, each boolean
    (n,), boolean (n, splits), or integer ids of nodes. What is missing is made: without a training mask the labelled
    nodes are split 60/20/20 in each class; without a validation mask a fifth of the training nodes of each class is set
    apart for it (classes of one node keep it for training); without a test mask the other labelled nodes are the test
    nodes. Without `x` the nodes get `structural_features`, and a warning says so, because whoever trains on the summary
    has to give them to the real graph too (`datastill.transforms.StructuralFeatures`). `edge_attr` is not read: several
    numbers an edge are no weight; put one of them into `edge_weight`.

    Args:
        data: a `torch_geometric.data.Data`.
        split: which column of masks of shape (n, splits); or ids or masks of nodes by name, {"train": ..., "valid":
            ..., "test": ...}, as OGB's `get_idx_split` gives them, which then take the place of the masks in `data`.
        seed: of the splits that have to be made.

    Raises:
        InputError: if anything in `data` is missing or wrong.
    """
    _check_kind(data)
    features = None if data.x is None else _features(data.x)
    count = count_nodes(data) if features is None else len(features)
    edge_index, edge_weight = read_edges(data, count)
    labels = _labels(data, count)
    given = _given_parts(data, split, count)
    for name, nodes in given.items():
        unknown = nodes[labels[nodes] < 0]
        if len(unknown):
            raise InputError(
                f"Node {int(unknown[0])} is in the {name} part but has the label {int(labels[unknown[0]])}; labels "
                f"below 0 mean unknown and are allowed only outside of the masks."
            )
    parts = _complete(given, labels, seed)
    num_classes = _count_classes(labels, parts)
    structural = features is None
    if features is None:
        warnings.warn(
            "data.x is missing, so nodes get structural features (degrees and a spectral embedding). A model trained on the "
            "summary reads the same ones of the real graph: apply datastill.transforms.StructuralFeatures() to it.",
            stacklevel=2,
        )
        features = structural_features(edge_index, edge_weight, count)
    return GraphData(features, edge_index, edge_weight, labels, parts, num_classes, structural)


def _check_kind(data: Any) -> None:
    kind = load_extra("torch_geometric.data", "graphs").Data
    if not isinstance(data, kind):
        hint = " Pass one graph of it, dataset[0]." if hasattr(data, "__getitem__") and hasattr(data, "__len__") else ""
        raise InputError(f"data must be a torch_geometric.data.Data, got {type(data).__name__}.{hint}")


def count_nodes(data: Any) -> int:
    """Nodes of a `Data` without `x`: as it says itself, or as many as have a label, else all that its edges name."""
    if "num_nodes" not in data and isinstance(data.y, Tensor) and data.y.dim() > 0:
        return len(data.y)
    return int(data.num_nodes)


def _features(features: Any) -> Tensor:
    require(isinstance(features, Tensor), f"data.x must be a tensor or None, got {type(features).__name__}.")
    if features.layout != torch.strided:
        features = features.to_dense()
    require(
        features.dim() == 2 and min(features.shape) > 0,
        f"data.x must have the shape (nodes, features), got {tuple(features.shape)}.",
    )
    require(not features.is_complex(), f"data.x must hold real numbers, got {features.dtype}.")
    features = features.detach().to("cpu", torch.float32)
    low, high = (float(end) for end in features.aminmax())  # NaN where any is
    if not (math.isfinite(low) and math.isfinite(high)):
        node = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise InputError(f"data.x must be finite, but node {node} has a NaN or infinite feature; replace it first.")
    largest = max(-low, high)
    require(
        largest == 0 or 1 / _LARGEST <= largest <= _LARGEST,
        f"data.x must have a largest absolute value between {1 / _LARGEST:g} and {_LARGEST:g}, whose square float32 "
        f"holds, got {largest:g}; rescale it, for example to unit variance.",
    )
    return features


def read_edges(data: Any, count: int) -> tuple[Tensor, Tensor | None]:
    """The edges (2, edges) of a `Data` with `count` nodes, and their weights (edges,) if it has any, checked."""
    edges, weight = data.edge_index, getattr(data, "edge_weight", None)
    if edges is None and getattr(data, "adj_t", None) is not None:
        edges, weight = load_extra("torch_geometric.utils", "graphs").to_edge_index(data.adj_t)
        edges = edges.flip(0)  # adj_t has targets in its rows
    if not isinstance(edges, Tensor):
        raise InputError(
            "data.edge_index is missing: it must be an integer tensor of shape (2, edges); use an empty one for no edges."
        )
    require(
        edges.dim() == 2 and edges.shape[0] == 2 and _is_integer(edges),
        f"data.edge_index must be an integer tensor of shape (2, edges), got {tuple(edges.shape)} of {edges.dtype}.",
    )
    edges = edges.detach().to("cpu", torch.int64)
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= count):
        wrong = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
        raise InputError(
            f"data.edge_index must hold node ids from 0 to {count - 1}, the rows of data.x (or data.y), but has {wrong}."
        )
    if weight is None:
        return edges, None
    require(
        isinstance(weight, Tensor) and weight.numel() == edges.shape[1] and not weight.is_complex(),
        f"data.edge_weight must hold one number for each of the {edges.shape[1]} edges, "
        f"got {tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__}.",
    )
    weight = weight.detach().reshape(-1).to("cpu", torch.float32)
    require(
        bool(torch.isfinite(weight).all()) and bool((weight >= 0).all()),
        "data.edge_weight must be finite and at least 0.",
    )
    return edges, weight


def _labels(data: Any, count: int) -> Tensor:
    labels = data.y
    require(isinstance(labels, Tensor), "data.y is missing: it must hold the class of each node, -1 where unknown.")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    require(
        labels.shape == (count,) and _is_integer(labels),
        f"data.y must hold one integer class for each of the {count} nodes, got {tuple(labels.shape)} of "
        f"{labels.dtype}.",
    )
    return labels.detach().to("cpu", torch.int64)


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _given_parts(data: Any, split: SplitChoice, count: int) -> dict[str, Tensor]:
    if isinstance(split, Mapping):
        unknown = set(split) - {key for keys in _KEYS.values() for key in keys}
        require(not unknown, f"split may have the keys 'train', 'valid' and 'test', got {sorted(map(str, unknown))}.")
        found = {name: next((split[key] for key in keys if key in split), None) for name, keys in _KEYS.items()}
        labels = {name: f"split[{name!r}]" for name in PARTS}
        column = 0
    else:
        require(
            isinstance(split, int) and not isinstance(split, bool),
            f"split must be the number of a mask column, or a dict of node ids, got {split!r}.",
        )
        found = {name: getattr(data, mask, None) for name, mask in _MASKS.items()}
        labels = {name: f"data.{mask}" for name, mask in _MASKS.items()}
        column = split
    parts = {name: _ids(labels[name], mask, column, count) for name, mask in found.items() if mask is not None}
    for name in ("train", "validation"):
        require(name not in parts or len(parts[name]) > 0, f"{labels[name]} selects no node.")
    for i, first in enumerate(PARTS):
        for second in PARTS[i + 1 :]:
            if first in parts and second in parts:
                shared = parts[first][torch.isin(parts[first], parts[second])]
                require(
                    len(shared) == 0,
                    f"{labels[first]} and {labels[second]} share {len(shared)} nodes, for example "
                    f"{int(shared[0]) if len(shared) else ''}; they must be disjoint.",
                )
    return parts


def _ids(label: str, mask: Any, column: int, count: int) -> Tensor:
    require(isinstance(mask, Tensor), f"{label} must be a tensor, got {type(mask).__name__}.")
    if mask.dtype == torch.bool:
        if mask.dim() == 2 and len(mask) == count:
            require(
                0 <= column < mask.shape[1],
                f"split must be from 0 to {mask.shape[1] - 1}, the columns of {label}, got {column}.",
            )
            mask = mask[:, column]
        require(mask.shape == (count,), f"{label} must have the length {count}, got the shape {tuple(mask.shape)}.")
        return mask.cpu().nonzero().squeeze(1)
    require(
        _is_integer(mask) and mask.dim() == 1,
        f"{label} must be a boolean mask or integer ids of nodes, got {tuple(mask.shape)} of {mask.dtype}; convert a "
        f"mask of numbers with .bool().",
    )
    ids = mask.detach().to("cpu", torch.int64)
    if len(ids):
        require(int(ids.min()) >= 0 and int(ids.max()) < count, f"{label} must hold node ids from 0 to {count - 1}.")
        require(
            len(ids) != count or bool((ids.bincount(minlength=count) == 1).all()),
            f"{label} looks like a mask of numbers, whose length is that of the nodes; convert it with .bool().",
        )
    return ids.unique()


def _complete(given: dict[str, Tensor], labels: Tensor, seed: int) -> dict[str, Tensor]:
    free = labels >= 0
    for nodes in given.values():
        free[nodes] = False
    parts = dict(given)
    if "train" not in parts:
        shares = {"validation": _VALIDATION_SHARE, "test": _TEST_SHARE}
        taken = _stratified(free, labels, {name: shares[name] for name in shares if name not in parts}, seed)
        parts.update(taken)
        require(len(parts["train"]) > 0, "data has no labelled node to train on; check data.y and the masks.")
    elif "test" not in parts:
        parts["test"] = free.nonzero().squeeze(1)
    if "validation" not in parts or len(parts["validation"]) == 0:
        mine = torch.zeros_like(free)
        mine[parts["train"]] = True
        parts.update(_stratified(mine, labels, {"validation": _SPLIT_OFF}, seed))
    require(
        len(parts["validation"]) > 0,
        "There are no validation nodes, and no class has two training nodes, so that one could be set apart; "
        "give data a val_mask.",
    )
    return {name: parts[name].sort().values for name in PARTS}


def _stratified(pool: Tensor, labels: Tensor, shares: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Random parts of each class of the pool: each of `shares` gets its own, "train" the rest, at least one node."""
    rng = generator(seed, "graph split")
    parts: dict[str, list[Tensor]] = {name: [] for name in ("train", *shares)}
    members = pool.nonzero().squeeze(1)
    members = members[labels[members].argsort(stable=True)]
    for nodes in members.split(labels[members].unique_consecutive(return_counts=True)[1].tolist()):
        nodes = nodes[torch.randperm(len(nodes), generator=rng)]
        total = len(nodes)
        for name, share in shares.items():
            size = min(len(nodes) - 1, max(1, round(share * total)))
            parts[name].append(nodes[:size])
            nodes = nodes[size:]
        parts["train"].append(nodes)
    return {name: torch.cat(found) if found else torch.empty(0, dtype=torch.int64) for name, found in parts.items()}


def _count_classes(labels: Tensor, parts: dict[str, Tensor]) -> int:
    used = torch.cat([labels[parts[name]] for name in PARTS])
    num_classes = int(used.max()) + 1
    require(num_classes >= 2, "data.y has a single class, so there is nothing to classify.")
    require(
        num_classes <= len(labels),
        f"data.y must hold classes counted from 0, but has {num_classes - 1}; renumber the classes.",
    )
    empty = (labels[parts["train"]].bincount(minlength=num_classes) == 0).nonzero().squeeze(1)
    if len(empty):
        label = int(empty[0])
        held_out = int((used == label).sum())
        raise InputError(
            f"Class {label} has no training node ({held_out} in validation and test), so no summary can hold it; put "
            f"one of its nodes into train_mask, or take its nodes out of the masks, and renumber the classes without gaps."
        )
    return num_classes
