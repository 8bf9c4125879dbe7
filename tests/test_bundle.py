"""Bundles: exact round trips, every damage refused by one exception, and a crash at any file operation survived."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.bundle import flatten_state, has_bundle, read_bundle, unflatten_state, write_bundle
from datastill.errors import ArtifactError, InputError

TENSORS = {"x": torch.arange(12.0).reshape(3, 4), "flags": torch.tensor([True, False]), "scalar": torch.tensor(3)}
META: dict[Any, Any] = {
    "name": "käse </script>",
    "nan": math.nan,
    "inf": [math.inf, -math.inf],
    "pair": (1, None),
    7: {"$float": "nan"},
}


def same(a: Any, b: Any) -> bool:
    """Equality of nests, by type and by bit; NaN equals NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and repr(a.tolist()) == repr(b.tolist())
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(x, y) for x, y in zip(a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a bundle's manifest and give it a right checksum again, as an attacker would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, indent=1).encode() + b"\n").hexdigest()
    (path / "manifest.json").write_bytes(json.dumps(manifest, indent=1).encode() + b"\n")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_bundle(path, TENSORS, META, {"notes.txt": b"hello"})
    return path


# --- what goes in comes out -------------------------------------------------------------------------------------------


def test_round_trip_keeps_every_bit_and_type(bundle: Path) -> None:
    tensors, meta = read_bundle(bundle)
    assert same({name: tensors[name] for name in TENSORS}, TENSORS)
    assert len(tensors) == len(TENSORS)
    assert same(meta, META)
    assert (bundle / "notes.txt").read_bytes() == b"hello"


def test_tensors_that_share_memory_or_are_not_contiguous_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    write_bundle(tmp_path / "b", {"base": base, "turned": base.T, "grown": base[:1].expand(4, 3)}, {})
    tensors, _ = read_bundle(tmp_path / "b")
    assert tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["grown"].tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.complex64])
def test_dtypes_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    write_bundle(tmp_path / "b", {"empty": torch.zeros(0, 3, dtype=dtype), "one": torch.ones((), dtype=dtype)}, {})
    tensors, _ = read_bundle(tmp_path / "b")
    assert tensors["empty"].shape == (0, 3)
    assert same(tensors["one"], torch.ones((), dtype=dtype))


def test_an_extra_file_may_come_from_disk(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    write_bundle(tmp_path / "b", {}, {}, {"copy.bin": tmp_path / "source"})
    assert (tmp_path / "b/copy.bin").read_bytes() == b"x" * 3_000_000
    read_bundle(tmp_path / "b")


def test_files_of_the_user_beside_a_bundle_are_not_taken_away(bundle: Path) -> None:
    (bundle / "model.pt").write_text("mine")
    (bundle / "deeper").mkdir()
    with pytest.raises(InputError, match=r"holds more than the bundle that would be replaced, deeper, model\.pt: move"):
        write_bundle(bundle, {}, {})
    assert (bundle / "model.pt").read_text() == "mine"
    read_bundle(bundle)
    (bundle / "deeper").rmdir()
    (bundle / "model.pt").unlink()
    write_bundle(bundle, {}, {"second": True})
    assert read_bundle(bundle)[1] == {"second": True}


def test_a_second_write_replaces_the_first_and_leaves_nothing_behind(bundle: Path) -> None:
    write_bundle(bundle, {"y": torch.zeros(2)}, {"v": 2})
    tensors, meta = read_bundle(bundle)
    assert list(tensors) == ["y"]
    assert meta == {"v": 2}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert sorted(path.name for path in bundle.iterdir()) == ["data.safetensors", "manifest.json"]


plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
leaves = plain | st.lists(st.floats(width=32), max_size=3).map(torch.tensor)
keys = st.text("@$ab/", max_size=3) | st.integers() | st.none() | st.tuples(st.integers(), st.text(max_size=2))
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["@tensor", "@float", "$dict", "@tuple", "a/b"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(nests)
def test_any_nest_survives_flattening_and_json(nest: Any) -> None:
    tensors, plain_part = flatten_state(nest)
    text = json.dumps(plain_part, allow_nan=False)
    assert same(unflatten_state(tensors, json.loads(text)), nest)


def test_the_state_of_an_optimizer_survives(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.Adam(weights, lr=0.1, amsgrad=True)
    sum(weight.square().sum() for weight in weights).backward()  # type: ignore[union-attr]
    optimizer.step()
    tensors, state = flatten_state({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    write_bundle(tmp_path / "b", tensors, {"state": state})
    tensors, meta = read_bundle(tmp_path / "b")
    restored = unflatten_state(tensors, meta["state"])
    assert same(restored["optimizer"], optimizer.state_dict())
    assert torch.equal(restored["rng"], torch.get_rng_state())


def test_places_that_look_alike_get_names_of_their_own() -> None:
    tensors, rest = flatten_state(
        {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "__metadata__": torch.tensor(3)}
    )
    assert len(tensors) == 3
    assert "__metadata__" not in tensors
    assert unflatten_state(tensors, rest)["a"]["b"] == 2


# --- what cannot be stored is refused before anything is written ------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "meta", "extras", "said"),
    [
        ({"x": torch.zeros(2).to_sparse()}, {}, {}, "dense"),
        ({"x": torch.zeros(2, dtype=torch.complex128)}, {}, {}, "complex128"),
        ({"x": [1.0]}, {}, {}, "must be a tensor"),
        ({"__metadata__": torch.zeros(1)}, {}, {}, "name of a tensor"),
        ({}, {"a": {"b": [object()]}}, {}, "at a/b/0"),
        ({}, {"a": torch.zeros(1)}, {}, "'Tensor'"),
        ({}, {"path": Path("x")}, {}, "cannot be stored"),
        ({}, {}, {"../up": b""}, "plain file name"),
        ({}, {}, {"/root": b""}, "plain file name"),
        ({}, {}, {"manifest.json": b""}, "bundle itself uses"),
        ({}, {}, {".hidden": b""}, "plain file name"),
    ],
)
def test_bad_arguments(tmp_path: Path, tensors: Any, meta: Any, extras: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_bundle(tmp_path / "b", tensors, meta, extras)
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension/manifest.json").write_text('{"manifest_version": 3}')
    for name in ("folder", "file", "extension"):
        with pytest.raises(InputError, match="not a datastill bundle"):
            write_bundle(tmp_path / name, {}, {})
    assert (tmp_path / "folder/thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", {}, {})
    read_bundle(tmp_path / "empty")


def test_a_failing_write_leaves_the_old_bundle(bundle: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(bundle, {}, {}, {"extra": bundle / "does-not-exist"})
    assert same(read_bundle(bundle)[1], META)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


# --- damage -----------------------------------------------------------------------------------------------------------


def mutate(content: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(["flip", "cut", "insert", "drop", "overwrite", "swap", "tail"])
    place = rng.randrange(len(content))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
    if kind == "drop":
        return content[:place] + content[place + rng.randrange(1, 9) :]
    if kind == "overwrite":
        token = rng.choice(
            [b"\xff" * 8, b"0", b"NaN", b"{", b"}", b'"', b"[" * 2000, b"1" * 5000, b"-1", b" ", b"\x00"]
        )
        return content[:place] + token + content[place + len(token) :]
    if kind == "swap":
        return content[place:] + content[:place]
    return content + rng.randbytes(rng.randrange(1, 100))


@pytest.mark.parametrize("name", ["manifest.json", "data.safetensors", "notes.txt"])
def test_no_mutation_is_read(bundle: Path, name: str) -> None:
    file = bundle / name
    original = file.read_bytes()
    rng = random.Random(name)
    for _ in range(1700):
        mutated = mutate(original, rng)
        if mutated == original:
            continue
        file.write_bytes(mutated)
        with pytest.raises(ArtifactError):
            read_bundle(bundle)
    file.write_bytes(original)
    read_bundle(bundle)


def put(name: str, entry: Any = None) -> Callable[[dict[str, Any]], None]:
    canary = {"sha256": hashlib.sha256(b"canary").hexdigest(), "bytes": 6}
    return lambda manifest: manifest["files"].update({name: canary if entry is None else entry})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("../canary"), "not a plain file name"),
        (put("/etc/hostname"), "not a plain file name"),
        (put("sub/canary"), "not a plain file name"),
        (put("..\\canary"), "not a plain file name"),
        (put(".."), "not a plain file name"),
        (put("canary\n"), "not a plain file name"),
        (put("notes.txt", 3), "not a sha256 and a size"),
        (put("notes.txt", {"sha256": "x", "bytes": 5}), "not a sha256 and a size"),
        (put("notes.txt", {"sha256": "0" * 64, "bytes": True}), "not a sha256 and a size"),
        (put("notes.txt", {"sha256": "0" * 64, "bytes": 2**62}), "was cut or changed"),
        (lambda m: m.update(format_version=2), "newer datastill"),
        (lambda m: m.update(format_version="1"), "format_version"),
        (lambda m: m.update(format="zip"), "foreign"),
        (lambda m: m.pop("files"), "foreign"),
        (lambda m: m["files"].pop("data.safetensors"), "foreign"),
        (lambda m: m.update(meta=[1]), "foreign"),
        (lambda m: m.update(meta={"$tuple": [1]}), "not a dict"),
        (lambda m: m.update(meta={"$dict": [[[1], 2]]}), "malformed"),
        (lambda m: m.update(meta={"a": {"$float": "1"}}), "malformed"),
        (lambda m: m.update(meta={"a": {"$tensor": "x"}}), "malformed"),
        (lambda m: m.update(meta={"a": {"$run": "x"}}), "malformed"),
    ],
)
def test_forged_manifests_are_refused_by_name(bundle: Path, change: Any, said: str) -> None:
    (bundle.parent / "canary").write_bytes(b"canary")
    forge(bundle, change)
    with pytest.raises(ArtifactError, match=said):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["notes.txt", "data.safetensors", "manifest.json"])
def test_links_are_refused_even_to_right_content(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "moved")
    (bundle / name).symlink_to(bundle.parent / "moved")
    with pytest.raises(ArtifactError, match="link"):
        read_bundle(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block_the_reader(bundle: Path) -> None:
    (bundle / "notes.txt").unlink()
    os.mkfifo(bundle / "notes.txt")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "data",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (200 * 2**20).to_bytes(8, "little") + b" " * 100,
        (2).to_bytes(8, "little") + b"{}" + b"hole",
        b"PK\x03\x04 a zip file, as torch.save writes",
        b"\x80\x04\x95 a pickle",
        b"",
    ],
)
def test_hostile_tensor_files_with_right_checksums_are_refused(bundle: Path, data: bytes) -> None:
    (bundle / "data.safetensors").write_bytes(data)
    forge(bundle, put("data.safetensors", {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}))
    with pytest.raises(ArtifactError, match="cannot be decoded"):
        read_bundle(bundle)


def test_huge_and_deep_manifests_are_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"[" * 200_000)
    with pytest.raises(ArtifactError, match="not JSON"):
        read_bundle(bundle)
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ArtifactError, match="more than any manifest"):
        read_bundle(bundle)


def test_absent_and_foreign_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name in ("absent", "file", "folder"):
        assert not has_bundle(tmp_path / name)
        with pytest.raises(ArtifactError, match="bundle"):
            read_bundle(tmp_path / name)


@pytest.mark.parametrize("part", [{"@tensor": "nowhere"}, {"@tuple": 1}, {"@dict": [[1]]}, {"@x": 1, "@y": 2}])
def test_malformed_states_are_refused(part: Any) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        unflatten_state({}, {"a": part})


# --- crashes ----------------------------------------------------------------------------------------------------------

CRASHES = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from datastill.bundle import read_bundle, write_bundle

folder = Path(sys.argv[1])

def write(path, version):
    write_bundle(path, {"x": torch.full((50,), float(version))}, {"version": version}, {"note": str(version).encode()})

def check(path, allowed):
    tensors, meta = read_bundle(path)
    assert meta["version"] in allowed and tensors["x"].eq(meta["version"]).all(), (meta, allowed)

def die_at(limit):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

points = 0
for limit in range(1, 200):     # killed before each of its file operations in turn
    path = folder / f"step{limit}" / "bundle"
    write(path, 1)
    child = os.fork()
    if child == 0:
        die_at(limit)
        write(path, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    check(path, (1, 2))
    write(path, 3)
    check(path, (3,))
    assert sorted(os.listdir(path.parent)) == ["bundle"], os.listdir(path.parent)
    if not os.WIFSIGNALED(status):
        break
    points += 1

rng, trials = random.Random(0), 60
path = folder / "random" / "bundle"
write(path, 0)
for trial in range(trials):     # killed at random moments while it writes without pause
    child = os.fork()
    if child == 0:
        version = 0
        while True:
            version += 1
            write(path, version)
    time.sleep(rng.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    check(path, range(10**6))
print(points, trials)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_file_operation_leaves_a_readable_bundle(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", CRASHES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    points, trials = map(int, done.stdout.split())
    assert points >= 10
    assert trials == 60


def test_a_reader_beside_a_writer_sees_only_whole_bundles(tmp_path: Path) -> None:
    import threading

    path, stop = tmp_path / "b", threading.Event()

    def write(version: int) -> None:
        write_bundle(path, {"x": torch.full((9,), float(version))}, {"version": version})

    def keep_writing() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            write(version)

    write(0)
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(150):
            tensors, meta = read_bundle(path)
            assert tensors["x"].eq(meta["version"]).all()
    finally:
        stop.set()
        writer.join()
