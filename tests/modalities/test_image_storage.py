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
from datastill.modalities.factorised import factorise
from datastill.modalities.image import ImageModality
from datastill.modalities.image_generators import Hallucinators, LatentCodes
from datastill.modalities.image_storage import Frequencies, LinearBases, LowResolution, MultiFormation, Preconditioned
from datastill.modalities.image_storages import check_storage, make_storage
from datastill.modalities.image_styles import StyleAdversary, supervised_contrast
from datastill.modalities.latents import LatentSummary
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.rng import generator, isolated

IMAGES = torch.randn(8, 3, 6, 10, generator=generator("images"))


def number_of(storage: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in storage.parameters())


def test_frequencies_are_those_of_scipy() -> None:
    storage = Frequencies.of(IMAGES, keep=0.5)
    spectrum = dctn(IMAGES.numpy(), axes=(2, 3), norm="ortho")
    assert np.allclose(storage.coefficients.detach().numpy(), spectrum[:, :, :3, :5], atol=1e-5)
    spectrum[:, :, 3:] = 0
    spectrum[:, :, :, 5:] = 0
    assert np.allclose(storage().detach().numpy(), idctn(spectrum, axes=(2, 3), norm="ortho"), atol=1e-5)
    assert number_of(storage) == 8 * 3 * 3 * 5
    assert torch.allclose(Frequencies.of(IMAGES, keep=1)(), IMAGES, atol=1e-5)


def test_bases_begin_as_the_best_approximation_of_their_rank() -> None:
    flat = IMAGES.flatten(1).numpy()
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    for rank in (1, 5, 8):
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        storage = LinearBases.of(IMAGES, bases=rank)
        assert np.allclose(storage().detach().flatten(1).numpy(), best, atol=1e-4)
        assert number_of(storage) == rank * 180 + 8 * rank
    assert number_of(LinearBases.of(IMAGES, bases=4, downscale=2)) == 4 * 3 * 3 * 5 + 8 * 4
    assert LinearBases.of(IMAGES, bases=4, downscale=2)().shape == IMAGES.shape


def test_each_image_is_its_own_tile_enlarged() -> None:
    storage = MultiFormation.of(IMAGES, factor=2)
    assert storage.mosaics.shape == (2, 3, 6, 10)
    assert number_of(storage) == IMAGES.numel() // 4
    tiles = [storage.mosaics[i, :, r : r + 3, c : c + 5] for i in (0, 1) for r in (0, 3) for c in (0, 5)]
    expected = F.interpolate(torch.stack(tiles), (6, 10), mode="bilinear", align_corners=False)
    assert torch.equal(storage(), expected)
    constant = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 6, 10)
    assert torch.allclose(MultiFormation.of(constant, factor=2)(), constant, atol=1e-5)
    odd = MultiFormation.of(torch.ones(9, 1, 8, 8), factor=3)
    assert odd.mosaics.shape == (1, 1, 9, 9)
    assert odd().shape == (9, 1, 8, 8)


def test_small_images_are_enlarged() -> None:
    storage = LowResolution.of(IMAGES, downscale=2)
    assert number_of(storage) == IMAGES.numel() // 4
    assert torch.equal(storage(), F.interpolate(storage.small, (6, 10), mode="bilinear", align_corners=False))
    tiles = MultiFormation.of(IMAGES, factor=2)  # the same tiles, put together
    assert torch.allclose(storage(), tiles(), atol=1e-6)
    odd = LowResolution.of(torch.ones(5, 1, 7, 8), downscale=3)
    assert odd.small.shape == (5, 1, 3, 3)
    assert torch.allclose(odd(), torch.ones(5, 1, 7, 8))


def test_hallucinators_have_the_published_size_and_styles() -> None:
    colour = torch.randn(10, 3, 32, 32, generator=generator("colour"))
    storage = make_storage("hallucinators", colour, {"styles": 5, "fit": 0})
    assert isinstance(storage, Hallucinators)
    assert number_of(storage) == 2 * 3 * 32 * 32 + 5 * 5568
    images = storage().view(2, 5, 3, 32, 32)
    for style in range(5):  # one after another, as the paper's modules do
        inside = F.conv2d(storage.bases, storage.encoders[style], storage.encoder_biases[style])
        inside = storage.scales[style] * inside + storage.shifts[style]
        alone = F.conv_transpose2d(inside, storage.decoders[style], storage.decoder_biases[style])
        assert torch.allclose(images[:, style], alone, atol=1e-5)


def test_codes_go_through_every_decoder() -> None:
    storage = make_storage("codes", IMAGES, {"decoders": 4, "channels": 2, "width": 5, "fit": 0})
    assert isinstance(storage, LatentCodes)
    assert number_of(storage) == 2 * 2 * 2 * 3 + 4 * (2 * 5 * 16 + 5 + 5 * 3 * 16 + 3)
    images = storage()
    assert images.shape == IMAGES.shape
    for number in range(4):
        hidden = F.conv_transpose2d(storage.codes, storage.first[number], storage.first_biases[number], 2, 1).relu()
        alone = F.conv_transpose2d(hidden, storage.second[number], storage.second_biases[number], 2, 1)
        assert torch.allclose(images[number::4], alone[:, :, :6, :10], atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("hallucinators", {"styles": 4}), ("codes", {"decoders": 4})])
def test_generators_begin_nearer_to_the_images_than_their_mean(name: str, options: dict[str, Any]) -> None:
    smooth = F.interpolate(IMAGES, (12, 20), mode="bilinear")
    made = make_storage(name, smooth, options, seed=1)
    assert (made() - smooth).square().mean() < 0.7 * (smooth - smooth.mean(0)).square().mean()
    again = make_storage(name, smooth, options, seed=1)
    assert torch.equal(made(), again())


def test_the_adversary_draws_styles_apart() -> None:
    images = torch.randn(4, 1, 8, 8, generator=generator("bases")).repeat_interleave(3, 0)
    groups = torch.tensor([0, 1]).repeat_interleave(6)
    adversary = StyleAdversary((1, 8, 8), 2, styles=3, weight=1.0, seed=0)
    assert float(adversary.penalty(images, groups)) == pytest.approx(1.0, abs=1e-5)  # all styles of a base are equal
    before = [value.clone() for value in adversary.net.parameters()]
    noisy = (images + 0.1 * torch.randn(images.shape, generator=generator("styles"))).requires_grad_()
    with isolated(3):
        loss = adversary.penalty(noisy, groups)
    (pull,) = torch.autograd.grad(loss, noisy)
    assert any(not torch.equal(a, b) for a, b in zip(before, adversary.net.parameters()))
    assert not any(value.requires_grad for value in adversary.parameters())
    with torch.no_grad():
        further = StyleAdversary((1, 8, 8), 2, styles=3, weight=1.0, seed=0)
        further.load_state_dict(adversary.state_dict())
        with isolated(3):
            after = further.penalty(noisy - 100 * pull, groups)
    assert float(after) < float(loss.detach())


def test_supervised_contrast_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    groups = torch.tensor([0, 0, 1, 2])
    high, none, half = np.exp(1 / 0.07), 1.0, np.exp(0.5**0.5 / 0.07)
    expected = -np.log(high / (high + none + half))  # of each of the two that have a mate
    assert float(supervised_contrast(features, groups)) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(supervised_contrast(features, torch.arange(4))) == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("formation", {"factor": 3}, "must be a multiple of 9, got 8 for class 0: ask for 9"),
        ("hallucinators", {"styles": 3}, "must be a multiple of 3, got 8 for class 0: ask for 9"),
        ("codes", {"decoders": 5}, "must be a multiple of 5, got 8 for class 0: ask for 10"),
        ("hallucinators", {"styles": 0}, "styles must be an integer of at least 1"),
        ("hallucinators", {"styles": 2, "diversity": -1}, "diversity must be a number of at least 0, got -1"),
        (
            "hallucinators",
            {"styles": 2, "diversity": float("inf")},
            "diversity must be a number of at least 0, got inf",
        ),
        ("codes", {"width": 0}, "width must be an integer of at least 1"),
        ("formation", {"factor": 1}, "factor must be an integer of at least 2"),
        ("formation", {"factor": 7}, "factor must be at most 6"),
        ("bases", {"bases": 9}, "bases must be at most 8"),
        ("frequencies", {"keep": 0}, r"keep must be a number in \(0, 1\], got 0"),
        ("low-resolution", {"downscale": 1}, "downscale must be an integer of at least 2"),
        ("low-resolution", {"downscale": 7}, "downscale must be at most 6, got 7"),
        ("preconditioned", {"mixing": 0}, "mixing must be a positive number, got 0"),
        ("frequencies", {"factor": 2}, "has the options keep, got 'factor'"),
        ("frequency", {}, "Did you mean 'frequencies'"),
    ],
)
def test_what_cannot_be_stored_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    def make() -> None:
        check_storage(name, [49 if options == {"factor": 7} else 8], options, None)
        make_storage(name, IMAGES, options)

    with pytest.raises(InputError, match=said):
        make()


def test_a_learned_matrix_is_folded_into_the_images_and_takes_no_bytes_of_theirs() -> None:
    modality = digits()
    storage = Preconditioned.of(IMAGES, mixing=0.5)
    assert torch.equal(storage(), IMAGES)
    with torch.no_grad():
        storage.mixing.copy_(torch.randn(180, 180, generator=generator("mixing")))
    matrix = np.eye(180) + 0.5 * storage.mixing.detach().numpy()
    products = np.einsum("nd,de->ne", IMAGES.flatten(1).numpy(), matrix)
    assert np.allclose(storage().detach().flatten(1).numpy(), products, atol=1e-4)

    summary = modality.summary([2, 2, 2], rng=generator(0), storage="preconditioned", clamp=False)
    free = modality.summary([2, 2, 2], rng=generator(0), clamp=False)
    kept = distill(
        modality,
        summary,
        DistributionMatching(refresh=100, real_size=None, augment=False),
        steps=5,
        lr=0.02,
        validate_every=0,
        progress=False,
    )
    pixels, learned = (value.detach() for value in summary.parameters())
    assert float(learned.abs().max()) > 0.01
    products = torch.from_numpy(pixels.flatten(1).numpy() @ (np.eye(64) + 0.05 * learned.numpy())).float()
    exported = kept.export()
    assert torch.allclose(modality.read(exported).inputs.flatten(1), products, atol=1e-5)
    assert modality.size(exported) == modality.size(free.export())


def test_adam_moves_the_matrix_by_its_rate() -> None:
    storage = Preconditioned.of(IMAGES, mixing=0.3)
    optimizer = torch.optim.Adam(storage.parameters(), lr=0.01)
    (storage() * torch.randn(IMAGES.shape, generator=generator("slopes"))).sum().backward()
    optimizer.step()
    assert torch.allclose((0.3 * storage.mixing.detach()).abs(), torch.full((180, 180), 0.003), rtol=1e-3)
    assert torch.allclose((storage.pixels.detach() - IMAGES).abs(), torch.full(IMAGES.shape, 0.01), rtol=1e-2)


def test_clamping_a_preconditioned_storage_clamps_its_images() -> None:
    summary = digits().summary([2, 2, 2], rng=generator(0), storage="preconditioned", mixing=1.0)
    pixels, mixing = summary.parameters()
    with torch.no_grad():
        mixing.copy_(2.0 * torch.eye(64))
    wanted = (3.0 * pixels.detach()).clone()
    summary.project_()
    low, high = summary.scale.bounds(wanted)
    assert torch.allclose(summary().inputs.detach(), torch.minimum(torch.maximum(wanted, low), high), atol=1e-5)
    assert not torch.allclose(summary().inputs.detach(), wanted, atol=1e-2)


def test_nothing_is_put_in_the_place_of_a_preconditioned_parameter() -> None:
    summary = digits().summary([2, 2, 2], rng=generator(0), storage="preconditioned")
    with pytest.raises(InputError, match="cannot be factorised"):
        factorise(summary, 2)
    with pytest.raises(InputError, match="cannot have latents"):
        LatentSummary(summary, torch.nn.Identity(), (1, 8, 8), rng=generator(0))


def test_pixels_in_range_keep_their_learned_matrix() -> None:
    summary = digits().summary([2, 2, 2], rng=generator(0), storage="preconditioned")
    pixels, mixing = summary.parameters()
    with torch.no_grad():
        pixels.mul_(0.1)
        mixing.copy_(0.01 * torch.eye(64))
    before = mixing.detach().clone()
    summary.project_()
    assert torch.equal(mixing.detach(), before)


def test_a_preconditioned_storage_refuses_a_codec_and_images_too_large_for_a_matrix() -> None:
    with pytest.raises(InputError, match="codec rounds the latter"):
        digits().summary([2, 2, 2], rng=generator(0), storage="preconditioned", codec="int8")
    with pytest.raises(InputError, match="12,288 at most, got 49,152"):
        Preconditioned.of(torch.zeros(1, 3, 128, 128))


def digits() -> ImageModality:
    labels = torch.arange(3).repeat_interleave(12)
    pixels = torch.rand(36, 1, 8, 8, generator=generator("pixels"))
    pixels[torch.arange(36), 0, labels * 2] += 1.0
    held = (pixels[::3], labels[::3])
    return ImageModality(pixels, labels, validation=held, test=held)


STORED: list[dict[str, Any]] = [
    {"storage": "frequencies", "keep": 0.5},
    {"storage": "low-resolution", "downscale": 2},
    {"storage": "bases", "bases": 2},
    {"storage": "hallucinators", "styles": 1, "fit": 0},
    {"storage": "codes", "decoders": 1, "channels": 1, "width": 2, "fit": 5},
    {"storage": "preconditioned"},
]


@pytest.mark.parametrize("options", STORED, ids=lambda options: options["storage"])
@pytest.mark.parametrize("check", MODALITY_CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Any, options: dict[str, Any]) -> None:
    check(digits(), **options)


@pytest.mark.parametrize(
    "options",
    [
        *STORED[:2],
        {"storage": "formation", "factor": 2},
        {"storage": "hallucinators", "styles": 4, "codec": "float16"},
        {"storage": "codes", "decoders": 2, "channels": 1, "width": 3},
        {"storage": "pixels", "codec": "int8"},
    ],
    ids=lambda options: options["storage"],
)
def test_any_objective_optimises_it_in_fewer_bytes(options: dict[str, Any]) -> None:
    modality = digits()
    plain = modality.summary([4] * 3, rng=generator(0))
    summary = modality.summary([4] * 3, rng=generator(0), **options)
    assert summary.nbytes < 0.6 * plain.nbytes
    assert summary.num_points == plain.num_points
    objective = DistributionMatching(
        refresh=100, real_size=None, augment=False
    )  # one network, the same loss at every step
    result = distill(modality, summary, objective, steps=10, lr=0.02, validate_every=0, progress=False)
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert result.export().tensors[0].shape == (12, 1, 8, 8)
