"""Factorised storage of images, against SciPy's transforms and hand-made mosaics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from datastill import distill
from datastill.checks import MODALITY_CHECKS
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.modalities.image_storage import Frequencies, LinearBases, MultiFormation, make_storage
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.rng import generator

IMAGES = torch.randn(8, 3, 6, 10, generator=generator("images"))


def number_of(storage: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in storage.parameters())


def test_frequencies_are_those_of_scipy() -> None:
    storage = Frequencies(IMAGES, keep=0.5)
    spectrum = dctn(IMAGES.numpy(), axes=(2, 3), norm="ortho")
    assert np.allclose(storage.coefficients.detach().numpy(), spectrum[:, :, :3, :5], atol=1e-5)
    spectrum[:, :, 3:] = 0
    spectrum[:, :, :, 5:] = 0
    assert np.allclose(storage().detach().numpy(), idctn(spectrum, axes=(2, 3), norm="ortho"), atol=1e-5)
    assert number_of(storage) == 8 * 3 * 3 * 5
    assert torch.allclose(Frequencies(IMAGES, keep=1)(), IMAGES, atol=1e-5)


def test_bases_begin_as_the_best_approximation_of_their_rank() -> None:
    flat = IMAGES.flatten(1).numpy()
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    for rank in (1, 5, 8):
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        storage = LinearBases(IMAGES, bases=rank)
        assert np.allclose(storage().detach().flatten(1).numpy(), best, atol=1e-4)
        assert number_of(storage) == rank * 180 + 8 * rank
    assert number_of(LinearBases(IMAGES, bases=4, downscale=2)) == 4 * 3 * 3 * 5 + 8 * 4
    assert LinearBases(IMAGES, bases=4, downscale=2)().shape == IMAGES.shape


def test_each_image_is_its_own_tile_enlarged() -> None:
    storage = MultiFormation(IMAGES, factor=2)
    assert storage.mosaics.shape == (2, 3, 6, 10)
    assert number_of(storage) == IMAGES.numel() // 4
    tiles = [storage.mosaics[i, :, r : r + 3, c : c + 5] for i in (0, 1) for r in (0, 3) for c in (0, 5)]
    expected = F.interpolate(torch.stack(tiles), (6, 10), mode="bilinear", align_corners=False)
    assert torch.equal(storage(), expected)
    constant = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 6, 10)
    assert torch.allclose(MultiFormation(constant, factor=2)(), constant, atol=1e-5)
    odd = MultiFormation(torch.ones(9, 1, 8, 8), factor=3)
    assert odd.mosaics.shape == (1, 1, 9, 9)
    assert odd().shape == (9, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("formation", {"factor": 3}, "must be a multiple of 9, got 8"),
        ("formation", {"factor": 1}, "factor must be an integer of at least 2"),
        ("formation", {"factor": 7}, "factor must be at most 6"),
        ("bases", {"bases": 9}, "bases must be at most 8"),
        ("frequencies", {"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ("frequencies", {"factor": 2}, "has the options keep, got 'factor'"),
        ("frequency", {}, "Did you mean 'frequencies'"),
    ],
)
def test_what_cannot_be_stored_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_storage(name, IMAGES, options)


def digits() -> ImageModality:
    labels = torch.arange(3).repeat_interleave(12)
    pixels = torch.rand(36, 1, 8, 8, generator=generator("pixels"))
    pixels[torch.arange(36), 0, labels * 2] += 1.0
    held = (pixels[::3], labels[::3])
    return ImageModality(pixels, labels, validation=held, test=held)


STORED: list[dict[str, Any]] = [
    {"storage": "frequencies", "keep": 0.5},
    {"storage": "bases", "bases": 2},
]


@pytest.mark.parametrize("options", STORED, ids=lambda options: options["storage"])
@pytest.mark.parametrize("check", MODALITY_CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Any, options: dict[str, Any]) -> None:
    check(digits(), **options)


@pytest.mark.parametrize(
    "options", [*STORED, {"storage": "formation", "factor": 2}], ids=lambda options: options["storage"]
)
def test_any_objective_optimises_it_in_fewer_bytes(options: dict[str, Any]) -> None:
    modality = digits()
    plain = modality.summary([4] * 3, rng=generator(0))
    summary = modality.summary([4] * 3, rng=generator(0), **options)
    assert summary.nbytes < 0.5 * plain.nbytes
    assert summary.num_points == plain.num_points
    objective = DistributionMatching(
        refresh=100, real_size=None, augment=False
    )  # one network, the same loss at every step
    result = distill(modality, summary, objective, steps=10, lr=0.02, validate_every=0, progress=False)
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert result.export().tensors[0].shape == (12, 1, 8, 8)
