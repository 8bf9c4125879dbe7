"""`HopStore`: propagated features in files are those in memory; broken files are made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datastill.backbones import hop_store
from datastill.backbones.hop_store import HopStore
from datastill.backbones.nodes import Csr, Nodes, normalised
from datastill.errors import InputError

N = 23


def graph(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Csr]:
    rng = torch.Generator().manual_seed(0)
    edges = torch.randint(N, (2, 60), generator=rng)
    return torch.randn(N, 5, generator=rng).to(dtype), normalised(edges, None, N, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_hold_matrix_powers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(hop_store, "_ROWS", 7)
    features, operator = graph(dtype)
    nodes = Nodes.constant(features, operator, store=HopStore(tmp_path / "new", "it"))
    expected = torch.linalg.matrix_power(operator.dense(), 2) @ features
    torch.testing.assert_close(nodes.propagated(2), expected)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["it-1.npy", "it-2.npy"]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "new/it-2.npy")), expected)
    torch.testing.assert_close(Nodes.constant(features, operator).propagated(2), nodes.propagated(2))


def test_a_whole_file_is_taken_and_not_changed(tmp_path: Path) -> None:
    features, operator = graph()
    np.save(tmp_path / "it-1.npy", np.full((N, 5), 2.0, dtype=np.float32))
    found = HopStore(tmp_path, "it").product(operator, features, 1)
    assert torch.equal(found, torch.full((N, 5), 2.0))
    found.zero_()
    assert np.load(tmp_path / "it-1.npy").min() == 2.0


@pytest.mark.parametrize("fault", ["cut off", "other shape", "other type", "no array"])
def test_any_other_file_is_made_again(tmp_path: Path, fault: str) -> None:
    features, operator = graph()
    place = tmp_path / "it-1.npy"
    if fault == "no array":
        place.write_bytes(b"words")
    else:
        kind = np.float64 if fault == "other type" else np.float32
        np.save(place, np.zeros((N, 4 if fault == "other shape" else 5), dtype=kind))
        if fault == "cut off":
            place.write_bytes(place.read_bytes()[:-8])
    found = HopStore(tmp_path, "it").product(operator, features, 1)
    torch.testing.assert_close(found, operator.dense() @ features)
    assert [path.name for path in tmp_path.iterdir()] == ["it-1.npy"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    features, operator = graph()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Propagated features cannot be kept in .*file"):
        HopStore(tmp_path / "file", "it").product(operator, features, 1)
