"""Several processes distil what one does: sums and shares, and whole runs of every kind of objective."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datastill import load, processes
from datastill.errors import InputError

ROOT = Path(__file__).resolve().parents[1]

RUN = """
import json, sys
import numpy as np, torch
from datastill import processes
from datastill.loop import distill
from datastill.modalities.interactions import InteractionsModality
from datastill.rng import generator
import datastill.registry as registry
torch.set_num_threads(1)
processes.start()
rank, size = processes.rank(), processes.size()
found = {}

# Sums by hand: process r holds r + 1 points, whose mean is 10 r.
mean = processes.average([torch.full((2,), 10.0 * rank)], weight=rank + 1)[0]
found["mean"] = mean.tolist()
found["ignored"] = processes.average([torch.tensor([torch.nan if rank else 3.0])], weight=float(not rank))[0].tolist()
found["total"] = processes.total(torch.tensor([1.0, rank])).tolist()
found["agreed"] = processes.agree(["x", None, 0.25] if rank == 0 else None)
copied = [torch.full((2,), float(rank)), torch.tensor(rank > 0)]
processes.copy_main(copied)
found["copied"] = [value.tolist() for value in copied]
for device in ("cuda:1", "cpu"):
    try:
        found[device] = str(processes.local_device(device))
    except ValueError as error:
        found[device] = str(error)
loss = processes.portion(torch.tensor(10.0 * rank), weight=rank + 1)
found["portion"] = float(processes.average([loss])[0])
found["shares"] = processes.share(5).tolist()
with processes.main_first():
    found["apart"] = [processes.size(), processes.is_main()]
    with open(f"{sys.argv[1]}/order-{size}", "a") as file:
        file.write(str(rank))

def image(name, settings):
    from datastill.modalities.image import ImageModality
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = torch.from_numpy(rng.normal(size=(60, 1, 8, 8)).astype("float32") + labels[:, None, None, None])
    split = slice(0, 40), slice(40, 60)
    modality = ImageModality((pixels[split[0]], torch.from_numpy(labels[split[0]])),
                             test=(pixels[split[1]], torch.from_numpy(labels[split[1]])))
    return run(modality, [1, 1, 1], name, settings)

def logs(name, settings):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 12)
    table = {"user": users, "item": (users % 3 * 10 + rng.integers(0, 14, 720)) % 30}
    return run(InteractionsModality.from_logs(table, width=8, chunk=7), [5], name, settings)

def run(modality, counts, name, settings):
    modality.to(dtype=torch.float64)
    summary = modality.summary(counts, rng=generator(0)).double()
    # Real rows score items that the same users have alike, up to rounding, which shares change; and a tie's order is no result.
    with torch.no_grad():
        for value in summary.parameters():
            value += 0.01 * torch.randn(value.shape, generator=generator("no ties"), dtype=value.dtype)
    objective = registry.find("objectives", name)(**settings)
    result = distill(modality, summary, objective, steps=4, lr=0.1, validate_every=2, progress=False, nbytes=10**6,
                     validator="mlp" if modality.kind == "image" else "ntk")
    values = torch.cat([value.double().flatten() for value in result.summary.state_dict().values()])
    losses = [record["loss"] for record in result.history if "loss" in record]
    scores = [record["score"] for record in result.history if "score" in record]
    return {"values": values.tolist(), "losses": losses, "scores": scores}

for kind, name, settings in json.loads(sys.argv[2]):
    found[f"{kind} {name} {settings}"] = (image if kind == "image" else logs)(name, settings)
with open(f"{sys.argv[1]}/{size}-{rank}.json", "w") as file:
    json.dump(found, file)
processes.stop()
"""

RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("image", "kernel-ridge", {"ridge": 0.1, "real_size": 7, "augment": True}),
    ("image", "distribution-matching", {"learner": "mlp", "real_size": 7}),
    ("image", "gradient-matching", {"learner": "mlp", "real_size": 7, "inner_epochs": 1}),
    ("image", "unrolled", {"learner": "mlp", "real_size": 7, "inner_steps": 2}),
    ("image", "unrolled", {"learner": "mlp", "real_size": 7, "inner_steps": 2, "pool": 2, "max_age": 4}),
    ("image", "feature-regression", {"learner": "mlp", "real_size": 7}),
    ("interactions", "kernel-ridge", {"ridge": 0.1, "real_size": 21}),
    ("interactions", "kernel-ridge", {"ridge": 0.1, "real_size": None}),
    ("interactions", "distribution-matching", {"real_size": 21}),
    ("interactions", "gradient-matching", {"real_size": 21, "inner_epochs": 1}),
    ("interactions", "unrolled", {"real_size": 21, "inner_steps": 2}),
]


QUICK = [run for run in RUNS if run[:2] in (("image", "gradient-matching"), ("interactions", "kernel-ridge"))]


def launch(folder: Path, size: int, runs: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of `size` processes found, which are joined as `torchrun` joins them."""
    script = folder / "run.py"
    script.write_text(RUN)
    arguments = [str(script), str(folder), json.dumps(runs)]
    if size == 1:
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(str(script))
        torch.set_num_threads(threads)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        started = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        said = [process.communicate()[1][-2000:] for process in started]
        assert all(process.returncode == 0 for process in started), "\n\n".join(said)
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


def compare(folder: Path, size: int, runs: list[tuple[str, str, dict[str, Any]]]) -> None:
    (alone,) = launch(folder, 1, runs)
    together = launch(folder, size, runs)
    weights = np.arange(1, size + 1)
    mean = float((weights * 10 * (weights - 1)).sum() / weights.sum())
    shares = [found["shares"] for found in together]
    assert sorted(place for some in shares for place in some) == [0, 1, 2, 3, 4]
    for found in together:
        assert found["mean"] == pytest.approx([mean, mean])
        assert found["portion"] == pytest.approx(mean)
        assert found["ignored"] == [3.0]
        assert found["total"] == [size, size * (size - 1) / 2]
        assert found["copied"] == [[0.0, 0.0], False]
        assert found["cpu"] == "cpu"
        if size > 1:
            assert "must be 'cuda' for several processes" in found["cuda:1"]
        assert found["agreed"] == ["x", None, 0.25]
    assert [found["apart"] for found in together] == [[1, rank == 0] for rank in range(size)]
    assert (folder / f"order-{size}").read_text()[0] == "0"
    for name in (f"{kind} {objective} {settings}" for kind, objective, settings in runs):
        for found in together:
            assert found[name] == together[0][name], name  # the same on every process, to the last bit
            for what in ("values", "losses", "scores"):
                assert found[name][what] == pytest.approx(alone[name][what], rel=1e-7, abs=1e-7), (name, what)


def test_two_processes_distil_what_one_does(tmp_path: Path) -> None:
    compare(tmp_path, 2, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_distils_what_one_does_by_any_objective(tmp_path: Path, size: int) -> None:
    compare(tmp_path, size, RUNS)


@pytest.mark.slow
def test_the_command_runs_in_several_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 9)
    lines = [f"u{user},i{item}" for user, item in zip(users, (users % 3 * 9 + rng.integers(0, 13, 360)) % 27)]
    (tmp_path / "logs.csv").write_text("\n".join(["user,item", *lines]) + "\n")
    options = ["interactions", "--data", "logs.csv", "--users", "4", "--steps", "3", "--seeds", "1", "--quiet"]
    tables = []
    for size in (1, 2):
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if size == 2 else []
        done = subprocess.run(
            [sys.executable, *command, "-m", "datastill", *options, "--out", f"run-{size}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("points,") == 1  # one process speaks
        tables.append(load(tmp_path / f"run-{size}").dataset)
        steps = [json.loads(line) for line in (tmp_path / f"run-{size}/metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in steps if record["kind"] == "step"] == [1, 2, 3]
    assert tables[0].items.tolist() == tables[1].items.tolist()
    assert tables[0].weights == pytest.approx(tables[1].weights, abs=1e-5)


def test_one_process_is_left_alone() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert processes.portion(values, 3.0) is values
    assert processes.total(values) is values
    assert processes.average([values], 0.0)[0] is values
    assert (processes.size(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert processes.agree("x") == "x"
    assert processes.share(3).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="0 points cannot be shared out among 1 processes"):
        processes.share(0)
