"""`datastill evaluate` opens the target dataset of a run, and nothing else that the run needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datastill
from datastill import commands
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.modalities.interactions import InteractionsModality


@pytest.fixture
def digits_run(tmp_path: Path) -> Path:
    """A run folder of a few images whose number was searched for, coded so that what they begin from was measured."""
    out = tmp_path / "run"
    budget = ("--nbytes", "1500", "--codec", "int4-entropy", "--recipe", "dm", "--steps", "1")
    scores = ("--seeds", "1", "--learners", "ntk", "--baselines", "none", "--quiet")
    commands.condense("image", ["--data", "digits", *budget, "--seed", "3", "--out", str(out), *scores])
    return out


def test_evaluate_measures_no_budget_and_needs_no_device(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise AssertionError("a summary was made or measured")

    monkeypatch.setattr(ImageModality, "summary", fail)
    monkeypatch.setattr(ImageModality, "stored_bytes", fail)
    for searched in ("most_points", "finest_codec"):
        monkeypatch.setattr(f"datastill.condense.images.{searched}", fail)
    path = digits_run / "run.json"
    settings = json.loads(path.read_text())
    settings["options"] |= {"device": "cuda:64", "recipe": "a recipe that is gone"}  # neither is needed for these data
    path.write_text(json.dumps(settings))
    before = datastill.load(digits_run).evaluation
    again = ("--seeds", "1", "--learners", "ntk", "--baselines", "none", "--quiet")
    commands.evaluate_run([str(digits_run), *again])
    after = datastill.load(digits_run).evaluation
    assert before is not None
    assert after is not None
    assert [row["scores"] for row in after["rows"]] == [row["scores"] for row in before["rows"]]

    with pytest.raises(InputError, match="device 'cuda:64' cannot be used here"):
        commands.evaluate_run([str(digits_run), "--device", "cuda:64", "--quiet"])


def test_evaluate_moves_the_data_to_the_device_asked_for(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def scored(stored: Any, modality: ImageModality, **options: Any) -> None:
        devices.append(str(modality.device))
        raise LookupError

    monkeypatch.setattr("datastill.evaluation.evaluate", scored)
    for options in ((), ("--device", "cpu:0")):
        with pytest.raises(LookupError):
            commands.evaluate_run([str(digits_run), *options])
    assert devices == ["cpu", "cpu:0"]


def test_what_decides_the_target_is_kept_when_it_is_opened_again(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    rng = np.random.default_rng(0)
    logs = tmp_path / "logs.csv"
    rows = [(user, item) for user in range(30) for item in rng.choice(12, 6, replace=False)]
    logs.write_text("user_id,item_id\n" + "".join(f"u{user},i{item}\n" for user, item in rows))
    useless = {"users": 10**6, "nbytes": 1, "interactions": 1, "steps": -1, "device": "cuda:64", "out": "nowhere"}
    kept = {"data": str(logs), "recipe": "distill-cf", "test": 0.2, "validation": 0.2, "seed": 3}
    opened = commands.open_modality("interactions", {**kept, **useless})
    made = InteractionsModality.from_logs(str(logs), test=0.2, validation=0.2, seed=3, metric="hr@100")
    other = InteractionsModality.from_logs(str(logs), test=0.2, validation=0.2, seed=4, metric="hr@100")
    assert opened.fingerprint() == made.fingerprint() != other.fingerprint()
    assert opened.metric == "hr@100"


@pytest.mark.parametrize(
    ("chosen", "classes"),
    [
        ({}, [5, 5]),  # the default recipe has the unlabelled nodes taught
        ({"recipe": "gcond"}, [2, 2]),
        ({"setting": "inductive"}, [2, 2]),
        ({"recipe": "gcond", "unlabelled": "teach"}, [5, 5]),
    ],
)
def test_a_recipe_that_changes_the_target_is_kept_too(
    chosen: dict[str, str], classes: list[int], tmp_path: Path
) -> None:
    pytest.importorskip("torch_geometric")
    rng = np.random.default_rng(0)
    y = np.arange(10) % 2
    # Far enough apart that a teacher errs nowhere.
    x = (3.0 * np.eye(2)[y] + 0.1 * rng.random((10, 2))).astype(np.float32)
    places = np.arange(10)
    train, val, test = places < 4, (places >= 4) & (places < 7), places >= 7
    loops = np.stack([places, places])
    path = tmp_path / "g.npz"
    np.savez(path, x=x, y=y, edge_index=loops, train_mask=train, val_mask=val, test_mask=test)
    options = {"data": str(path), "nodes": 10**6, "nbytes": 1, "device": "cuda:64", **chosen}
    assert commands.open_modality("graph", options).group_sizes == classes
