"""The demo: its graph is the nearest-neighbour graph, and its run folder holds what it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import datastill
from datastill.backbones.training import Protocol
from datastill.demo import NEIGHBOURS, demo, neighbour_graph
from datastill.modalities.graph import GraphModality
from datastill.modalities.image import ImageModality
from datastill.sources import load_digits, split_by_class


def test_the_graph_links_nearest_neighbours_and_splits_without_overlap() -> None:
    from sklearn.neighbors import kneighbors_graph

    # Real-valued noise has no ties, so that the neighbours are unique.
    pixels = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(120) % 3
    held = torch.arange(0, 120, 5)
    data = neighbour_graph(pixels, labels, held, seed=0)
    known = kneighbors_graph(pixels.flatten(1).double().numpy(), NEIGHBOURS).toarray()
    found = np.zeros((120, 120))
    found[data.edge_index[0], data.edge_index[1]] = 1
    assert (found == np.maximum(known, known.T)).all()
    assert data.edge_index.shape[1] == found.sum()
    parts = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert (parts.sum(0) == 1).all()
    assert data.test_mask.nonzero().squeeze(1).tolist() == held.tolist()
    assert data.val_mask.sum() == pytest.approx(0.2 * 96, abs=2)


def test_the_demo_prints_one_table_and_writes_its_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastill.demo.QUICK_STEPS", 2)
    for modality in (ImageModality, GraphModality):
        monkeypatch.setattr(modality, "protocol", lambda self, learner: Protocol(steps=3))
    page = demo(tmp_path / "demo", quick=True, progress=False)
    shown, said = capsys.readouterr()
    assert said == ""
    rows = [line.split("  ")[0] for line in shown.splitlines()]
    assert rows.count("images") == rows.count("graph ") + rows.count("graph") == 3
    for what in ("random subset", "summary", "full data"):
        assert shown.count(what) == 2
    assert page == tmp_path / "demo/report.html"
    labels = load_digits()[1]
    for name, points in (("images", 100), ("graph", int(0.02 * len(labels)))):
        stored = datastill.load(tmp_path / "demo" / name)
        assert stored.points == points
        assert stored.evaluation is not None
        assert (tmp_path / "demo" / name / "metrics.jsonl").is_file()
    content = page.read_text()
    assert "100 synthetic images" in content
    assert "synthetic nodes" in content
    demo(tmp_path / "demo", seed=1, quick=True, progress=False)  # starts anew in the same folder
    assert datastill.load(tmp_path / "demo/graph").seed == 1


def test_test_digits_are_not_among_the_training_digits() -> None:
    kept, held = split_by_class(load_digits()[1], 0)
    assert not set(kept.tolist()) & set(held.tolist())
