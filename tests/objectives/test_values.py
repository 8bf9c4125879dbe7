"""What each objective computes, against formulas written out by hand and against data on which it must vanish."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datastill.backbones.batch import Batch
from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.base import RealBatches, limit_of, sample
from datastill.objectives.distribution_matching import DistributionMatching, group_means
from datastill.objectives.gradient_distances import gradient_distances
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.inner import PositiveRates, shuffled_picks, version_picks
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator

MODALITY = ToyModality(points=8)


def everything() -> ToySummary:
    """The target dataset itself, as a summary."""
    real = MODALITY.real()
    return ToySummary(real.inputs, real.targets)


def small() -> ToySummary:
    return MODALITY.summary([2, 2, 2], rng=generator("small"))


def test_distances_vanish_on_the_target_dataset_itself() -> None:
    for objective in (
        DistributionMatching(real_size=None),
        GradientMatching(learner="linear", real_size=None, inner_epochs=1),
        GradientMatching(real_size=None, distance="squared"),
        GradientMatching(real_size=None, distance="cosine"),
    ):
        objective.start(MODALITY, everything())
        assert float(objective.loss(generator(1)).detach()) == pytest.approx(0.0, abs=1e-4)
        objective.start(MODALITY, small())
        assert float(objective.loss(generator(1)).detach()) > 1e-2


def test_trajectory_of_the_target_dataset_is_the_experts(tmp_path: Path) -> None:
    """Full-batch experts, and as many inner steps on the same data at the same rate: the distance is zero."""
    objective = TrajectoryMatching(
        experts=2, expert_batch=None, expert_lr=0.3, max_start=3, span=2, inner_steps=2, inner_lr=0.3
    )
    objective.start(MODALITY, everything(), workdir=tmp_path)
    for seed in range(4):
        assert float(objective.loss(generator(seed)).detach()) == pytest.approx(0.0, abs=1e-8)
    stored = sorted(entry.name for entry in (tmp_path / "experts").glob("*/*"))
    assert set(stored) <= {"expert-0000", "expert-0001"}


def test_trajectory_without_training_is_one() -> None:
    """With a vanishing inner rate the student stays at the start, so that the normalised distance is one."""
    objective = TrajectoryMatching(experts=1, max_start=1, span=1, inner_steps=3, inner_lr=1e-12)
    objective.start(MODALITY, small())
    assert float(objective.loss(generator(0)).detach()) == pytest.approx(1.0, abs=1e-6)


def test_damaged_expert_is_trained_again(tmp_path: Path) -> None:
    def loss() -> float:
        objective = TrajectoryMatching(experts=1, max_start=2, span=1, inner_steps=2)
        objective.start(MODALITY, small(), seed=5, workdir=tmp_path)
        return float(objective.loss(generator(3)).detach())

    first = loss()
    (data,) = (tmp_path / "experts").glob("*/expert-0000/data.safetensors")
    data.write_bytes(data.read_bytes()[:-7])
    assert loss() == first


def test_distribution_matching_by_hand() -> None:
    objective = DistributionMatching(learner="linear", real_size=None)
    summary = small()
    objective.start(MODALITY, summary)
    real = MODALITY.real()
    # The linear learner's features are its inputs.
    points = summary.points.detach()
    expected = sum(
        float((real.inputs[real.groups == g].mean(0) - points[2 * g : 2 * g + 2].mean(0)).square().sum())
        for g in range(3)
    )
    assert float(objective.loss(generator(0)).detach()) == pytest.approx(expected, rel=1e-5)


def test_group_means() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    means = group_means(features, torch.tensor([0, 0, 2]), 3)
    assert means.tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 20.0]]


def _angle(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b))
    return 1 - dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) + 1e-6)


def test_gradient_distance_by_hand() -> None:
    rng = generator("gradients")
    conv, line, bias = (torch.randn(shape, generator=rng) for shape in ((2, 3, 2, 2), (3, 4), (3,)))
    conv2, line2, bias2 = (torch.randn(shape, generator=rng) for shape in ((2, 3, 2, 2), (3, 4), (3,)))
    rows = sum(_angle(conv[o].flatten().tolist(), conv2[o].flatten().tolist()) for o in range(2))
    rows += sum(_angle(line[o].tolist(), line2[o].tolist()) for o in range(3))
    # A second group whose gradients are the other way round has the same distances, and the first one is not touched by it.
    ours = [torch.stack(pair) for pair in ((conv, conv2), (line, line2), (bias, bias2))]
    target = [part.flip(0) for part in ours]
    flat, flat2 = torch.cat([p[0].flatten() for p in ours]), torch.cat([p[0].flatten() for p in target])
    gap = float((flat - flat2).square().sum())
    for distance, expected in {
        "rows": [rows, rows],
        "squared": [gap, gap],
        "relative": [gap / float(flat2.square().sum()), gap / float(flat.square().sum())],
        "cosine": [_angle(flat.tolist(), flat2.tolist())] * 2,
    }.items():
        found = gradient_distances(ours, target, distance)  # type: ignore[arg-type]
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-12])
def test_gradient_distance_of_a_dead_row_has_two_derivatives(size: float) -> None:
    dead = torch.full((2, 3), size, requires_grad=True)
    distance = gradient_distances([dead[None]], [torch.ones(1, 2, 3)], "rows").sum()
    (first,) = torch.autograd.grad(distance, dead, create_graph=True)
    assert bool(first.isfinite().all())
    (second,) = torch.autograd.grad(first.sum(), dead)
    assert bool(second.isfinite().all())


def test_gradient_distance_without_a_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="weight matrix"):
        gradient_distances([torch.ones(1, 3)], [torch.ones(1, 3)], "rows")


def test_kernel_ridge_against_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.kernel_ridge")
    modality = ToyModality(points=8).to(dtype=torch.float64)
    summary = modality.summary([2, 2, 2], rng=generator("small"))
    objective = KernelRidge(ridge=0.2, real_size=None, depth=2)
    objective.start(modality, summary)
    kernel, real = modality.kernel(depth=2), modality.real()
    points, gram = summary.points.detach(), kernel(summary.points, summary.points).detach()
    oracle = sklearn.KernelRidge(alpha=0.2 * float(gram.diagonal().mean()), kernel="precomputed")
    oracle.fit(gram, modality.encode(summary().targets))
    error = oracle.predict(kernel(real.inputs, points)) - modality.encode(real.targets).numpy()
    assert float(objective.loss(generator(0)).detach()) == pytest.approx(0.5 * float((error**2).mean()), rel=1e-9)


def test_an_annealed_ridge_passes_through_the_fixed_ones() -> None:
    def loss_after(steps: int, ridge: float | tuple[float, float]) -> float:
        objective = KernelRidge(ridge=ridge, anneal=2, real_size=None)
        objective.start(MODALITY, small())
        for step in range(steps):
            objective.after_step(generator(step))
        return float(objective.loss(generator(0)).detach())

    for steps, ridge in ((0, 1.0), (1, 0.1), (2, 0.01), (5, 0.01)):
        assert loss_after(steps, (1.0, 0.01)) == pytest.approx(loss_after(0, ridge), rel=1e-9)


def test_unrolled_without_steps_to_speak_of_is_the_loss_of_a_fresh_learner() -> None:
    objective = UnrolledTraining(inner_steps=3, inner_lr=1e-12, real_size=None)
    objective.start(MODALITY, small())
    rng = generator(4)
    fresh = MODALITY.learner(rng=generator(4))
    real = MODALITY.real()
    expected = MODALITY.loss(fresh(real.inputs), real.targets)
    assert float(objective.loss(rng).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("zero_head", [False, True])
def test_unrolled_with_a_scale_is_the_scaled_loss_of_a_trained_learner(zero_head: bool) -> None:
    """By PyTorch's optimiser and a loss written out, against the value and its derivative by the scale."""
    objective = UnrolledTraining(inner_steps=3, inner_lr=0.3, real_size=None, zero_head=zero_head, platt=True)
    summary = small()
    objective.start(MODALITY, summary)
    sharpness = objective.learnables()["sharpness"]
    with torch.no_grad():
        sharpness.fill_(math.log(2.5))
    value = objective.loss(generator(4))
    (slope,) = torch.autograd.grad(value, sharpness)

    net = MODALITY.learner(rng=generator(4))
    if zero_head:
        for parameter in net.head.parameters():
            nn.init.zeros_(parameter)
    descent, synthetic = torch.optim.SGD(net.parameters(), lr=0.3), summary().detach()
    for _ in range(3):
        descent.zero_grad()
        MODALITY.loss(net(synthetic.inputs), synthetic.targets).backward()
        descent.step()
    real = MODALITY.real()
    outputs = net(real.inputs).detach()
    right = real.targets[:, None]

    def scaled(scale: float) -> float:
        return float((outputs.mul(scale).logsumexp(1) - scale * outputs.gather(1, right)[:, 0]).mean())

    assert float(value.detach()) == pytest.approx(scaled(2.5), rel=1e-5)
    by_log = (scaled(2.5 * math.exp(1e-3)) - scaled(2.5 * math.exp(-1e-3))) / 2e-3
    assert float(slope) == pytest.approx(by_log, rel=1e-2, abs=1e-5)
    assert objective.learned()["sharpness"] == pytest.approx(2.5)


def test_a_zero_head_says_nothing_before_it_trains() -> None:
    objective = UnrolledTraining(inner_steps=3, inner_lr=1e-12, real_size=None, zero_head=True)
    objective.start(MODALITY, small())
    assert float(objective.loss(generator(4)).detach()) == pytest.approx(math.log(3), rel=1e-6)


def test_gradient_matching_trains_and_replaces_its_network() -> None:
    """outer_loops matches a network, with training between; the parameters tell."""
    objective = GradientMatching(learner="linear", outer_loops=3, inner_epochs=2, inner_lr=0.02)
    objective.start(MODALITY, small())
    seen: list[Tensor] = []
    for step in range(6):
        objective.loss(generator("loss", step))
        net = objective._net
        assert net is not None
        seen.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
        objective.after_step(generator("after", step))
    distances = [float((a - b).norm()) for a, b in zip(seen, seen[1:])]
    assert all(distance > 0 for distance in distances)
    assert distances[2] > 2 * max(distances[0], distances[1], distances[3], distances[4])


def test_shuffled_picks_are_passes_over_the_points() -> None:
    picks = shuffled_picks(7, 3, 4, generator(0))
    assert all(pick is not None and len(pick) == 3 for pick in picks)
    assert len(torch.cat([pick for pick in picks[:2] if pick is not None]).unique()) == 6
    assert shuffled_picks(7, None, 2, generator(0)) == [None, None]


def test_a_step_has_one_version_of_each_point() -> None:
    whole = version_picks(15, 3, None, 40, generator(0))
    found = torch.stack([pick for pick in whole if pick is not None])
    assert torch.equal(found // 3, torch.arange(5).expand(40, 5))
    assert bool((found % 3 == found[:, :1] % 3).all())
    assert set((found[:, 0] % 3).tolist()) == {0, 1, 2}
    parts = version_picks(15, 3, 2, 2, generator(0))
    bases = torch.cat([pick // 3 for pick in parts if pick is not None])
    assert len(bases.unique()) == 4  # passes over the points, whichever version


def test_trajectories_of_styles_go_by_one_style_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bases a class in two styles: six of the twelve images at every step, and all of them without the option."""
    images = ImageModality(torch.rand(12, 1, 8, 8, generator=generator(0)), torch.arange(12) % 3)
    summary = images.summary([4] * 3, rng=generator(0), init="noise", storage="hallucinators", styles=2, fit=1)
    seen: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(outputs))
        return nn.functional.cross_entropy(outputs, targets)

    monkeypatch.setattr(images, "loss", loss)
    for one_version, expected in ((True, 6), (False, 12)):
        objective = TrajectoryMatching(
            experts=1, expert_batch=3, learner="mlp", max_start=1, span=1, inner_steps=6, one_version=one_version
        )
        objective.start(images, summary, workdir=tmp_path)
        objective.loss(generator(1))  # trains the experts too, at first
        seen.clear()
        objective.loss(generator(1))
        assert set(seen) == {expected}


def test_positive_rates() -> None:
    rates = PositiveRates(0.02, 3, learn=True)
    torch.testing.assert_close(rates(), torch.full((3,), 0.02))
    with torch.no_grad():
        rates.raw.fill_(-50.0)
    assert bool((rates() > 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistributionMatching(refresh=0), "refresh must be an integer of at least 1, got 0"),
        (
            lambda: DistributionMatching(weighting="equal"),  # type: ignore[arg-type]
            "Unknown weighting 'equal'. Known: share, uniform",
        ),
        (
            lambda: GradientMatching(distance="row"),  # type: ignore[arg-type]
            "Did you mean 'rows'",
        ),
        (lambda: GradientMatching(inner_lr=0.0), "inner_lr must be a positive number, got 0.0"),
        (lambda: UnrolledTraining(inner_lr=math.inf), "inner_lr must be a positive number, got inf"),
        (lambda: TrajectoryMatching(expert_momentum="0.9"), r"expert_momentum must be a number in \[0, 1\), got '0.9'"),  # type: ignore[arg-type]
        (lambda: DistributionMatching(class_loss=None), "class_loss must be a number of at least 0, got None"),  # type: ignore[arg-type]
        (lambda: KernelRidge(ridge=-1.0), "ridge must be a number of at least 0, or two above 0, .* got -1.0"),
        (lambda: KernelRidge(ridge=None), "ridge must be a number of at least 0, or two above 0, .* got None"),  # type: ignore[arg-type]
        (lambda: KernelRidge(ridge=(1.0, 0.0)), "The last ridge must be a positive number, got 0.0"),
        (lambda: UnrolledTraining(momentum=1.0), r"momentum must be a number in \[0, 1\), got 1.0"),
        (lambda: TrajectoryMatching(experts=0), "experts must be an integer of at least 1"),
    ],
)
def test_bad_settings_are_refused_at_once(make: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("make", [UnrolledTraining, TrajectoryMatching])
def test_what_unrolls_refuses_batch_norm(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastill.objectives.experts.train", lambda *_, **__: pytest.fail("an expert was trained"))
    images = ImageModality(torch.rand(12, 1, 8, 8, generator=generator("images")), torch.arange(12) % 2)
    summary = images.summary([1, 1], rng=generator(0))
    with pytest.raises(InputError, match=r"'convnet-w4-bn' has batch norm, .* choose one with instance or group norm"):
        make(learner="convnet-w4-bn").start(images, summary)


def test_unrolled_training_draws_at_most_so_many_real_points() -> None:
    summary = small()
    for limit, points in ((None, 18), (12, 12)):
        objective = UnrolledTraining(real_size=6, real_limit=limit)
        objective.start(MODALITY, summary)
        assert torch.bincount(objective._real(generator(1)).groups).tolist() == [points // 3] * 3


def test_unknown_kernel_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'ntk'"):
        KernelRidge(kernel="nkt").start(MODALITY, small())


def test_samples_are_stratified_and_fair() -> None:
    groups = torch.tensor([2] * 5 + [0] * 20 + [1] * 10)
    batch = Batch(torch.arange(35.0), groups, groups)
    assert sample(batch, 35, generator(0)) is batch
    assert sample(batch, None, generator(0)) is batch
    seen = torch.zeros(35)
    for seed in range(2000):
        part = sample(batch, 7, generator(seed))
        assert part.groups.tolist() == [0] * 4 + [1] * 2 + [2]
        seen[part.inputs.long()] += 1
    assert float((seen / 2000 - 0.2).abs().max()) < 0.04  # more than four standard deviations


def test_kernel_ridge_on_samples_of_real_points_is_fair() -> None:
    summary = small()

    def losses(limit: int | None, draws: int) -> list[float]:
        objective = KernelRidge(real_size=None, real_limit=limit, ridge=0.1)
        objective.start(MODALITY, summary)
        return [float(objective.loss(generator(seed)).detach()) for seed in range(draws)]

    (exact,) = losses(None, 1)
    assert losses(24, 1) == [exact]
    drawn = torch.tensor(losses(6, 400))
    assert float(drawn.std()) > 0
    assert float(drawn.mean()) == pytest.approx(exact, abs=4 * float(drawn.std()) / 400**0.5)


def test_the_limit_of_real_points_is_one_of_all_groups_together() -> None:
    for size, points in ((None, 6), (4, 6), (2, 6), (1, 3)):
        batch = RealBatches(MODALITY.real, size, 6)(generator(0))
        assert torch.bincount(batch.groups).tolist() == [points // 3] * 3


def test_the_limit_holds_for_all_points_of_a_single_group() -> None:
    assert limit_of(6, None, 1) == limit_of(6, None, 3) == limit_of(6, 7, 1) == limit_of(6, 3, 3) == 6
    assert limit_of(6, 2, 3) is limit_of(6, 6, 1) is limit_of(None, None, 1) is None


def test_kernel_ridge_on_part_of_the_summary_moves_that_part() -> None:
    summary = MODALITY.summary([4, 4, 4], rng=generator("small"))
    objective = KernelRidge(synthetic_limit=6, ridge=0.1)
    objective.start(MODALITY, summary)
    objective.loss(generator(0)).backward()
    (gradient,) = [value.grad for value in summary.parameters() if value.shape[0] == 12 and value.grad is not None]
    assert int((gradient.flatten(1).abs().sum(1) > 0).sum()) == 6
