"""Sets of graphs whose features are stored by a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import artifact, condense_graphs
from datastill.errors import InputError
from datastill.modalities.graphs import GraphsModality
from datastill.modalities.graphs_native import StoredGraphs
from datastill.rng import generator

geometric = pytest.importorskip("torch_geometric.data")


def data(*, integers: bool = False) -> list[object]:
    rng = generator("coded graphs")
    found = []
    for number in range(60):
        label, nodes = number % 2, 3 + number % 4
        x = torch.randn(nodes, 20, generator=rng) + label
        edges = torch.randint(nodes, (2, 2 * nodes), generator=rng)
        found.append(geometric.Data(x=(x > 0).long() if integers else x, edge_index=edges, y=torch.tensor([label])))
    return found


@pytest.mark.parametrize("codec", ["float16", "int8", "int4-entropy", "int2"])
def test_what_learners_read_is_what_comes_back(codec: str) -> None:
    modality = GraphsModality(data())
    summary = modality.summary([2, 2], rng=generator("summary"), codec=codec, adjacency="none")
    exported = summary.export()
    assert isinstance(exported, StoredGraphs)
    assert torch.equal(summary().inputs.features, modality.read(exported).inputs.features)
    again: Any = modality.unpack(*modality.pack(exported))
    assert all(torch.equal(a.x, b.x) for a, b in zip(again, exported, strict=True))
    assert torch.equal(again.coded, exported.coded)
    full = modality.size(list(exported)).nbytes
    nodes = sum(graph.num_nodes for graph in exported)
    assert modality.size(exported).nbytes == full - nodes * 20 * 4 + len(exported.coded)


def test_a_run_is_stored_and_loaded_and_keeps_its_budget(tmp_path: Path) -> None:
    # 12 graphs of 4 or so nodes and 20 numbers: their features alone are some 4,000 bytes in full.
    small = condense_graphs(data(), per_class=6, nbytes=3000, steps=2, out=tmp_path / "run", progress=False)
    assert isinstance(small, StoredGraphs)
    assert len(small) == 12
    loaded = artifact.load(tmp_path / "run")
    assert loaded.nbytes == GraphsModality(data()).size(small).nbytes
    assert torch.equal(loaded.dataset.coded, small.coded)
    more = condense_graphs.job(data(), nbytes=3000, codec="int4", progress=False)
    fewer = condense_graphs.job(data(), nbytes=3000, progress=False)
    assert sum(more.counts) > sum(fewer.counts)


def test_categories_have_no_precision() -> None:
    with pytest.raises(InputError, match="codec='int4' is for features that are numbers"):
        condense_graphs(data(integers=True), per_class=2, codec="int4", progress=False)
    with pytest.raises(InputError, match="too little for 4 points"):
        condense_graphs(data(integers=True), per_class=2, nbytes=50, progress=False)
