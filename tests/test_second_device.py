"""Every objective on every modality on a device beside the processor: nothing is left behind, and numbers stay what they are.

Each kind of data has a process of its own, as a device has to be there before anything is differentiated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = ("image", "text", "graph", "graphs", "interactions")
_TESTS = Path(__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_TESTS / "test_second_device.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_runs_there_with_the_same_numbers(kind: str) -> None:
    if kind in ("graph", "graphs"):
        pytest.importorskip("torch_geometric")
    done = run(kind, "first")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_do_all_forms_of_a_summary(kind: str) -> None:
    done = run(kind, "all")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_device_refuses_what_a_gpu_would() -> None:
    done = run("refusals")
    assert done.returncode == 0, done.stdout + done.stderr


def losses(kind: str, options: dict[str, Any], objective: str, device: str) -> list[float]:
    """Of three steps on a device."""
    from test_every_pair import MODALITIES, OBJECTIVES  # type: ignore[import-not-found]

    from datastill import distill
    from datastill.rng import generator

    modality = MODALITIES[kind]().to(device)
    summary = modality.summary([2] * modality.num_groups, rng=generator("pair"), **options)
    result = distill(
        modality, summary, OBJECTIVES[objective](), steps=3, validate_every=0, device=device, progress=False
    )
    batch = modality.read(result.export())
    assert batch.groups.device.type == device
    return [record["loss"] for record in result.history]


def compare(kind: str, forms: str) -> None:
    """Raise AssertionError for every pair that fails there, or has other losses."""
    from second_device import NAME, SecondDevice  # type: ignore[import-not-found]
    from test_every_pair import OBJECTIVES, OPTIONS

    place = SecondDevice()
    failed = []
    chosen = [options for name, options in OPTIONS if name == kind]
    for options in chosen[:1] if forms == "first" else chosen:
        for objective in OBJECTIVES:
            expected = losses(kind, options, objective, "cpu")
            try:
                with place:
                    found = losses(kind, options, objective, NAME)
            except (RuntimeError, TypeError) as error:
                failed.append(f"{objective} {options}: {error}")
                continue
            if not np.allclose(found, expected, rtol=1e-4):
                failed.append(f"{objective} {options}: {found} in place of {expected}")
    assert not failed, "\n".join(failed)


def refusals() -> None:
    """Raise unless the device refuses tensors from elsewhere, and computes with its own."""
    import torch
    from second_device import NAME, SecondDevice

    with SecondDevice():
        layer = torch.nn.Conv2d(1, 3, 3)
        inputs = torch.randn(2, 1, 8, 8)
        expected = torch.autograd.grad(layer(inputs).square().sum(), layer.weight)[0]
        layer.to(NAME)
        found = torch.autograd.grad(layer(inputs.to(NAME)).square().sum(), layer.weight)[0]
        assert found.device.type == NAME
        assert torch.allclose(found.cpu(), expected)
        ours, theirs = torch.ones(3, device=NAME), torch.ones(3)
        assert (ours * torch.tensor(2.0)).tolist() == [2, 2, 2]
        assert ours[torch.tensor([0, 1])].device.type == NAME
        for call in (
            lambda: ours + theirs,
            lambda: torch.cat([ours, theirs]),
            lambda: theirs[ours.long()],
            lambda: torch.rand(3, generator=torch.Generator(), device=NAME),
            lambda: np.asarray(ours),
            lambda: layer(inputs),
        ):
            with pytest.raises((RuntimeError, TypeError), match=f"{NAME}|same device"):
                call()


if __name__ == "__main__":
    sys.path.insert(0, str(_TESTS))
    if sys.argv[1] == "refusals":
        refusals()
    else:
        compare(*sys.argv[1:])
