"""Latent codes of a frozen decoder, on images and on toy points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from datastill import distill, evaluate
from datastill.checks import check_resume
from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import InputError
from datastill.modalities.factorised import factorise
from datastill.modalities.image import ImageModality
from datastill.modalities.latents import LatentSummary
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator, isolated


def digits() -> ImageModality:
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32), torch.tensor(found.target)
    return ImageModality(images[:1000], labels[:1000], test=(images[1000:], labels[1000:]))


def principal_decoder(modality: ImageModality, codes: int) -> nn.Module:
    """The best linear decoder of the training images, which is known in closed form."""
    flat = modality.real().inputs.flatten(1)
    mean = flat.mean(0)
    _, _, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    linear = nn.Linear(codes, 64)
    with torch.no_grad():
        linear.weight.copy_(axes[:codes].T)
        linear.bias.copy_(mean)
    return nn.Sequential(linear, nn.Unflatten(1, (1, 8, 8)))


def test_inversion_finds_the_projection() -> None:
    modality = digits()
    points = modality.summary([1] * 10, rng=generator(0), clamp=False)
    real = points().inputs.detach().clone()
    decoder = principal_decoder(modality, 16)
    summary = LatentSummary(points, decoder, (16,), rng=generator(0), inversion_steps=2000)
    linear = decoder[0]  # type: ignore[index]
    coordinates = (real.flatten(1) - linear.bias) @ linear.weight
    torch.testing.assert_close(summary.codes.detach(), coordinates, atol=1e-3, rtol=1e-3)
    expected = coordinates @ linear.weight.T + linear.bias
    torch.testing.assert_close(summary().inputs.detach().flatten(1), expected, atol=1e-3, rtol=1e-3)


def test_codes_are_distilled_and_the_decoder_is_not() -> None:
    modality = digits()
    points = modality.summary([1] * 10, rng=generator(0), labels="learned", clamp=False)
    decoder = principal_decoder(modality, 16)
    before = [value.clone() for value in decoder.parameters()]
    summary = LatentSummary(points, decoder, (16,), rng=generator(0))
    assert set(summary.parameter_groups()) == {"points", "labels"}
    assert not summary.exact_export  # so that evaluation reports these bytes and not those of decoded pixels
    assert summary.nbytes == 4 * (10 * 16 + 16 * 64 + 64 + 10 * 10) + 8 * 10  # codes, decoder, soft labels; classes
    result = distill(
        modality, summary, DistributionMatching(real_size=32), steps=60, lr=0.1, validate_every=0, progress=False
    )
    losses = [record["loss"] for record in result.history]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert all(torch.equal(value, old) for value, old in zip(decoder.parameters(), before))
    found = evaluate(result, seeds=2, progress=False, learners=["ntk"])
    assert found.row("summary").mean("accuracy") > found.row("random subset").mean("accuracy")
    images = result.export().tensors[0]
    flat = modality.scale.normalise(images).flatten(1) - decoder[0].bias  # type: ignore[index]
    weight = decoder[0].weight  # type: ignore[index]
    torch.testing.assert_close(flat @ weight @ weight.T, flat, atol=1e-3, rtol=1e-3)  # in the decoder's span


class Latent(ToyModality):
    def summary(self, counts: list[int], **options: object) -> LatentSummary:  # type: ignore[override]
        with isolated(1):
            decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
        points = super().summary(counts, **options)  # type: ignore[arg-type]
        decoder.to(points.points)
        return LatentSummary(points, decoder, (2,), rng=generator(0), inversion_steps=20)


def test_a_codec_rounds_what_learners_see() -> None:
    modality = digits()
    points = modality.summary([1] * 10, rng=generator(0), codec="int2")
    summary = LatentSummary(points, principal_decoder(modality, 16), (16,), rng=generator(0), inversion_steps=50)
    seen = summary().inputs
    assert all(len(image.unique()) <= 4 for image in seen.detach())
    torch.testing.assert_close(modality.read(summary.export()).inputs, seen.detach(), atol=1e-2, rtol=0)
    seen.square().sum().backward()
    assert summary.codes.grad is not None
    assert float(summary.codes.grad.abs().sum()) > 0


def test_other_objectives_and_resuming() -> None:
    modality = Latent()
    check_resume(
        modality,
        lambda: TrajectoryMatching(experts=1, expert_interval=2, max_start=1, inner_steps=2),
        steps=4,
    )


def test_refusals() -> None:
    modality = ToyModality()
    points = modality.summary([2] * 3, rng=generator(0))
    with pytest.raises(InputError, match=r"points of shape \(6, 5\) from codes \(6, 2\), it gives \(6, 4\)"):
        LatentSummary(points, nn.Linear(2, 4), (2,), rng=generator(0))
    with pytest.raises(InputError, match=r"cannot read codes of shape \(6, 3\)"):
        LatentSummary(points, nn.Linear(2, 5), (3,), rng=generator(0))
    with pytest.raises(
        InputError, match=r"role must name one parameter of the summary, got 'pixels'; it has 'points' \(1\)"
    ):
        LatentSummary(points, nn.Linear(2, 5), (2,), rng=generator(0), role="pixels")

    class Deaf(nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return torch.zeros(6, 5)

    with pytest.raises(InputError, match="differentiable in the codes"):
        LatentSummary(points, Deaf(), (2,), rng=generator(0))


def test_what_the_wrapped_summary_asks_for_is_asked_of_the_decoded_points() -> None:
    class Asking(ToySummary):
        planned = 0

        def plan(self, steps: int) -> None:
            self.planned = steps

        def penalty(self) -> torch.Tensor:
            return self.points.square().sum()

    class Modality(ToyModality):
        def summary(self, counts: Any, **options: Any) -> Any:
            made = super().summary(counts, **options)
            made.__class__ = Asking
            return made

    inner = Modality().summary([2] * 3, rng=generator(0))
    decoder = nn.Linear(2, 5)
    latent = LatentSummary(inner, decoder, (2,), rng=generator(0), inversion_steps=3)
    names = [name for name, _ in latent.named_parameters()]
    penalty = latent.penalty()
    assert penalty is not None
    torch.testing.assert_close(penalty, decoder(latent.codes).square().sum())
    penalty.backward()
    by_hand = 2 * decoder(latent.codes).detach() @ decoder.weight
    torch.testing.assert_close(latent.codes.grad, by_hand)
    assert sorted(name for name, _ in latent.named_parameters()) == sorted(names)
    latent.plan(7)
    assert inner.planned == 7
    other = Modality().summary([2] * 3, rng=generator(0))
    factorise(other, 2).plan(9)
    assert other.planned == 9
