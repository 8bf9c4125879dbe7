"""The sets of graphs that users hold: lists of PyG `Data`, and their tensors end to end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datastill.errors import load_extra
from datastill.modalities.base import Size
from datastill.modalities.graph_native import stored_size
from datastill.modalities.graphs_data import GraphSet


class StoredGraphs(list[Any]):
    """A list of `Data`, like any other, with the bytes that their x come from.

    Attributes:
        coded: (bytes,) uint8, which decode to the features of all nodes, graph after graph.
    """

    def __init__(self, graphs: list[Any], coded: Tensor) -> None:
        super().__init__(graphs)
        self.coded = coded


def to_list(graphs: GraphSet, index: Tensor | None = None) -> list[Any]:
    """A `torch_geometric.data.Data` with edge_index, y and, where there is one, x for each graph, or those at `index`."""
    make = load_extra("torch_geometric.data", "graphs").Data
    ends = graphs.sizes.cumsum(0)
    order = torch.argsort(graphs.edge_index[1], stable=True) if _mixed(graphs) else None
    edges = graphs.edge_index if order is None else graphs.edge_index[:, order]
    edge_ends = torch.searchsorted(edges[1].contiguous(), ends)  # of one graph after those of another
    found = []
    for number in range(len(graphs)) if index is None else index.tolist():
        first, last = int(ends[number] - graphs.sizes[number]), int(ends[number])
        begin = int(edge_ends[number - 1]) if number else 0
        attributes = {
            "edge_index": edges[:, begin : int(edge_ends[number])] - first,
            "y": graphs.labels[number].reshape(graphs.label_shape).clone(),
        }
        if graphs.x is not None:
            attributes["x"] = graphs.x[first:last].clone()
        found.append(make(**attributes, num_nodes=last - first) if graphs.x is None else make(**attributes))
    return found


def _mixed(graphs: GraphSet) -> bool:
    """Whether the edges of different graphs are interleaved."""
    owner = torch.repeat_interleave(torch.arange(len(graphs)), graphs.sizes)[graphs.edge_index[1]]
    return bool((owner.diff() < 0).any())


def size_of(graphs: GraphSet, coded: Tensor | None = None) -> Size:
    """Graphs, and bytes of features, edges and labels; features are `coded`, or count as dense or as sparse rows, the lesser."""
    tensors = {
        "x": torch.empty(0, 1) if graphs.x is None else graphs.x,
        "edge_index": graphs.edge_index,
        "y": graphs.labels,
        **({} if coded is None else {"coded": coded}),
    }
    return Size(len(graphs), stored_size(tensors).nbytes)


def tensors_of_set(graphs: GraphSet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a set and, JSON-able, the shape of a label."""
    tensors = {"edge_index": graphs.edge_index, "sizes": graphs.sizes, "y": graphs.labels}
    if graphs.x is not None:
        tensors["x"] = graphs.x
    return {name: value.contiguous() for name, value in tensors.items()}, {"label_shape": list(graphs.label_shape)}


def set_of_tensors(tensors: dict[str, Tensor], meta: dict[str, Any]) -> GraphSet:
    """The inverse of `tensors_of_set`."""
    shape = tuple(meta["label_shape"])
    return GraphSet(tensors.get("x"), tensors["edge_index"], tensors["sizes"], tensors["y"], shape)
