"""Every objective and recipe on a device beside the processor: nothing is left behind, and numbers stay what they are.

Each kind of data has a process of its own, as a device has to be there before anything is differentiated.
"""

from __future__ import annotations

import dataclasses
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from datastill.recipe import Recipe

KINDS = ("image", "text", "graph", "graphs", "interactions")
_TESTS = Path(__file__).parent
# Settings of objectives that cost time; the second ones are for recipes that have them.
_FEW = {
    "experts": 1,
    "inner_epochs": 1,
    "inner_steps": 2,
    "max_epochs": 1,
    "max_matches": 2,
    "max_start": 2,
    "outer_loops": 2,
    "query_size": 4,
    "real_size": 4,
    "span": 1,
    "teacher_steps": 2,
    "window": 2,
}
_FEW_IF_SET: dict[str, Any] = {
    "expand_steps": 1,
    "first_max_start": 1,
    "inner_batch": 4,
    "inner_precision": "full",  # "auto" depends on the device
    "inner_real": 2,
    "max_age": 2,
    "pool": 2,
    "real_precision": "full",
    "warmup": 2,
}


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_does_every_recipe(kind: str) -> None:
    done = run(kind, "recipes")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_device_refuses_what_a_gpu_would() -> None:
    done = run("refusals")
    assert done.returncode == 0, done.stdout + done.stderr


def test_recommenders_answer_histories_from_anywhere() -> None:
    done = run("recommenders")
    assert done.returncode == 0, done.stdout + done.stderr


def test_reduced_convolutions_read_channels_last_there() -> None:
    done = run("channels-last")
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
    """Raise AssertionError for every pair, or every recipe, that fails there, or has other losses."""
    from second_device import NAME, SecondDevice  # type: ignore[import-not-found]
    from test_every_pair import OBJECTIVES, OPTIONS

    from datastill import recipes

    calls: list[tuple[Callable[..., list[float]], Any]] = [
        (losses, (options, objective)) for name, options in OPTIONS if name == kind for objective in OBJECTIVES
    ]
    if forms == "first":
        calls = [*calls[: len(OBJECTIVES)], (batched_losses, ())]
    if forms == "recipes":
        calls = [(recipe_losses, (name,)) for name in recipes if kind in recipes[name].modalities]
    place = SecondDevice()
    failed = []
    for call, arguments in calls:
        expected = call(kind, *arguments, "cpu")
        try:
            with place:
                found = call(kind, *arguments, NAME)
        except (RuntimeError, TypeError) as error:
            failed.append(f"{arguments}: {error}")
            continue
        if not np.allclose(found, expected, rtol=1e-4):
            failed.append(f"{arguments}: {found} in place of {expected}")
    assert not failed, "\n".join(failed)


def batched_losses(kind: str, device: str) -> list[float]:
    """Of two steps of unrolled training on a device, whose inner steps take a part of the points."""
    from test_every_pair import MODALITIES

    from datastill import distill
    from datastill.objectives.meta_model import UnrolledTraining
    from datastill.rng import generator

    modality = MODALITIES[kind]().to(device)
    counts = [4] * modality.num_groups
    summary = modality.summary(counts, rng=generator("pair"))
    objective = UnrolledTraining(inner_steps=2, inner_batch=sum(counts) - 1, real_size=4)
    result = distill(modality, summary, objective, steps=2, validate_every=0, device=device, progress=False)
    return [record["loss"] for record in result.history]


def recipe_losses(kind: str, name: str, device: str) -> list[float]:
    """Of two steps of a recipe on a device, and the scores by which it chooses."""
    from test_every_pair import MODALITIES, SMALLER, STORED_TOGETHER

    from datastill.condense.common import run_recipe

    modality, recipe = MODALITIES[kind](), small(name, kind)
    points = [STORED_TOGETHER.get(name, 2)] * modality.num_groups
    result = run_recipe(modality, points, recipe, device=device, progress=False, **SMALLER.get(name, {}))
    assert modality.read(result.export()).groups.device.type == device
    return [value for record in result.history for key, value in record.items() if key in ("loss", "score")]


def small(name: str, kind: str) -> Recipe:
    """A recipe of two steps, with few points, short trainings and, where the network is free, a narrow one."""
    from datastill import recipes

    recipe = recipes[name].on(kind)
    narrow = "convnet-w4" if kind == "image" else None
    if recipe.objective is None:
        space = {"space": narrow} if narrow and name != "random" else {}
        return dataclasses.replace(recipe, summary={**recipe.summary, **space}, validator="ntk")
    known = {field.name for field in dataclasses.fields(recipe.make_objective())}  # type: ignore[arg-type]
    few = {key: value for key, value in _FEW.items() if key in known}
    few |= {key: value for key, value in _FEW_IF_SET.items() if key in recipe.settings}
    settings = {**recipe.settings, **few}
    if narrow and "learner" in known and recipe.objective != "kernel-ridge":
        settings["learner"] = f"{narrow}-bn" if name == "sre2l" else narrow
    return dataclasses.replace(recipe, settings=settings, steps=2, validate_every=1, validator="ntk")


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


def recommenders() -> None:
    """Raise unless recommenders that were fitted there recommend the same for histories from the processor and from there."""
    import scipy.sparse as sp
    from second_device import NAME, SecondDevice
    from test_every_pair import MODALITIES

    from datastill.backbones.batch import map_tensors
    from datastill.backbones.recommender import sparse_rows
    from datastill.rng import generator

    with SecondDevice():
        for name in ("ease", "popularity", "mult-vae"):  # "als" is fitted by another package, on the processor
            asked = []
            for device in ("cpu", NAME):
                modality = MODALITIES["interactions"]().to(device)
                histories = modality.splits.train[:7]
                machine = modality.fit(modality.full(), name, rng=generator("fit"))
                there = operator.methodcaller("to", device)
                moved = map_tensors(there, sparse_rows(histories))
                asked += [machine.recommend(sp.csr_matrix(histories), 3)[0], machine.recommend(moved, 3)[0]]
            assert all(np.array_equal(asked[0], one) for one in asked[1:]), name


def channels_last() -> None:
    """Raise unless a convolution in bfloat16 has its factors in that order, and the same outputs and gradients of gradients."""
    import torch
    from second_device import NAME, SecondDevice

    from datastill.backbones.convnet import ConvNet
    from datastill.backbones.precision import convolved_in

    seen = []

    def run_on(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = ConvNet((1, 8, 8), 3, depth=2, width=8).to(device)
        images = torch.randn(6, 1, 8, 8).to(device).requires_grad_()
        convolve = net.blocks[1][0]._conv_forward  # type: ignore[index]

        def watched(*factors: torch.Tensor) -> torch.Tensor:
            seen.append([value.is_contiguous(memory_format=torch.channels_last) for value in factors[:2]])
            return convolve(*factors)

        net.blocks[1][0]._conv_forward = watched  # type: ignore[index]
        with convolved_in("bfloat16"):
            outputs = net(images)
            slopes = torch.autograd.grad(outputs.square().sum(), list(net.parameters()), create_graph=True)
            again = torch.autograd.grad(torch.stack([slope.square().sum() for slope in slopes]).sum(), images)
        return [value.detach().cpu() for value in (outputs, *slopes, *again)]

    with SecondDevice():
        (outputs, *slopes, again), (wanted, *true, wanted_again) = run_on(NAME), run_on("cpu")
        # Biases in front of a norm have slopes of zero, up to noise that depends on the order: all slopes share one scale.
        scales = [wanted, *[max(true, key=lambda value: float(value.abs().max()))] * len(true), wanted_again]
        pairs = zip([outputs, *slopes, again], [wanted, *true, wanted_again], scales, strict=True)
        for found, expected, scale in pairs:
            assert torch.allclose(found, expected, rtol=0.05, atol=0.02 * float(scale.abs().max()))
    assert seen == [[True, True], [False, False]], seen


if __name__ == "__main__":
    sys.path.insert(0, str(_TESTS))
    if sys.argv[1] in (alone := {"refusals": refusals, "recommenders": recommenders, "channels-last": channels_last}):
        alone[sys.argv[1]]()
    else:
        compare(*sys.argv[1:])
