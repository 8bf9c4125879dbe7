"""Coresets: against brute force, and as baselines, beginnings and recipes of every modality."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datastill import coreset, evaluate, recipes
from datastill.checks.toy import ToyModality
from datastill.condense.common import first_summary, run_recipe
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives import coresets
from datastill.objectives.coresets import METHODS, check_space, choose, count_forgetting, features, herd, spread
from datastill.objectives.teachers import Teachers
from datastill.rng import derive_seed, fork, generator


def cloud(points: int, seed: int) -> Tensor:
    return torch.randn(points, 3, generator=generator(seed, "cloud"), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_the_greedy_minimum_of_the_gap_of_means(seed: int) -> None:
    points = cloud(12, seed)
    mean = points.mean(0)
    chosen: list[int] = []
    for size in range(1, 8):
        candidates = [number for number in range(12) if number not in chosen]
        gaps = [float((points[[*chosen, number]].sum(0) - size * mean).norm()) for number in candidates]
        chosen.append(candidates[gaps.index(min(gaps))])
    assert herd(points, 7).tolist() == chosen
    assert herd(points, 1).item() == int((points - mean).norm(dim=1).argmin())
    assert sorted(herd(points, 12).tolist()) == list(range(12))


def test_the_mean_of_a_herd_is_nearer_than_that_of_any_random_set() -> None:
    points = cloud(200, 0)
    gap = float((points[herd(points, 10)].mean(0) - points.mean(0)).norm())
    rng = generator("random sets")
    others = [points[torch.randperm(200, generator=rng)[:10]].mean(0) for _ in range(200)]
    assert gap < min(float((other - points.mean(0)).norm()) for other in others)


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_farthest_first_and_covers_within_twice_the_optimum(seed: int) -> None:
    points = cloud(12, seed)
    chosen = spread(points, 4).tolist()
    assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmin())
    for size in range(1, 4):
        reach = torch.cdist(points, points[chosen[:size]]).amin(1)
        assert float(reach[chosen[size]]) == pytest.approx(float(reach.max()))
    gaps = torch.cdist(points, points)
    best = min(float(gaps[list(centres)].amin(0).max()) for centres in itertools.combinations(range(12), 4))
    assert float(gaps[chosen].amin(0).max()) <= 2 * best + 1e-12
    assert sorted(spread(points, 12).tolist()) == list(range(12))


def test_equal_points_are_not_chosen_twice() -> None:
    points = torch.zeros(6, 2, dtype=torch.float64)
    for method in (herd, spread):
        assert sorted(method(points, 6).tolist()) == list(range(6))


def test_kmeans_takes_one_point_of_each_clump() -> None:
    class Clumps(ToyModality):
        def __init__(self) -> None:
            super().__init__(classes=2, points=12)
            points = self._splits["train"][0]
            points[:] = 0.01 * points + 100 * (torch.arange(24) % 3)[:, None]

    modality = Clumps()
    index = choose(modality, [3, 3], method="kmeans-real", rng=generator(0))
    assert sorted((index[:3] % 3).tolist()) == sorted((index[3:] % 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_groups_counts_and_seeds(method: str) -> None:
    modality = ToyModality(points=15)
    counts = [4, 0, 2]
    index = choose(modality, counts, method=method, rng=generator(1))
    assert torch.equal(modality.full().take(index).groups, torch.tensor([0] * 4 + [2] * 2))
    assert len(index.unique()) == 6
    assert torch.equal(index, choose(modality, counts, method=method, rng=generator(1)))
    points, labels = coreset(modality, counts, method=method)
    assert torch.equal(labels, torch.tensor([0] * 4 + [2] * 2))
    real = modality.real().inputs
    assert bool((points[:, None] == real[None]).all(2).any(1).all())


def test_each_group_is_chosen_by_itself() -> None:
    modality = ToyModality(points=15)
    points = modality.real().inputs.double()
    for method, alone in (("herding", herd), ("k-center", spread)):
        index = choose(modality, [3, 3, 3], method=method, rng=generator(0))
        expected = torch.cat([15 * group + alone(points[15 * group :][:15], 3) for group in range(3)])
        assert torch.equal(index, expected)


def test_a_learner_gives_the_space() -> None:
    modality = ToyModality(points=15)
    found = features(modality, "mlp", generator(3))
    (trained,) = Teachers(modality, "mlp", seed=fork(generator(3))).networks
    with torch.no_grad():
        torch.testing.assert_close(found, trained.embed(modality.full().inputs))
    ours = choose(modality, [3, 3, 3], method="herding", space="mlp", rng=generator(3))
    expected = [15 * group + herd(found[15 * group :][:15].double(), 3) for group in range(3)]
    assert torch.equal(ours, torch.cat(expected))


def test_what_has_no_features_is_no_space() -> None:
    modality = ToyModality(points=15)
    with pytest.raises(InputError, match="Unknown space of a coreset 'ntk'"):
        check_space(modality, "ntk")


def test_centres_of_the_data_have_no_space_of_a_network() -> None:
    modality = ToyModality(points=15)
    with pytest.raises(
        InputError, match="'kmeans' averages the data's own vectors, so space has to be left out, got 'mlp'"
    ):
        coreset(modality, [1, 1, 1], method="kmeans", space="mlp")
    with pytest.raises(InputError, match="init='noise' chooses in no space of features, so space has to be left out"):
        first_summary(modality, [1, 1, 1], seed=0, init="noise", space="mlp")


def test_sparse_vectors_that_are_too_large_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.zeros(30, 4000)
    dense[torch.arange(30).repeat_interleave(20), torch.randint(4000, (600,), generator=generator("sparse"))] = 1.0
    sparse = dense.to_sparse_csr()
    assert torch.equal(coresets._dense(sparse, generator(0)), dense)
    monkeypatch.setattr(coresets, "_DENSE", 1000)
    projected = coresets._dense(sparse, generator(0))
    assert projected.shape == (30, 512)
    gaps, kept = torch.pdist(dense), torch.pdist(projected)
    assert float(((kept - gaps) / gaps).abs().max()) < 0.2


# --- forgetting ---------------------------------------------------------------------------------------------------------


class Scripted(ToyModality):
    """Four points whose rightness at every visit is written down."""

    script = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)

    def __init__(self) -> None:
        super().__init__(classes=2, points=2)
        self.visits = 0

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.visits += 1
        return self.script[:, min(self.visits, 4) - 1]


def test_forgetting_counts_turns_from_right_to_wrong_and_never_right_is_infinite() -> None:
    modality = Scripted()
    events = count_forgetting(modality, "linear", epochs=4, rng=generator(0))
    assert events.tolist() == [0, torch.inf, 2, 1]
    assert modality.visits >= 4


def test_forgetting_follows_a_training_written_out_here() -> None:
    """Full batches, so that every step is one visit of each point."""
    modality = ToyModality(points=20)
    events = count_forgetting(modality, "linear", rng=generator(5))
    rng = generator(5)
    net, full = modality.learner("linear", rng=rng), modality.full()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    history = []
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / 100))))
        outputs = net(full.inputs)
        history.append(outputs.argmax(1) == full.targets)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs, full.targets).backward()
        optimizer.step()
    seen = torch.stack(history)
    turns = (seen[:-1] & ~seen[1:]).sum(0).float()
    assert torch.equal(events, torch.where(seen.any(0), turns, torch.inf))
    assert int(turns.sum()) > 0


def test_a_mislabelled_point_is_forgotten_first() -> None:
    modality = ToyModality(classes=2, points=30)
    points, labels = modality._splits["train"]
    points[:] = 0.1 * points + 5 * (labels[:, None] * 2 - 1)
    points[7] = -points[7]  # lies among the other class
    index = choose(modality, [1, 1], method="forgetting", space="linear", rng=generator(0))
    assert int(index[0]) == 7


def test_correct_points_are_those_that_a_trained_learner_gets_right() -> None:
    modality = ToyModality(classes=2, points=30)
    points, labels = modality._splits["train"]
    points[:] = 0.1 * points + 5 * (labels[:, None] * 2 - 1)
    points[:12] = -points[:12]  # lie among the other class
    index = choose(modality, [18, 3], method="correct", space="linear", rng=generator(0))
    assert sorted(index[:18].tolist()) == list(range(12, 30))
    assert len(choose(modality, [25, 3], method="correct", space="linear", rng=generator(0)).unique()) == 28


# --- as beginnings, baselines and recipes -------------------------------------------------------------------------------


def test_a_summary_begins_from_a_coreset() -> None:
    modality = ToyModality(points=15)
    summary = first_summary(modality, [3, 3, 3], seed=4, init="herding")
    expected = coreset(modality, [3, 3, 3], method="herding")[0]
    torch.testing.assert_close(summary().inputs.detach(), expected)
    index = choose(modality, [1, 1, 1], method="k-center", rng=generator(0))
    assert torch.equal(modality.summary([1, 1, 1], rng=generator(0), init=index).export()[0], modality.pick(index)[0])
    for wrong, message in (
        (index + 15, "from 0 to 44"),
        (index.flip(0), "in order of groups"),
        (index[:2], "in order of groups"),
        (index.float(), "vector of positions"),
    ):
        with pytest.raises(InputError, match=message):
            modality.summary([1, 1, 1], rng=generator(0), init=wrong)


def test_baselines_by_name() -> None:
    modality = ToyModality(points=15)
    summary = modality.summary([2, 2, 2], rng=generator(0))
    methods = tuple(METHODS)
    found = evaluate(summary, modality, seeds=2, baselines=methods, progress=False)
    assert [row.data for row in found.rows] == ["summary", *(f"{method} subset" for method in methods), "full data"]
    assert all(row.points == 6 for row in found.rows[:-1])
    plain = evaluate(summary, modality, seeds=2, progress=False)
    assert plain.row("random subset").scores == found.row("random subset").scores
    with pytest.raises(InputError, match="Did you mean 'herding'"):
        evaluate(summary, modality, baselines=("herdin",), progress=False)


def test_a_recipe_chooses_and_stores(tmp_path: object) -> None:
    modality = ToyModality(points=15)
    recipe = dataclasses.replace(recipes["herding"], modalities=("toy",)).on("toy")
    result = run_recipe(modality, [2, 2, 2], recipe, seed=3, progress=False)
    assert torch.equal(result.export()[0], coreset(modality, [2, 2, 2], method="herding", seed=3)[0])
    assert result.best_step == 0
    assert result.best_score is not None
    found = evaluate(result, seeds=1, progress=False)
    assert found.row("summary").points == 6
    assert found.row("summary").nbytes == modality.size(result.export()).nbytes


def test_refusals() -> None:
    modality = ToyModality(points=5)
    with pytest.raises(InputError, match="Did you mean 'k-center'"):
        coreset(modality, 6, method="k-centre")
    with pytest.raises(InputError, match="Did you mean 'linear'"):
        coreset(modality, 6, space="liner")
    with pytest.raises(InputError, match=r"counts\[0\] is 6, but group 0 has only 5 training points"):
        coreset(modality, [6, 1, 1])
    with pytest.raises(InputError, match="below one point"):
        coreset(modality, 2)
    with pytest.raises(InputError, match="one number for each of the 3 groups, got 2"):
        coreset(modality, [1, 1])


def test_a_coreset_has_nothing_else_to_choose() -> None:
    modality = ToyModality(points=5)
    recipe = dataclasses.replace(recipes["herding"], modalities=("toy",))
    for options, named in (({"steps": 3}, "steps"), ({"adjacency": "none"}, "adjacency")):
        with pytest.raises(InputError, match=f"takes real points as they are, so {named} cannot be chosen"):
            run_recipe(modality, [1, 1, 1], recipe, progress=False, **options)


def test_crops_and_labels_are_of_one_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = Teachers.__init__

    def noted(self: Teachers, *given: Any, **options: Any) -> None:
        original(self, *given, **options)
        made.append(self)

    monkeypatch.setattr(Teachers, "__init__", noted)
    images = torch.rand(45, 1, 4, 4, generator=generator("images"))
    modality = ImageModality(images, torch.arange(45) % 3)
    summary = {"init": "confident", "labels": "teacher", "space": "mlp"}
    recipe = dataclasses.replace(recipes["rded"].on("image"), summary=summary)
    result = run_recipe(modality, [2, 2, 2], recipe, seed=3, progress=False)
    (teachers,) = made
    with torch.no_grad():
        found, full = result.summary(), modality.full()
    torch.testing.assert_close(found.targets, teachers.labels(found))
    losses = teachers.losses(full)
    for group in range(3):  # the two of the lowest loss by the teacher that labels
        own = (full.groups == group).nonzero().squeeze(1)
        expected = full.inputs[own[losses[own].argsort()[:2]]]
        torch.testing.assert_close(found.inputs[2 * group : 2 * group + 2], expected)


def test_baselines_choose_in_the_space_that_is_named() -> None:
    modality = ToyModality(points=15)
    summary = modality.summary([2, 2, 2], rng=generator(0))
    seen = [
        evaluate(summary, modality, seeds=1, baselines=("herding",), baseline_space=space, progress=False)
        .row("herding subset")
        .scores["accuracy"]
        for space in ("vectors", "mlp")
    ]
    for space, scores in zip(("vectors", "mlp"), seen):
        own = coreset(modality, [2, 2, 2], method="herding", space=space, seed=derive_seed(0, "subset", 0))
        again = evaluate(own, modality, seeds=1, baselines=False, progress=False)
        assert again.row("summary").scores["accuracy"] == scores
    assert seen[0] != seen[1]
    with pytest.raises(InputError, match="Unknown space of a coreset 'mpl'"):
        evaluate(summary, modality, baselines=("herding",), baseline_space="mpl", progress=False)
