"""KIP's label solve against least squares of other libraries, and what it makes of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from datastill import recipes
from datastill.backbones.batch import Batch
from datastill.backbones.ridge import ridge_solve
from datastill.condense.common import run_recipe
from datastill.errors import InputError
from datastill.evaluation import evaluate
from datastill.loop import distill
from datastill.modalities.image import ImageModality
from datastill.modalities.image_summary import ImageSummary
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.label_solve import NormalEquations
from datastill.rng import generator


@pytest.fixture(scope="module")
def modality() -> ImageModality:
    """Three classes of 6 x 5 images around different centres, in float64."""
    rng = generator("label solve")
    labels = torch.arange(150) % 3
    images = torch.rand(3, 6, 5, generator=rng)[labels] + 0.7 * torch.rand(150, 6, 5, generator=rng)
    parts = [(images[start : start + 50], labels[start : start + 50]) for start in (0, 50, 100)]
    return ImageModality(parts[0], validation=parts[1], test=parts[2]).to(dtype=torch.float64)


def summary(modality: ImageModality, labels: str = "signed") -> ImageSummary:
    return modality.summary([2, 1, 3], rng=generator("summary"), labels=labels, clamp=False)


def predictor(modality: ImageModality, points: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """M = K_ts (K_ss + ridge)^-1 of all real points, and their encoded targets."""
    kernel, real = modality.kernel(), modality.real()
    inverse = ridge_solve(kernel(points, points), torch.eye(len(points), dtype=torch.float64), ridge)
    return kernel(real.inputs, points) @ inverse, modality.encode(real.targets)


def test_signed_labels_are_the_least_squares_solution(modality: ImageModality) -> None:
    made = summary(modality)
    objective = KernelRidge(ridge=1e-3, real_size=None, solve_labels=True, solve_size=None)
    objective.start(modality, made)
    objective.settle()
    matrix, targets = predictor(modality, made().inputs.detach(), 1e-3)
    expected = torch.linalg.lstsq(matrix, targets).solution + 1 / 3
    torch.testing.assert_close(made().targets.detach(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expected.sum(1), torch.ones(6, dtype=torch.float64))
    assert float(expected.min()) < -0.01  # no distributions
    loss = float(objective.loss(generator(0)).detach())
    assert loss == pytest.approx(float(0.5 * (matrix @ (expected - 1 / 3) - targets).square().mean()))


def test_distributions_are_the_best_ones(modality: ImageModality) -> None:
    made = summary(modality, "learned")
    objective = KernelRidge(ridge=1e-3, real_size=None, solve_labels=True, solve_size=None)
    objective.start(modality, made)
    objective.settle()
    found = made().targets.detach()
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    matrix, targets = predictor(modality, made().inputs.detach(), 1e-3)

    def error(labels: Any) -> float:
        return float((matrix @ (torch.as_tensor(labels).reshape(6, 3) - 1 / 3) - targets).square().sum())

    rows = [{"type": "eq", "fun": lambda labels, row=row: labels.reshape(6, 3)[row].sum() - 1} for row in range(6)]
    other = minimize(error, found.numpy().ravel() * 0 + 1 / 3, bounds=[(0, 1)] * 18, constraints=rows, tol=1e-10)
    assert error(found) == pytest.approx(other.fun, rel=1e-4)
    assert error(found) <= other.fun * (1 + 1e-6)


def test_points_that_coincide_share_the_label_of_least_norm() -> None:
    matrix = torch.randn(20, 3, generator=generator(0), dtype=torch.float64)[:, [0, 1, 2, 2]]
    targets = torch.randn(20, 2, generator=generator(1), dtype=torch.float64)
    found = NormalEquations(matrix.T @ matrix, matrix.T @ targets, 1e-15).solve()
    torch.testing.assert_close(found, torch.linalg.pinv(matrix) @ targets)


@pytest.mark.parametrize("labels", ["signed", "learned"])
def test_gradients_of_the_points_see_the_labels_move(modality: ImageModality, labels: str) -> None:
    """Finite differences of a loss whose labels are solved again at every evaluation."""
    made = summary(modality, labels)
    objective = KernelRidge(ridge=1e-2, real_size=None, solve_labels=True)
    objective.start(modality, made)
    loss = objective.loss(generator(0))
    loss.backward()
    (points,) = made.parameter_groups()["points"]
    assert points.grad is not None
    assert made.labels is not None
    assert made.labels.grad is None
    direction = torch.randn(points.shape, generator=generator("direction"), dtype=torch.float64)
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            points.add_(step * direction)
            values.append(float(objective.loss(generator(0))))
            points.sub_(step * direction)
    assert float((points.grad * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-3)


def test_a_run_solves_the_labels_that_it_exports(modality: ImageModality) -> None:
    made = summary(modality)
    hard = modality.fit_kernel(made().detach(), modality.kernel(), [1e-6])
    objective = KernelRidge(real_size=5, solve_labels=True)
    result = distill(modality, made, objective, steps=3, lr=0.01, validator="ntk", progress=False)
    _, labels = result.export().tensors
    assert labels.dtype == torch.float32
    assert float(labels.min()) < 0
    read = modality.read(result.export())
    assert torch.allclose(read.targets, labels.double())
    assert result.best_score is not None
    assert result.best_score >= modality.score(hard, "validation")["accuracy"]
    found = evaluate(result, protocol="krr", seeds=1, progress=False, learners=["ntk", "cntk-d1"])
    assert found.row("summary", "ntk").mean("accuracy") > 0.6


def test_networks_learn_signed_labels_by_regression(modality: ImageModality) -> None:
    batch = modality.real(3, rng=generator(0))
    signed = 1.5 * modality.encode(batch.targets) + 1 / 3
    assert modality.trains_by_regression(signed)
    assert not modality.trains_by_regression(batch.targets)
    assert not modality.trains_by_regression(torch.full((9, 3), 1 / 3))
    net = modality.fit(Batch(batch.inputs, signed, batch.groups), "mlp", rng=generator(1))
    with torch.no_grad():
        outputs = net(batch.inputs)
    assert float((outputs - modality.encode(signed)).square().mean()) < float(modality.encode(signed).square().mean())


def test_recipe_of_label_solve_leaves_the_images(modality: ImageModality) -> None:
    result = run_recipe(modality, [1, 1, 1], recipes["kip-label-solve"].on("image"), progress=False)
    images = result.export().tensors[0]
    differences = (modality.pick(torch.arange(50)).tensors[0][:, None] - images[None]).abs().amax((2, 3, 4))
    assert float(differences.min(0).values.max()) < 1e-5
    assert float(result.export().tensors[1].min()) < 0


def test_refusals(modality: ImageModality) -> None:
    with pytest.raises(InputError, match="leave platt out"):
        KernelRidge(solve_labels=True, platt=True)
    with pytest.raises(InputError, match="a summary that learns its labels"):
        KernelRidge(solve_labels=True).start(modality, summary(modality, "hard"))
    with pytest.raises(InputError, match="Did you mean 'signed'"):
        summary(modality, "singed")
