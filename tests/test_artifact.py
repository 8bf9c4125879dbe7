"""Artifacts: the dataset and its provenance come back as they were; whatever is not an artifact is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import datastill
from datastill import registry
from datastill.artifact import Artifact
from datastill.bundle import read_bundle, write_bundle
from datastill.errors import ArtifactError, InputError, MissingExtraError


class Pairs:
    """Packs a `TensorDataset` of two tensors, as a modality would."""

    kind = "pairs"
    unpack_error: Exception | None = None

    @staticmethod
    def pack(dataset: TensorDataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
        x, y = dataset.tensors
        return {"x": x, "y": y}, {"names": ("a", "b")}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> TensorDataset:
        if Pairs.unpack_error is not None:
            raise Pairs.unpack_error
        assert meta["names"] == ("a", "b")
        return TensorDataset(tensors["x"], tensors["y"])


@pytest.fixture(autouse=True)
def _pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: Pairs if name == "pairs" else find(kind, name))
    monkeypatch.setattr(Pairs, "unpack_error", None)


@pytest.fixture
def artifact() -> Artifact:
    return Artifact(
        kind="pairs",
        dataset=TensorDataset(torch.rand(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1])),
        points=3,
        nbytes=48,
        fingerprint="f" * 64,
        objective="kernel-ridge",
        seed=7,
        steps=40,
        best_step=20,
        metric="accuracy",
        seconds=1.5,
        recipe=None,
        validation_score=float("nan"),
        settings={"ridge": 1e-6, "betas": (0.9, 0.99)},
        learned={"rates": [0.1, float("inf")]},
        evaluation={"metric": "accuracy", "rows": []},
        versions={"torch": "2"},
    )


def test_an_artifact_comes_back_as_it_was(artifact: Artifact, tmp_path: Path) -> None:
    datastill.save(artifact, tmp_path / "small")
    again = datastill.load(tmp_path / "small")
    for field in dataclasses.fields(Artifact):
        if field.name not in ("dataset", "validation_score"):
            assert getattr(again, field.name) == getattr(artifact, field.name), field.name
    assert again.validation_score != again.validation_score
    assert again.export() is again.dataset
    for old, new in zip(artifact.dataset.tensors, again.dataset.tensors):
        assert torch.equal(old, new)


def test_the_record_can_be_read_by_any_json_reader(artifact: Artifact, tmp_path: Path) -> None:
    datastill.save(artifact, tmp_path / "small")
    manifest = json.loads((tmp_path / "small/manifest.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert manifest["meta"]["artifact"]["fingerprint"] == "f" * 64
    data = (tmp_path / "small/data.safetensors").read_bytes()
    assert manifest["files"]["data.safetensors"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_run_folder_is_loaded_through_its_artifact(artifact: Artifact, tmp_path: Path) -> None:
    datastill.save(artifact, tmp_path / "run/artifact")
    assert datastill.load(tmp_path / "run").seed == 7


def test_saving_again_replaces(artifact: Artifact, tmp_path: Path) -> None:
    datastill.save(artifact, tmp_path / "small")
    datastill.save(dataclasses.replace(artifact, seed=8), tmp_path / "small")
    assert datastill.load(tmp_path / "small").seed == 8


def test_other_folders_are_not_replaced(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not a datastill bundle"):
        datastill.save(artifact, tmp_path)


def test_a_damaged_artifact_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    datastill.save(artifact, tmp_path / "small")
    file = tmp_path / "small/data.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        datastill.load(tmp_path / "small")


def test_bundles_that_are_not_artifacts_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    write_bundle(tmp_path / "checkpoint", {}, {"state": 1})
    with pytest.raises(ArtifactError, match="not an artifact"):
        datastill.load(tmp_path / "checkpoint")
    with pytest.raises(ArtifactError, match="no datastill bundle"):
        datastill.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "smells"}, "not installed"),
        ({"points": "3"}, "points is '3'"),
        ({"seconds": None}, "seconds is None"),
        ({"extra": 1}, "extra"),
    ],
)
def test_forged_records_are_refused(artifact: Artifact, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    datastill.save(artifact, tmp_path / "small")
    tensors, meta = read_bundle(tmp_path / "small")
    write_bundle(tmp_path / "small", tensors, {**meta, "artifact": {**meta["artifact"], **change}})
    with pytest.raises(ArtifactError, match=said):
        datastill.load(tmp_path / "small")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyError("x"), ArtifactError),
        (InputError("lengths differ"), ArtifactError),
        (RecursionError(), ArtifactError),
        (MissingExtraError("needs torch_geometric"), MissingExtraError),
    ],
)
def test_what_unpacking_raises(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    datastill.save(artifact, tmp_path / "small")
    monkeypatch.setattr(Pairs, "unpack_error", raised)
    with pytest.raises(expected):
        datastill.load(tmp_path / "small")
