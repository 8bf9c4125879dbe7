"""Logs on disk: the same as in memory, found again, refused when damaged or foreign, whole after a crash at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.condense.interactions import condense_interactions
from datastill.errors import ArtifactError, InputError
from datastill.modalities import interactions_io
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_io import read_interactions
from datastill.modalities.interactions_store import MappedRows, Splits, TextIds, blocks_of


def frame(users: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    pairs = [(f"user {u:03}", f"ítem {i}") for u in range(users) for i in rng.choice(40, rng.integers(1, 12), False)]
    shuffled = pd.DataFrame(pairs, columns=["user_id", "item_id"]).sample(frac=1, random_state=seed)
    return shuffled.assign(timestamp=rng.permutation(len(pairs)))


def same(one: Splits, other: Splits) -> bool:
    ids = np.array_equal(one.user_ids[:], other.user_ids[:]) and np.array_equal(one.item_ids, other.item_ids)
    parts = ((one.train, other.train), (one.validation, other.validation), (one.test, other.test))
    return ids and all((a[:] != b[:]).nnz == 0 and a.shape == b.shape for a, b in parts)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every log is large, and a shard holds a few users only."""
    monkeypatch.setattr(interactions_io, "LOADED", 0)
    monkeypatch.setattr(interactions_io, "SHARD_ROWS", 50)


@pytest.mark.parametrize("options", [{}, {"split": "time"}, {"core": 4}, {"unseen": "drop"}, {"seed": 3}])
def test_shards_hold_what_memory_holds(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_interactions(frame(), **options)
    assert isinstance(whole.train, sp.csr_matrix)
    monkeypatch.setattr(interactions_io, "LOADED", 0)
    monkeypatch.setattr(interactions_io, "SHARD_ROWS", 50)
    mapped = read_interactions(frame(), store=tmp_path / "log", **options)
    assert isinstance(mapped.train, MappedRows)
    assert len(mapped.train.blocks) > 4
    assert isinstance(mapped.user_ids, TextIds)
    assert same(whole, mapped)
    modalities = [InteractionsModality(splits) for splits in (whole, mapped)]
    assert modalities[0].fingerprint() == modalities[1].fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]  # nothing of the work is left


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_users_of_shards_are_those_of_the_matrix(data: st.DataObject) -> None:
    counts = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=12)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    columns = [np.sort(rng.choice(6, count, replace=False)) for count in counts]
    dense = np.zeros((len(counts), 6))
    for row, some in enumerate(columns):
        dense[row, some] = 1
    cut = data.draw(st.integers(0, len(counts)))
    blocks = [np.concatenate([*part, np.zeros(0, int)]).astype(np.int32) for part in (columns[:cut], columns[cut:])]
    rows = MappedRows(blocks, [cut, len(counts) - cut], counts, 6)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8)), dtype=np.int64)
    assert np.array_equal(rows[chosen].toarray(), dense[chosen])
    assert np.array_equal(rows[1:3].toarray(), dense[1:3])
    assert np.array_equal(np.concatenate([block.toarray() for block in blocks_of(rows, 5)]), dense)


def test_a_store_is_found_again_and_not_read_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame().to_parquet(tmp_path / "log.parquet")
    first = read_interactions(tmp_path / "log.parquet", store=tmp_path / "store")

    def forbidden(*_: Any) -> None:
        raise AssertionError("the store should have been opened")

    monkeypatch.setattr(interactions_io._Preparation, "run", forbidden)
    assert same(first, read_interactions(tmp_path / "log.parquet", store=tmp_path / "store"))
    with pytest.raises(InputError, match=r"store=.*other options .they differ in: rule.*choose another folder"):
        read_interactions(tmp_path / "log.parquet", store=tmp_path / "store", seed=1)
    frame(seed=1).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"other files .* differ in: source"):
        read_interactions(tmp_path / "log.parquet", store=tmp_path / "store")


def test_a_table_in_memory_replaces_the_store(tmp_path: Path) -> None:
    read_interactions(frame(), store=tmp_path / "store")
    again = read_interactions(frame(seed=1), store=tmp_path / "store")
    assert same(again, read_interactions(frame(seed=1)))


def test_what_is_no_store_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a datastill bundle, so it is not replaced"):
        read_interactions(frame(), store=tmp_path / "store")
    assert (tmp_path / "store/thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("on_disk")
def test_a_damaged_shard_is_named_and_refused(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "log.parquet")
    read_interactions(tmp_path / "log.parquet", store=tmp_path / "store")
    shard = tmp_path / "store/shard-00002.npy"
    good = shard.read_bytes()
    for bad, message in (
        (good[:-1] + bytes([good[-1] ^ 1]), "shard-00002.npy is corrupted: its checksum"),
        (good[:-4], "shard-00002.npy has .* bytes where the manifest says"),
    ):
        shard.write_bytes(bad)
        with pytest.raises(ArtifactError, match=message):
            read_interactions(tmp_path / "log.parquet", store=tmp_path / "store")
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"shard-00002.npy is not readable"):
        read_interactions(tmp_path / "log.parquet", store=tmp_path / "store")


BUILD = """
import sys
from datastill.modalities import interactions_io
interactions_io.SHARD_ROWS = 50
print("ready", flush=True)
for number in range(1000):
    interactions_io.read_interactions(sys.argv[1], store=f"{sys.argv[2]}/{number}")
    print(number, flush=True)
"""


def test_a_build_that_is_killed_leaves_no_store_or_a_whole_one(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "log.parquet")
    expected = read_interactions(tmp_path / "log.parquet")
    rng = random.Random(0)
    arguments = [sys.executable, "-c", BUILD, str(tmp_path / "log.parquet")]
    for trial in range(2):
        folder = tmp_path / f"trial-{trial}"
        folder.mkdir()
        with subprocess.Popen([*arguments, str(folder)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
            time.sleep(rng.random() * 0.4)
            os.kill(process.pid, signal.SIGKILL)
            last = max(map(int, process.stdout.read().split()), default=0)
        for number in range(last, last + 3):  # one that stands, the one that was cut off, and a new one
            assert same(expected, read_interactions(tmp_path / "log.parquet", store=folder / str(number)))
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


DISTIL = """
import sys
from datastill import condense_interactions
from datastill.modalities import interactions_io
interactions_io.LOADED, interactions_io.SHARD_ROWS = 0, 50
condense_interactions(sys.argv[1], users=4, steps=20, recipe="kip", store=sys.argv[2], out=sys.argv[3], progress=False)
"""


@pytest.mark.usefixtures("on_disk")
def test_a_run_on_shards_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "log.parquet")
    options: dict[str, Any] = {"users": 4, "steps": 20, "recipe": "kip", "progress": False}
    expected = condense_interactions(tmp_path / "log.parquet", **options)
    store, out = tmp_path / "store", tmp_path / "run"
    arguments = [sys.executable, "-c", DISTIL, str(tmp_path / "log.parquet"), str(store), str(out)]
    with subprocess.Popen(arguments) as process:
        while process.poll() is None and not list(out.glob("checkpoint/step-*")):
            time.sleep(0.01)
        process.kill()
    assert not (out / "artifact").exists()
    found = condense_interactions(tmp_path / "log.parquet", store=store, out=out, **options)
    assert found.items.tolist() == expected.items.tolist()
    assert np.array_equal(found.weights, expected.weights)  # type: ignore[arg-type]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(21))


def test_large_logs_without_a_store_lie_in_a_temporary_folder(
    on_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    splits = read_interactions(frame())
    assert isinstance(splits.train, MappedRows)
    assert len(list(tmp_path.iterdir())) == 1
    del splits
    assert not list(tmp_path.iterdir())
