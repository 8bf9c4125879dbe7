"""PyG transforms: they compose, they print, they leave their input as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datastill.errors import InputError

pyg = pytest.importorskip("torch_geometric.data")
T = pytest.importorskip("torch_geometric.transforms")
nn = pytest.importorskip("torch_geometric.nn")

from datastill.condense.graph import condense_graph  # noqa: E402
from datastill.transforms import CondenseGraph, StructuralFeatures  # noqa: E402


def communities(nodes: int = 120, seed: int = 0) -> Any:
    """Two groups of nodes without features, with many edges inside and few between; two nodes are alone."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % 2
    chance = torch.where(y[:, None] == y[None], 0.15, 0.02)
    upper = (torch.rand(nodes, nodes, generator=rng) < chance).triu(1)
    upper[:, -2:] = False
    edges = upper.nonzero().T
    place = torch.arange(nodes)
    return pyg.Data(
        edge_index=torch.cat([edges, edges.flip(0)], 1),
        y=y,
        train_mask=place < 40,
        val_mask=(place >= 40) & (place < 80),
        test_mask=place >= 80,
    )


def test_condensing_composes_and_is_the_function() -> None:
    data = StructuralFeatures()(communities())
    pipeline = T.Compose([T.NormalizeFeatures(), CondenseGraph(per_class=2, steps=3, seed=1)])
    small = pipeline(data)
    normalised = T.NormalizeFeatures()(data.clone())
    expected = condense_graph(normalised, per_class=2, steps=3, seed=1, progress=False)
    assert torch.equal(small.x, expected.x)
    assert small.num_nodes == 4
    assert data.num_nodes == 120
    assert isinstance(CondenseGraph(nodes=4), T.BaseTransform)
    assert repr(CondenseGraph(nodes=4, recipe="gcond")) == "CondenseGraph(nodes=4, recipe='gcond')"
    with pytest.raises(InputError, match="Did you mean 'ratio'"):
        CondenseGraph(ration=0.1)


def test_a_graph_without_features_is_condensed_by_structural_ones() -> None:
    data = communities()
    with pytest.warns(UserWarning, match="StructuralFeatures"):
        small = condense_graph(data, per_class=3, progress=False)
    assert data.x is None
    whole = StructuralFeatures()(data)
    assert data.x is None
    assert small.x.shape[1] == whole.x.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.GCN(whole.num_features, 16, 2, 2)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(small.x, small.edge_index), small.y).backward()
            optimizer.step()
    right = net(whole.x, whole.edge_index).argmax(1) == whole.y
    assert float(right[whole.test_mask].float().mean()) > 0.9
    with pytest.raises(InputError, match=r"needs data\.x"), pytest.warns(UserWarning, match="structural"):
        condense_graph(data, per_class=3, setting="inductive", progress=False)
