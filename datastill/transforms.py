"""PyG transforms, which compose with all others: `Compose([NormalizeFeatures(), CondenseGraph(nodes=35)])`.

Importing this module loads torch-geometric; nothing else of datastill does so before it is given a graph.
"""

from __future__ import annotations

import inspect
from typing import Any

from datastill.condense.graph import condense_graph
from datastill.errors import load_extra, unknown_name
from datastill.modalities.graph_data import count_nodes, read_edges
from datastill.modalities.graph_structural import structural_features

load_extra("torch_geometric.transforms", "graphs")
from torch_geometric.transforms import BaseTransform  # noqa: E402 - the line before says what to install


class CondenseGraph(BaseTransform):  # type: ignore[misc]
    """`condense_graph` as a transform: a `Data` with classes in, the condensed `Data` out.

    Args:
        options: of `condense_graph`, by name; `progress` is off unless it is given.

    Raises:
        InputError: for an option that `condense_graph` does not have; when called, as `condense_graph` does.
    """

    def __init__(self, **options: Any) -> None:
        known = [name for name in inspect.signature(condense_graph).parameters if name != "data"]
        for name in options:
            if name not in known:
                raise unknown_name("option of CondenseGraph", name, known)
        self.options = options

    def forward(self, data: Any) -> Any:
        """The condensed graph."""
        return condense_graph(data, **{"progress": False, **self.options})

    def __repr__(self) -> str:
        return f"CondenseGraph({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class StructuralFeatures(BaseTransform):  # type: ignore[misc]
    """The features that `condense_graph` gives to a graph without `x`: degrees and a spectral embedding of its edges.

    They take the place of `x`. See `datastill.modalities.graph_structural.structural_features`.
    """

    def forward(self, data: Any) -> Any:
        """The graph with `x` of shape (nodes, 2 + positions)."""
        count = count_nodes(data)
        data.x = structural_features(*read_edges(data, count), count).to(data.edge_index.device)
        return data
