"""The graphs that users hold: a PyG `Data` of a few plain tensors, and what storing it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datastill.errors import load_extra, require
from datastill.modalities.base import Size

FIELDS = ("x", "edge_index", "edge_weight", "y", "train_mask")


def to_data(tensors: dict[str, Tensor]) -> Any:
    """A `torch_geometric.data.Data` with these attributes."""
    return load_extra("torch_geometric.data", "graphs").Data(**tensors)


def from_data(dataset: Any) -> dict[str, Tensor]:
    """The `FIELDS` that a `Data` has, of which x, edge_index and y are a must."""
    found = {name: getattr(dataset, name, None) for name in FIELDS}
    for name in ("x", "edge_index", "y"):
        require(
            isinstance(found[name], Tensor),
            f"A graph dataset must have the tensor {name}; got a {type(dataset).__name__} without it.",
        )
    return {name: value.detach() for name, value in found.items() if value is not None}


def stored_size(tensors: dict[str, Tensor]) -> Size:
    """Nodes, and bytes of features, edges and labels; features count as dense or as sparse rows, whichever is less."""
    x = tensors["x"]
    dense = x.numel() * x.element_size()
    entries = int(torch.count_nonzero(x))
    sparse = entries * (x.element_size() + 4) + (len(x) + 1) * 8  # value and int32 column of each, and where rows begin
    others = [tensors[name] for name in ("edge_index", "edge_weight", "y") if name in tensors]
    return Size(len(x), min(dense, sparse) + sum(value.numel() * value.element_size() for value in others))
