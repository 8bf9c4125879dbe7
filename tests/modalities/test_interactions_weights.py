"""Weighted synthetic users that are thinned out, and the teacher whose recommendations they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill import distill, evaluate
from datastill.backbones.batch import tensors_of
from datastill.backbones.recommender import sparse_rows
from datastill.errors import InputError
from datastill.loop import Event
from datastill.modalities import interactions_teacher
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_teacher import Taught
from datastill.modalities.interactions_weights import WeightedUsers
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.recommenders import EASE
from datastill.rng import generator


def logs(users: int = 60, seed: int = 0) -> sp.csr_matrix:
    """Users with 7 of the 10 items of one of four communities, and one item of any."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((users, 40))
    for user in range(users):
        rows[user, user % 4 * 10 + rng.permutation(10)[:7]] = 1
        rows[user, rng.integers(40)] = 1
    return sp.csr_matrix(rows)


def weighted(weights: list[list[float]], interactions: int, **options: Any) -> WeightedUsers:
    tensor = torch.tensor(weights)
    return WeightedUsers(tensor, np.arange(tensor.shape[1]), interactions=interactions, **options)


def test_a_row_is_its_weights() -> None:
    weights = [[0.5, 2.0, 0.1], [1.0, 0.2, 3.0]]
    batch = weighted(weights, 4)()
    assert torch.allclose(batch.inputs, torch.tensor(weights))
    assert batch.inputs is batch.targets


def test_the_export_has_the_largest_weights_and_every_user() -> None:
    summary = weighted([[0.5, 2.0, 0.1], [0.01, 0.02, 0.03], [1.0, 0.2, 3.0]], 5)
    assert not summary.exact_export
    table = summary.export()
    found = set(zip(table.users.tolist(), table.items.tolist()))
    assert found == {
        (0, 0),
        (0, 1),
        (1, 2),
        (2, 0),
        (2, 2),
    }  # (1, 2) is not among the five largest, but its user's largest
    assert table.weights is not None
    assert np.allclose(sorted(table.weights), [0.03, 0.5, 1.0, 2.0, 3.0])


def test_weights_are_dropped_over_the_run_by_a_geometric_schedule_and_for_good() -> None:
    rng = torch.Generator().manual_seed(0)
    summary = WeightedUsers(torch.rand(10, 100, generator=rng) + 0.1, np.arange(100), interactions=50, anneal=0.5)
    summary.plan(20)
    left = [summary.left()]
    for _ in range(12):
        before = summary().inputs.detach()
        summary.project_()
        after = summary().inputs.detach()
        dropped = (before > 0) & (after == 0)
        assert torch.equal(after[~dropped], before[~dropped])
        left.append(summary.left())
    expected = [round(1000 * 0.05 ** min(1, step / 10)) for step in range(13)]
    assert left == expected
    assert summary.exact_export
    (gradient,) = torch.autograd.grad(summary().inputs.sum(), summary.logs)
    assert bool((gradient[summary().inputs == 0] == 0).all())


def test_nothing_is_dropped_without_annealing() -> None:
    summary = weighted([[0.5, 2.0, 0.1]], 1, anneal=None)
    summary.plan(2)
    for _ in range(3):
        summary.project_()
    assert summary.left() == 3
    assert len(summary.export()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interactions": 1}, "at least the number of users, 2"),
        ({"interactions": 3, "anneal": 0}, "anneal"),
        ({"interactions": 3, "anneal": 1.5}, "anneal"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighted([[1.0, 2.0], [1.0, 1.0]], **options)


@pytest.mark.parametrize("init", ["real", "active", "kmeans", "noise"])
def test_every_start_is_positive_and_of_the_asked_size(init: str) -> None:
    modality = InteractionsModality.from_logs(logs())
    summary = modality.summary([6], rng=generator(0), init=init, sampler="weights")
    rows = summary().inputs
    assert rows.shape == (6, 40)
    assert bool((rows > 0).all())
    assert len(summary.export()) == 6 * round(modality.splits.train.nnz / 60)
    if init == "real":
        mine = (rows > 0.5).int().tolist()
        assert all(row in modality.splits.train.toarray().astype(int).tolist() for row in mine)


def test_options_of_the_other_samplers_are_refused() -> None:
    modality = InteractionsModality.from_logs(logs())
    with pytest.raises(InputError, match="draws"):
        modality.summary([6], rng=generator(0), sampler="weights", draws=3)
    with pytest.raises(InputError, match="interactions"):
        modality.summary([6], rng=generator(0), sampler="gumbel", interactions=30)


# --- the teacher ------------------------------------------------------------------------------------------------------


def taught() -> InteractionsModality:
    return InteractionsModality.from_logs(logs(), teacher="ease")


def test_a_real_batch_has_whole_rows_and_the_teachers_scores() -> None:
    modality = taught()
    batch = modality.real(9, rng=generator(0))
    assert isinstance(batch.targets, Taught)
    rows = batch.inputs.dense()
    assert set(map(tuple, rows.tolist())) <= set(map(tuple, modality.splits.train.toarray().tolist()))
    teacher = EASE().fit(modality.splits.train, modality.held_out("validation"))
    assert torch.allclose(batch.targets.scores, teacher(batch.inputs), atol=1e-6)
    part = batch.take(torch.tensor([2, 0])).targets
    assert torch.equal(part.scores, batch.targets.scores[[2, 0]])
    assert torch.equal(
        modality.real().targets.dense(), modality.real().inputs.dense()
    )  # training on all stays as it is


def test_the_loss_is_the_cross_entropy_over_unseen_items_by_hand() -> None:
    modality = taught()
    batch = modality.real(4, rng=generator(0))
    outputs = torch.randn(4, 40, generator=generator(1))
    expected = 0.0
    for row, scores, output in zip(batch.inputs.dense(), batch.targets.scores, outputs):
        wanted = np.exp(5 * scores[row == 0].double().numpy())
        logits = output[row == 0].double().numpy()
        expected -= float((wanted / wanted.sum()) @ (logits - np.log(np.exp(logits).sum()))) / 4
    assert float(modality.loss(outputs, batch.targets)) == pytest.approx(expected, rel=1e-5)
    assert float(modality.ridge_loss(outputs / 5, batch.targets)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_has_the_gradients_of_finite_differences() -> None:
    scores = torch.randn(7, 9, generator=generator(0), dtype=torch.float64)
    seen = sparse_rows(sp.csr_matrix((torch.rand(7, 9, generator=generator(1)) < 0.3).double().numpy()))
    shares = (5 * scores).masked_fill(seen.dense() > 0, -torch.inf).softmax(1)
    taught = Taught(scores, shares, seen)
    outputs = torch.randn(7, 9, generator=generator(2), dtype=torch.float64, requires_grad=True)
    # A second backward pass computes the slopes anew, by another formula.
    assert torch.autograd.gradcheck(lambda values: taught.loss(values, 3.0), outputs, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(lambda values: taught.loss(values, 3.0), outputs)


def test_the_loss_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = taught()
    batch = modality.real(30, rng=generator(0))
    outputs = torch.randn(30, 40, generator=generator(1), requires_grad=True)
    found = []
    for block in (1, 130, 10_000):
        monkeypatch.setattr(interactions_teacher, "_BLOCK", block)
        loss = modality.loss(outputs, batch.targets)
        found.append((loss.detach(), *torch.autograd.grad(loss, outputs)))
    for loss, slopes in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(slopes, found[0][1])


def test_targets_that_are_too_many_to_keep_are_computed_when_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = taught().real(9, rng=generator(0)).targets
    monkeypatch.setattr(interactions_teacher, "_KEPT", 0)
    made = taught().real(9, rng=generator(0)).targets
    torch.testing.assert_close(made.scores, kept.scores)
    torch.testing.assert_close(made.shares, kept.shares)


def test_what_is_dropped_has_no_weight_and_no_slope_and_the_rest_has_its_own() -> None:
    users = weighted([[1.0, 2.0, 0.5], [1.0, 3.0, 4.0]], 4)
    with torch.no_grad():
        users.logs[0, 0] = -1e4
        users.logs[1, 2] = -50.0
    rows = users().inputs
    assert rows[0].tolist() == pytest.approx([0.0, 2.0, 0.5])
    assert float(rows[1, 2].detach()) == pytest.approx(np.exp(-40.0))
    (slopes,) = torch.autograd.grad((rows * torch.arange(6.0).view(2, 3)).sum(), users.logs)
    assert slopes[0].tolist() == pytest.approx([0.0, 2.0, 1.0])


def test_of_equal_weights_no_more_are_kept_than_are_asked_for() -> None:
    users = weighted([[1.0] * 6, [1.0] * 6], 5)
    assert len(users.export()) == 5


def test_the_teacher_itself_has_the_least_loss() -> None:
    modality = taught()
    batch = modality.real(20, rng=generator(0))
    scores = batch.targets.scores
    best = modality.ridge_loss(scores, batch.targets)
    noise = torch.randn(scores.shape, generator=generator(1))
    assert modality.ridge_loss(scores + 0.05 * noise, batch.targets) > best


@pytest.mark.parametrize("settings", [{"teacher": "ease"}, {"holdout": 0.3}, {"holdout": 0.0}])
def test_a_process_reads_its_share_of_a_batch_and_nobody_elses_rows(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    modality = InteractionsModality.from_logs(logs(), **settings)
    whole = modality.real(11, rng=generator(0), share=True)
    monkeypatch.setattr("datastill.processes.size", lambda: 3)
    monkeypatch.setattr("datastill.processes.rank", lambda: 1)
    expected = whole.take(torch.arange(1, 11, 3))
    mine = modality.real(11, rng=generator(0), share=True)
    assert len(mine) == 4
    for ours, theirs in zip(tensors_of(mine), tensors_of(expected), strict=True):
        assert torch.equal(ours, theirs)


def test_with_too_many_items_the_held_out_ones_are_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions_teacher, "LARGEST", 39)
    with pytest.warns(UserWarning, match="40 items, more than the 39"):
        modality = InteractionsModality.from_logs(logs(), teacher="ease")
    assert not isinstance(modality.real(3, rng=generator(0)).targets, Taught)


def test_an_unknown_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="'ease'"):
        InteractionsModality.from_logs(logs(), teacher="eas")


def test_thinned_weights_beat_as_many_rows_of_random_users() -> None:
    modality = taught()
    summary = modality.summary([8], rng=generator(0), init="kmeans", sampler="weights", interactions=40)
    result = distill(
        modality, summary, KernelRidge(ridge=1.0, real_size=60), steps=60, lr=0.1, select_on="export", progress=False
    )
    assert len(result.export()) == 40
    found = evaluate(result, seeds=3, progress=False)
    assert found.gap_closed() > 0.5


def test_a_run_that_was_stopped_while_thinning_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def run(folder: Path | None, stop: int | None) -> WeightedUsers:
        def callback(event: Event) -> None:
            if event.kind == "step" and event.step == stop:
                raise Stopped

        modality = taught()
        summary: WeightedUsers = modality.summary([6], rng=generator(0), sampler="weights", interactions=30)
        objective = KernelRidge(ridge=1.0, real_size=20)
        options: dict[str, Any] = {
            "steps": 12,
            "lr": 0.1,
            "validate_every": 0,
            "progress": False,
        }
        options |= {"callbacks": [callback], "checkpoint_dir": folder, "checkpoint_every": 1}
        distill(modality, summary, objective, **options)
        return summary

    whole = run(None, None)
    with pytest.raises(Stopped):
        run(tmp_path, 5)
    resumed = run(tmp_path, None)
    assert whole.left() <= 30
    assert torch.equal(resumed.logs, whole.logs)
