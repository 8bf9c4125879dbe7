from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from datastill import condense_images, recipes
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
