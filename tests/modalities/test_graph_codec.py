"""Graphs whose features are stored by a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from datastill import artifact, condense_graph
from datastill.checks import check_resume
from datastill.errors import ArtifactError, InputError
from datastill.modalities.codec import NAMES, Codec
from datastill.modalities.graph import GraphModality
from datastill.modalities.graph_native import decoded_features, encoded_features
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.rng import generator

geometric = pytest.importorskip("torch_geometric.data")


def data(width: int = 80) -> object:
    rng = generator("coded graph")
    y = torch.arange(60) % 3
    x = torch.randn(60, width, generator=rng) + 2 * torch.eye(3, width)[y]
    edges = torch.randint(60, (2, 200), generator=rng)
    masks = {f"{part}_mask": torch.arange(60) % 5 == number for number, part in ((3, "val"), (4, "test"))}
    return geometric.Data(x=x, edge_index=edges, y=y, train_mask=torch.arange(60) % 5 < 3, **masks)


@pytest.mark.parametrize("name", NAMES)
def test_what_learners_read_is_what_comes_back(name: str) -> None:
    modality = GraphModality(data())
    summary = modality.summary([2, 2, 2], rng=generator("summary"), codec=name)
    exported = summary.export()
    assert torch.equal(summary().inputs.features, modality.read(exported).inputs.features)
    tensors, meta = modality.pack(exported)
    assert "x" not in tensors
    assert torch.equal(modality.unpack(tensors, meta).x, exported.x)
    assert modality.size(exported).nbytes == len(exported.coded) + 6 * 16 + 6 * 8
    if name == "int4":  # half a byte each, four for the least value and the step of each node, one for the codec
        assert len(exported.coded) == 6 * (40 + 4) + 1
    if name == "int2":
        assert all(len(np.unique(row)) <= 4 for row in exported.x.numpy())


def test_the_gradient_passes_straight_through() -> None:
    modality = GraphModality(data())
    summary = modality.summary([2, 2, 2], rng=generator("summary"), codec="int4")
    weights = torch.randn(6, 80, generator=generator("weights"))
    (summary().inputs.features * weights).sum().backward()
    torch.testing.assert_close(summary.get_parameter("features").grad, weights * modality.scale)


@pytest.mark.parametrize("adjacency", ["none", "learned"])
def test_a_run_is_stored_loaded_and_resumed(adjacency: Literal["none", "learned"], tmp_path: Path) -> None:
    small = condense_graph(
        data(), nodes=9, adjacency=adjacency, codec="int8-entropy", steps=3, out=tmp_path / "run", progress=False
    )
    loaded = artifact.load(tmp_path / "run")
    assert torch.equal(loaded.dataset.x, small.x)
    assert torch.equal(loaded.dataset.coded, small.coded)
    assert loaded.nbytes == GraphModality(data()).size(small).nbytes
    if adjacency == "none":
        check_resume(GraphModality(data()), lambda: KernelRidge(ridge=0.1, real_size=None), steps=4, codec="int4")


def test_budgets_in_bytes() -> None:
    counts = {}
    for codec in ("float32", "int8", "int4-entropy"):
        job = condense_graph.job(data(), nbytes=2500, codec=codec, steps=2, progress=False)
        assert job.modality.size(job.run().export()).nbytes <= 2500
        counts[codec] = sum(job.counts)
    assert counts["float32"] < counts["int8"] < counts["int4-entropy"]
    chosen = [
        condense_graph.job(data(), nodes=10, nbytes=nbytes, progress=False).options.get("codec")
        for nbytes in (3440, 3439, 1500, 900, 500)
    ]
    assert chosen == [None, "float16-entropy", "int8-entropy", "int4-entropy", "int2-entropy"]
    with pytest.raises(InputError, match=r"too little for 10 points .* even by codec 'int2-entropy'"):
        condense_graph.job(data(), nodes=10, nbytes=300, progress=False)
    with pytest.raises(InputError, match="Unknown codec 'int3'"):
        condense_graph(data(), nodes=10, codec="int3", progress=False)


def test_damaged_bytes_are_refused() -> None:
    coded = encoded_features(Codec("int8"), torch.randn(3, 70, generator=generator("x")))
    for damaged in (coded[:0], coded[:-1], torch.cat([torch.tensor([255], dtype=torch.uint8), coded[1:]])):
        with pytest.raises(ArtifactError, match="not as datastill writes them"):
            decoded_features(damaged, (3, 70))
