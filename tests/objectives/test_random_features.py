"""RFAD's kernel against the closed form of wide networks, and its loss by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from datastill.backbones.base import FeatureKernel
from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.mlp import MLP
from datastill.backbones.ridge import ridge_solve
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.objectives.kernel_ridge import KernelRidge, draw_gaussian_
from datastill.rng import generator


@pytest.mark.parametrize("depth", [1, 3])
def test_wide_gaussian_learners_have_the_closed_form_as_their_kernel(depth: int) -> None:
    points = torch.randn(6, 5, generator=generator("points"), dtype=torch.float64)
    exact = InfiniteReLU(depth, "nngp")(points, points)
    gaps = []
    for count in (4, 64):
        nets = [MLP(5, 3, depth=depth, width=512).double() for _ in range(count)]
        for number, net in enumerate(nets):
            draw_gaussian_(net, generator(depth, number))
        with torch.no_grad():
            estimate = FeatureKernel(nets)(points, points)
        gaps.append(float((estimate - exact).norm() / exact.norm()))
    assert gaps[1] < 0.03
    assert gaps[1] < gaps[0]


def test_variances_of_the_draw() -> None:
    net = MLP(400, 3, depth=1, width=500)
    draw_gaussian_(net, generator(0))
    weight, bias = net.hidden[0].weight, net.hidden[0].bias  # type: ignore[union-attr]
    assert float(weight.detach().var()) == pytest.approx(2 / 400, rel=0.02)  # type: ignore[operator]
    assert float(bias.detach().std()) == pytest.approx(0.1, rel=0.1)  # type: ignore[operator]
    before = weight.detach().clone()  # type: ignore[operator]
    draw_gaussian_(net, generator(0))
    assert torch.equal(before, weight.detach())  # type: ignore[operator]


def test_platt_loss_by_hand() -> None:
    modality = ToyModality(points=6)
    summary = modality.summary([2, 2, 2], rng=generator(0))
    objective = KernelRidge(ridge=0.1, real_size=None, platt=True)
    objective.start(modality, summary)
    with torch.no_grad():
        objective.learnables()["sharpness"].fill_(0.7)
    kernel, real, points = modality.kernel(), modality.real(), summary.points.detach()
    coefficients = ridge_solve(kernel(points, points), modality.encode(summary().targets), 0.1)
    logits = torch.tensor(0.7).exp() * kernel(real.inputs, points) @ coefficients
    loss = objective.loss(generator(0))
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(logits, real.targets)), rel=1e-5)
    loss.backward()
    grad = objective.learnables()["sharpness"].grad
    assert grad is not None
    assert float(grad) != 0
    assert objective.learned()["sharpness"] == pytest.approx(2.01375, rel=1e-5)


def test_without_platt_nothing_is_learned_beside_the_summary() -> None:
    objective = KernelRidge()
    modality = ToyModality(points=6)
    objective.start(modality, modality.summary([1, 1, 1], rng=generator(0)))
    assert objective.learnables() == {}
    assert objective.learned() == {}
    with pytest.raises(InputError, match="Did you mean 'gaussian'"):
        KernelRidge(draw="gausian")  # type: ignore[arg-type]
