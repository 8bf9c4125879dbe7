"""Linear bases in the place of any summary's vectors: nodes, tokens, users, and the toy's points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill import distill, evaluate
from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import InputError
from datastill.modalities.base import Modality
from datastill.modalities.factorised import factorise
from datastill.modalities.image import ImageModality
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.text import TextModality
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.rng import generator


def users() -> Modality:
    matrix = (np.random.default_rng(0).random((60, 25)) < 0.3).astype(np.float64)
    return InteractionsModality.from_logs(sp.csr_matrix(matrix))


def sentences() -> Modality:
    good, bad = ["good film", "fine good work", "good"], ["bad film", "poor bad work", "bad"]
    return TextModality((good + bad) * 8, ([1] * 3 + [0] * 3) * 8, test=(good + bad, [1] * 3 + [0] * 3))


def nodes() -> Modality:
    pytest.importorskip("torch_geometric")
    from datastill.demo import neighbour_graph
    from datastill.sources import load_digits, split_by_class

    pytest.importorskip("sklearn")
    pixels, labels = load_digits()
    pixels, labels = pixels[:300], labels[:300]
    _, held = split_by_class(labels, seed=0)
    from datastill.modalities.graph import GraphModality

    return GraphModality(neighbour_graph(pixels, labels, held, seed=0))


def test_begins_as_the_best_approximation_and_is_differentiable() -> None:
    modality = ToyModality(points=30, width=6)
    plain = modality.summary([4, 4, 4], rng=generator(0))
    values = plain.points.detach().clone()
    summary = factorise(plain, 2)
    left, sizes, right = np.linalg.svd(values.numpy(), full_matrices=False)
    best = (left[:, :2] * sizes[:2]) @ right[:2]
    assert np.allclose(summary().inputs.detach().numpy(), best, atol=1e-5)
    assert summary.nbytes == (12 * 2 + 2 * 6) * 4 + 12 * 8
    assert summary.num_points == 12
    assert {role: len(members) for role, members in summary.parameter_groups().items()} == {"points": 2}
    grads = torch.autograd.grad(summary().inputs.square().sum(), list(summary.parameters()))
    whole = 2 * torch.from_numpy(best)
    assert torch.allclose(grads[0], whole @ summary.bases.T, atol=1e-4)
    assert torch.allclose(grads[1], summary.coefficients.T @ whole, atol=1e-4)
    assert torch.allclose(summary.export()[0], summary().inputs.detach())


@pytest.mark.parametrize("kind", [users, sentences, nodes])
def test_other_kinds_of_data_are_optimised_in_fewer_numbers(kind: Any) -> None:
    modality = kind()
    counts = [6] * modality.num_groups
    plain = modality.summary(counts, rng=generator(0))
    before = plain.nbytes
    roles = set(plain.parameter_groups())
    summary = factorise(plain, 2, by="vectors" if kind is sentences else "points")
    assert summary.nbytes < 0.7 * before
    assert set(summary.parameter_groups()) == roles
    objective = KernelRidge(ridge=0.1, real_size=None)
    result = distill(modality, summary, objective, steps=25, lr=0.05, validate_every=0, progress=False)
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert losses[-1] < losses[0]
    exported = modality.read(result.export())
    assert len(exported) == sum(counts)


def test_projection_keeps_the_rank() -> None:
    images = torch.rand(12, 1, 6, 6, generator=generator("images"))
    labels = torch.arange(12) % 2
    modality = ImageModality(images, labels, validation=(images, labels))
    summary = factorise(modality.summary([4, 4], rng=generator(0)), 3)
    with torch.no_grad():
        summary.bases.mul_(4)
    summary.project_()
    low, high = modality.scale.bounds(images)
    values = summary().inputs.detach()
    assert int(torch.linalg.matrix_rank(values.flatten(1), rtol=1e-5)) == 3
    # Not all within the range, which a low rank cannot promise, but near to it.
    assert float(torch.maximum(values - high, low - values).max()) < 0.6 * float(high - low)
    result = distill(modality, summary, DistributionMatching(real_size=4), steps=3, lr=0.1, progress=False)
    assert result.export().tensors[0].shape == (8, 1, 6, 6)


def test_both_sizes_are_scored_and_reported() -> None:
    modality = ToyModality(points=30, width=6)
    summary = factorise(modality.summary([4, 4, 4], rng=generator(0)), 2)
    result = distill(
        modality, summary, DistributionMatching(real_size=4), steps=2, lr=0.1, validate_every=0, progress=False
    )
    found = evaluate(result, seeds=1, learners=["ntk"], baselines=False, progress=False)
    sizes = {row.data: (row.points, row.nbytes) for row in found.rows}
    # float32 coefficients 12 x 2 and bases 2 x 6, or points 12 x 6; and 12 int64 labels either way.
    assert sizes == {"summary": (12, 4 * (12 * 2 + 2 * 6) + 8 * 12), "exported": (12, 4 * 12 * 6 + 8 * 12)}
    both = [row.scores for row in found.rows]
    assert both[0] == both[1]  # the toy's export rounds nothing


def test_solved_labels_are_signed_where_those_of_the_summary_are() -> None:
    rng = generator("signed")
    labels = torch.arange(90) % 3
    images = torch.rand(3, 6, 5, generator=rng)[labels] + 0.7 * torch.rand(90, 6, 5, generator=rng)
    modality = ImageModality(images[:60], labels[:60], validation=(images[60:], labels[60:])).to(dtype=torch.float64)
    plain = modality.summary([2, 1, 3], rng=generator(0), labels="signed", clamp=False).double()
    summary = factorise(plain, 3, role="points")
    objective = KernelRidge(ridge=1e-3, real_size=None, solve_labels=True, solve_size=None)
    objective.start(modality, summary)
    objective.settle()
    kernel, real, points = modality.kernel(), modality.real(), summary().inputs.detach()
    gram, cross = kernel(points, points).numpy(), kernel(real.inputs, points).numpy()
    ridge = 1e-3 * np.trace(gram) / len(gram)  # relative to the mean of the diagonal
    predict = np.linalg.solve(gram + ridge * np.eye(6), cross.T).T
    best, *_ = np.linalg.lstsq(predict, np.eye(3)[real.targets.numpy()] - 1 / 3, rcond=None)
    found = summary().targets.detach().numpy()
    np.testing.assert_allclose(found, best + 1 / 3, rtol=1e-4, atol=1e-5)
    assert found.min() < -0.01  # distributions would have no such entries


def test_versions_stay_known() -> None:
    class Versions(ToySummary):
        versions = 2

    inner = Versions(torch.rand(6, 4, generator=generator(0)), torch.arange(6) // 2)
    assert factorise(inner, 2).versions == 2


def test_refusals() -> None:
    modality = ToyModality(points=30, width=6)
    with pytest.raises(InputError, match=r"at most 6 for points of shape \(12, 6\) by points, got 7"):
        factorise(modality.summary([4, 4, 4], rng=generator(0)), 7)
    with pytest.raises(InputError, match="Did you mean 'points'"):
        factorise(modality.summary([4, 4, 4], rng=generator(0)), 2, role="point")
    images = torch.rand(12, 1, 6, 6, generator=generator("images"))
    coded = ImageModality(images, torch.arange(12) % 2).summary([2, 2], rng=generator(0), codec="int8")
    with pytest.raises(InputError, match="storage='bases'"):
        factorise(coded, 2)
