"""A target dataset of nodes with a class each: its graph, and the learners and kernels that read it.

Everything constant about the real graph is computed once: the normalised operator A = D^-1/2 (A + I) D^-1/2, and A^k X.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from datastill import memory
from datastill.backbones.base import Learner
from datastill.backbones.graph import GCN, SGC, NodeMLP
from datastill.backbones.graph_layers import LAYERED, LayeredGNN
from datastill.backbones.hop_store import HopStore
from datastill.backbones.nodes import Hops, Links, Nodes, normalised
from datastill.backbones.training import Protocol
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.base import Batch, Size, Split
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.graph_data import SplitChoice, read_graph
from datastill.modalities.graph_native import stored_size
from datastill.modalities.graph_protocols import PUBLISHED
from datastill.modalities.graph_teacher import teach
from datastill.rng import generator

_CHUNK = 16384  # held-out nodes scored at a time, at most
_KEPT = 2**28  # bytes in the features of held-out nodes whose batches are kept, at most


class GraphTarget(ClassificationModality):
    """Node classification, with what learns from a graph; `GraphModality` has the summaries.

    Args:
        data: a `torch_geometric.data.Data`; see `read_graph` for what is read and what is made where it is missing. It
            is not changed. Directed edges carry values from source to target only.
        split: which column of masks of shape (n, splits), or a dict of node ids or masks by part.
        setting: "transductive" (all parts are on one graph) or "inductive" (each part is on the graph of its own nodes
            alone, so that training never sees the others).
        unlabelled: what becomes of the nodes without a training label. "ignore": they pass on their features, no more.
            "teach": they join the target dataset, with the classes that a kernel machine gives them which learns from the
            training labels (see `graph_teacher.teach`). Labels of validation and test nodes are not used for it, save
            that the machine's receptive field and ridge are chosen by validation. Transductive only.
        cache: folder for the propagated features of the graph, which are then mapped from files instead of kept in memory. A
            later run on the same graph finds them there. For graphs whose features fill memory; on a GPU they stay there.
        hops: K >= 0 of the propagation A^K X that kernels, the SGC and two of the initialisations use.
        hidden: units of the GCN and the MLP.
        dropout: of the GCN and the MLP in training.
        seed: of the splits that have to be made.

    Raises:
        InputError: for an argument that is not allowed, or a `data` in which anything is missing or wrong.
    """

    learners = ("gcn", "sgc", "mlp", *LAYERED)
    published = PUBLISHED
    on_device = True

    def __init__(
        self,
        data: Any,
        *,
        split: SplitChoice = 0,
        setting: Literal["transductive", "inductive"] = "transductive",
        unlabelled: Literal["ignore", "teach"] = "ignore",
        cache: str | Path | None = None,
        hops: int = 2,
        hidden: int = 256,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        if setting not in ("transductive", "inductive"):
            raise unknown_name("setting", setting, ("transductive", "inductive"))
        if unlabelled not in ("ignore", "teach"):
            raise unknown_name("choice of unlabelled", unlabelled, ("ignore", "teach"))
        require(
            unlabelled == "ignore" or setting == "transductive",
            "unlabelled='teach' needs setting='transductive': in the inductive one training sees no unlabelled nodes.",
        )
        self.hops = check_count("hops", hops, least=0)
        self.hidden = check_count("hidden", hidden)
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout!r}.")
        self.dropout = dropout
        self.setting = setting
        self.unlabelled = unlabelled
        self.graph = read_graph(data, split, seed)
        require(
            not self.graph.structural or setting == "transductive",
            "setting='inductive' needs data.x: structural features are made of the whole graph, which training must not see.",
        )
        require(
            cache is None or isinstance(cache, str | Path),
            f"cache must be the path of a folder, or None, got {cache!r}.",
        )
        self.cache = None if cache is None else Path(cache)
        self._parts = dict.fromkeys(self.graph.parts, self.graph)
        if setting == "inductive":
            self._parts = {part: self.graph.induced(nodes) for part, nodes in self.graph.parts.items()}
        train = self._parts["train"]
        self._views: dict[str, Nodes] = {}
        self._held: dict[str, list[Batch]] = {}
        self._last: tuple[Tensor, Hops, Tensor] | None = None
        self._seed = seed
        view, nodes = self._view("train"), train.parts["train"]
        self._labelled = _by_class(nodes, train.labels, train.num_classes)
        self.scale = float(view.at(nodes).propagated(self.hops).square().mean().sqrt()) or 1.0

    @cached_property
    def _target(self) -> tuple[Tensor, list[Tensor]]:
        """The class of every node, as far as it is known, and the nodes of each class in the target dataset."""
        train = self._parts["train"]
        if self.unlabelled == "ignore":
            return train.labels, self._labelled
        rng = generator(self._seed, "graph teacher")
        classes = teach(self._view("train"), train.labels, train.parts["train"], train.parts["validation"], rng)
        return classes, _by_class(torch.arange(len(classes)), classes, train.num_classes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Hand out batches and learners on `device` and in `dtype` from now on. Returns self."""
        before = self.device, self.dtype
        super().to(device, dtype)
        if (self.device, self.dtype) != before:
            self._views, self._held, self._last = {}, {}, None
        return self

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    def group_sizes(self) -> list[int]:
        """Nodes of each class that `real` gives: the training nodes and, with "teach", all others too."""
        return [len(members) for members in self._target[1]]

    @property
    def num_groups(self) -> int:
        """Classes."""
        return self.graph.num_classes

    @property
    def num_nodes(self) -> int:
        """Nodes of the whole graph, labelled or not."""
        return len(self.graph.features)

    def _view(self, part: str) -> Nodes:
        """All nodes of the graph that `part` is on, with its cache of propagated features."""
        if self.setting == "transductive":
            part = "train"
        if part not in self._views:
            graph = self._parts[part]
            store = None if self.cache is None else HopStore(self.cache, f"{graph.fingerprint()[:16]}-{self.dtype}")
            self._views[part] = self._constant(graph.features, graph.edge_index, graph.edge_weight, store)
        return self._views[part]

    def _constant(
        self, features: Tensor, edge_index: Tensor, edge_weight: Tensor | None, store: HopStore | None = None
    ) -> Nodes:
        """All nodes of a graph, on `device`. Loops alone are no structure: A is I then."""
        adjacency = links = None
        if bool((edge_index[0] != edge_index[1]).any()):
            adjacency = normalised(edge_index, edge_weight, len(features))
            links = Links(edge_index, edge_weight)
        rows = torch.empty(0, dtype=torch.int64)
        moved = Batch(Nodes(features, adjacency, rows, links=links), None, rows).to(self.device, self.dtype).inputs
        return Nodes.constant(moved.features, moved.adjacency, moved.links, store)

    def _batch(self, part: str, nodes: Tensor, classes: Tensor) -> Batch:
        labels = classes[nodes].to(self.device)
        return Batch(self._view(part).at(nodes.to(self.device)), labels, labels)

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        """Nodes of the target dataset, with the whole graph behind them."""
        chosen = []
        classes, by_class = self._target
        for group in groups:
            members = by_class[group]
            if size is not None and size < len(members):
                members = members[torch.randperm(len(members), generator=rng)[:size]]
            chosen.append(members)
        return self._batch("train", torch.cat(chosen), classes)

    def held_out(self, split: Split) -> Iterable[Batch]:
        """Nodes of a held-out part, 16384 at a time, or as many as a learner's features of them fit into memory."""
        nodes = self._parts[split].parts[split]
        if len(nodes) == 0:
            raise InputError(f"This graph has no {split} nodes: give data a mask or split that has some.")
        if split not in self._held:
            width, bytes_each = self.graph.features.shape[1], self.dtype.itemsize
            size = memory.chunk(2 * bytes_each * (width + self.hidden), self.device, most=_CHUNK)
            batches = (self._batch(split, chunk, self._parts[split].labels) for chunk in nodes.split(size))
            if not memory.fits(bytes_each * width * len(nodes), self.device, most=_KEPT):
                return batches
            # A training scores them dozens of times, and they remember what they receive.
            self._held[split] = list(batches)
        return self._held[split]

    def fingerprint(self) -> str:
        """A sha256 hex digest of the features, edges, labels and parts."""
        return self.graph.fingerprint()

    def identity(self) -> dict[str, str]:
        """What nodes learners read, and which of them are distilled."""
        return {"setting": self.setting, "unlabelled": self.unlabelled}

    def full(self) -> Batch:
        """The training nodes, with their own labels."""
        return self._batch("train", torch.cat(self._labelled), self._parts["train"].labels)

    @property
    def full_sizes(self) -> list[int]:
        """Training nodes of each class."""
        return [len(members) for members in self._labelled]

    def full_size(self) -> Size:
        """The nodes of `group_sizes`, and the bytes of the whole graph behind them, unlabelled nodes included."""
        graph = self._parts["train"]
        tensors = {"x": graph.features, "edge_index": graph.edge_index, "y": graph.labels}
        if graph.edge_weight is not None:
            tensors["edge_weight"] = graph.edge_weight
        return Size(sum(self.group_sizes), stored_size(tensors).nbytes)

    # --- learners and kernels -----------------------------------------------------------------------------------------

    def build(self, name: str) -> Learner:
        """By name: "gcn" (two layers), "sgc" (linear on A^hops X), "mlp" (two layers, no propagation), or two of PyG's
        layers: "sage", "appnp", "cheb", "gat", "transformer" (see `LayeredGNN`)."""
        width, classes = self.graph.features.shape[1], self.graph.num_classes
        if name in LAYERED:
            return LayeredGNN(name, width, classes, self.hidden, self.dropout)
        if name == "sgc":
            return SGC(width, classes, self.hops)
        kind = GCN if name == "gcn" else NodeMLP
        return kind(width, classes, self.hidden, self.dropout)

    def vectors(self, inputs: Nodes) -> Tensor:
        """A^hops X, divided by one number that makes its mean square over the training nodes 1."""
        if inputs.hops is None:
            return inputs.propagated(self.hops) / self.scale
        # An objective that takes all real nodes hands over the same ones at every step; copying them would dominate it.
        if self._last is None or self._last[0] is not inputs.rows or self._last[1] is not inputs.hops:
            self._last = inputs.rows, inputs.hops, inputs.hops(self.hops)[inputs.rows].div_(self.scale)
        return self._last[2]

    _NETWORK = Protocol(300, "adam", 0.01, weight_decay=5e-4, batch_size=None, schedule="drop", validate_every=10)
    _LINEAR = dataclasses.replace(_NETWORK, lr=0.1, weight_decay=5e-5)

    def protocol(self, learner: str) -> Protocol:
        """Full batches, Adam, 300 steps; the best of every tenth on the validation nodes is kept.

        Learning rate 0.01, from half way 0.001, L2 penalty 5e-4, which is GCond's protocol at half its length; "sgc",
        which is linear, has 0.1, then 0.01, and 5e-5.
        """
        return self._LINEAR if learner == "sgc" else self._NETWORK


def _by_class(nodes: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    own = labels[nodes]
    return list(nodes[own.argsort(stable=True)].split(own.bincount(minlength=classes).tolist()))
