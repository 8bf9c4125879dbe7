"""The graphs that users hold: a PyG `Data` of a few plain tensors, and what storing it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datastill.errors import ArtifactError, load_extra, require
from datastill.modalities.base import Size
from datastill.modalities.codec import NAMES, Codec

FIELDS = ("x", "edge_index", "edge_weight", "y", "train_mask", "coded")


def encoded_features(codec: Codec, features: Tensor) -> Tensor:
    """Features (n, d) as bytes (uint8), the first of which names the codec."""
    data = bytes([NAMES.index(codec.name)]) + codec.encode(features)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def without_zeros(graph: Any) -> Any:
    """`graph`, changed so that no feature that is a number is zero: zeros of a beginning, which may be stored for nothing, do not
    stay zeros when they are optimised."""
    if graph.x is not None and graph.x.is_floating_point():
        graph.x = torch.ones_like(graph.x)
    return graph


def decoded_features(coded: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The features, float32 of `shape`, of what `encoded_features` gave.

    Raises:
        ArtifactError: for anything else.
    """
    data = coded.cpu().numpy().tobytes()
    if not data or data[0] >= len(NAMES):
        raise ArtifactError("Stored features are cut off, or are not as datastill writes them.")
    return Codec(NAMES[data[0]]).decode(data[1:], shape)


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
    """Nodes, and bytes of features, edges and labels; features are coded, or count as dense or as sparse rows, the lesser."""
    x = tensors["x"]
    dense = x.numel() * x.element_size()
    entries = int(torch.count_nonzero(x))
    sparse = entries * (x.element_size() + 4) + (len(x) + 1) * 8  # value and int32 column of each, and where rows begin
    features = len(tensors["coded"]) if "coded" in tensors else min(dense, sparse)
    others = [tensors[name] for name in ("edge_index", "edge_weight", "y") if name in tensors]
    return Size(len(x), features + sum(value.numel() * value.element_size() for value in others))
