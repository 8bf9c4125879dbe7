from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from datastill import condense_images, evaluate, load, recipes
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.rng import generator

QUICK = dataclasses.replace(recipes.default("image"), validate_every=0)  # without trainings for selection


def halves() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    data = load_digits()
    return (data.images[:1200], data.target[:1200]), (data.images[1200:], data.target[1200:])


def test_default_beats_random_images_and_keeps_the_scale() -> None:
    train, test = halves()
    small = condense_images(*train, per_class=1, recipe=QUICK, steps=80, seed=0, progress=False)
    images, labels = small.tensors
    assert isinstance(small, TensorDataset)
    assert images.shape == (10, 1, 8, 8)
    assert labels.tolist() == list(range(10))
    assert float(images.min()) >= 0
    assert 8 < float(images.max()) <= 16
    modality = ImageModality(*train, test=test)

    def accuracy(dataset: TensorDataset) -> float:
        predictor = modality.fit(modality.read(dataset), "ntk", rng=generator(0))
        return modality.score(predictor, "test")["accuracy"]

    baseline = sum(accuracy(modality.subset([1] * 10, rng=generator(seed))) for seed in range(3)) / 3
    assert accuracy(small) > baseline + 0.1


def test_same_seed_same_result_and_a_run_folder(tmp_path: Path) -> None:
    (images, labels), _ = halves()
    pixels = torch.from_numpy(images[:150] * 15).to(torch.uint8)
    runs = [
        condense_images(
            (pixels, torch.from_numpy(labels[:150])),
            per_class=2,
            recipe=QUICK,
            steps=2,
            seed=3,
            progress=False,
            out=out,
        )
        for out in (tmp_path / "run", None)
    ]
    assert torch.equal(runs[0].tensors[0], runs[1].tensors[0])
    assert runs[0].tensors[0].dtype == torch.uint8
    assert (tmp_path / "run/metrics.jsonl").is_file()
    assert (tmp_path / "run/artifact").is_dir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 0}, "per_class must be"),
        ({"per_class": 500}, "fewer than the 500"),
        ({"recipe": "dmm"}, "Did you mean 'dm'"),
        ({"recipe": "gcond"}, "not for image"),
        ({"steps": 0}, "steps must be"),
        ({"validation": 2.0}, "validation must be"),
        ({"augmentation": "flop"}, "Did you mean 'flip'"),
    ],
)
def test_bad_input_is_refused_before_work(options: dict[str, object], words: str) -> None:
    train, _ = halves()
    with pytest.raises(InputError, match=words):
        condense_images(*train, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": "a"}, "seed must be an integer of at least 0, got 'a'"),
        ({"seed": -1}, "seed must be"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
    ],
)
def test_what_is_wrong_with_the_run_is_said_before_the_data_are_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        condense_images("no such folder", **options)


def few() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return (pixels[:200] / 16).reshape(-1, 8, 8).astype("float32"), labels[:200]


@pytest.mark.parametrize("storage", ["bases", "hallucinators", "codes"])
def test_a_recipe_of_pixels_by_sgd_moves_factors_by_another_rule(storage: str) -> None:
    recipe = dataclasses.replace(recipes["dm"].on("image"), validate_every=0)
    recipe = dataclasses.replace(recipe, settings={**recipe.settings, "learner": "convnet-w8", "real_size": 16})
    job = condense_images.job(*few(), per_class=10, recipe=recipe, storage=storage, steps=30, progress=False)
    assert (job.recipe.optimizer, job.recipe.momentum) == ("adam", None)
    result = job.run()
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert np.mean(losses[-10:]) < 1.2 * np.mean(losses[:10])  # by SGD of rate 1 it is tens of times as much
    assert float(result.export().tensors[0].abs().max()) < 4
    for kept in ("formation", "low-resolution", "frequencies"):
        plain = condense_images.job(*few(), per_class=12, recipe=recipe, storage=kept, progress=False)
        assert (plain.recipe.optimizer, plain.recipe.lr) == ("sgd", 1.0)


def test_finished_real_points_are_not_overwritten(tmp_path: Path) -> None:
    def run(name: str, seed: int = 0, each: int = 1, turned: bool = False) -> TensorDataset:
        options: dict[str, Any] = {"steps": 1 if name == "dm" else None, "out": tmp_path / "run", "progress": False}
        pixels, labels = few()
        return condense_images(
            1 - pixels if turned else pixels, labels, per_class=each, recipe=name, seed=seed, **options
        )

    first = run("random")
    assert torch.equal(run("random").tensors[0], first.tensors[0])  # the same again is no loss
    for name, seed in (("random", 1), ("herding", 0), ("dm", 0)):
        with pytest.raises(InputError, match=rf"holds another run, whose results those of '{name}' with seed {seed}"):
            run(name, seed)
    with pytest.raises(InputError, match=r"with seed 0 and 20 points would overwrite"):
        run("random", each=2)
    with pytest.raises(InputError, match=r"holds another run"):
        run("random", turned=True)
    assert torch.equal(load(tmp_path / "run").dataset.tensors[0], first.tensors[0])


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, said in (
        (tmp_path / "file", "cannot be a run's folder"),
        (tmp_path / "file" / "below", "cannot be a run's folder"),
        ("", "out must be the path of a folder"),
        (3, "out must be the path of a folder"),
    ):
        with pytest.raises(InputError, match=said):
            condense_images(*few(), per_class=1, recipe="random", out=out, progress=False)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "mine"


def test_images_alike_are_validated_by_the_ridges_that_they_allow() -> None:
    pixels, labels = few()
    modality = ImageModality(np.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape).copy(), labels)
    full = modality.full()
    machine = modality.fit_kernel(full, modality.kernel("ntk"), [0.0, 1e-17, 0.5])
    assert machine.ridge == 0.5  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"No ridge of \(0.0,\) makes the Gram matrix of these \d+ points positive definite"
    ):
        modality.fit_kernel(full, modality.kernel("ntk"), [0.0])


def test_names_and_lists_that_are_wrong_are_said() -> None:
    pixels, labels = few()
    with pytest.raises(InputError, match=r"Did you mean 'lenet'\?.*alexnet.*resnet18.*vgg11"):
        evaluate((pixels[:20], labels[:20]), ImageModality(pixels, labels, test=few()), learners=["lenett"])
    with pytest.raises(InputError, match=r"data with labels must be a tensor or an array of images, got a list"):
        condense_images([*pixels], labels, per_class=1)
    with pytest.raises(InputError, match=r"device 'meta' cannot be used here"):
        condense_images(pixels, labels, per_class=1, recipe="random", device="meta", progress=False)
