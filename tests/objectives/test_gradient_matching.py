"""What DCC and IDC add to gradient matching, against gradients that are written out here."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from datastill import memory
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.convnet import ConvNet
from datastill.backbones.mlp import MLP
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.modalities.base import Modality
from datastill.modalities.image import ImageModality
from datastill.objectives import in_parts
from datastill.objectives.gradient_matching import GradientMatching, published_loops
from datastill.objectives.in_parts import parts_of_groups, sum_of_parts
from datastill.rng import generator

MODALITY = ToyModality(points=6)


def started(counts: list[int], **settings: Any) -> tuple[GradientMatching, Any]:
    objective = GradientMatching(real_size=None, **settings)
    summary = MODALITY.summary(counts, rng=generator(0))
    objective.start(MODALITY, summary, seed=1)
    return objective, summary


def gradients(net: Learner, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(net(inputs), targets)
    return dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters()))))


def angle(a: Tensor, b: Tensor) -> float:
    return sum(float(1 - x @ y / (x.norm() * y.norm() + 1e-6)) for x, y in zip(a.flatten(1), b.flatten(1)))


def of_group(batch: Batch, group: int) -> tuple[Tensor, Tensor]:
    return batch.inputs[batch.groups == group].detach(), batch.targets[batch.groups == group]


@pytest.mark.parametrize(
    ("points", "loops", "epochs"),
    # the last but one is half way between two published ones
    [(1, 1, 50), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10), (45, 45, 12), (500, 50, 10)],
)
def test_loops_are_as_published_for_so_many_points(points: int, loops: int, epochs: int) -> None:
    assert published_loops(points) == (loops, epochs)


def test_with_one_point_a_group_every_step_has_a_fresh_network() -> None:
    objective, _ = started([1, 1, 1], learner="mlp")
    seen = []
    for number in range(3):
        objective.loss(generator("loss", number))
        assert objective._net is not None
        seen.append(next(objective._net.parameters()).clone())
        objective.after_step(generator("after", number))
        assert objective._net is None
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


# --- DCC ----------------------------------------------------------------------------------------------------------------


def test_contrast_matches_the_mean_of_the_groups_by_the_whole_summary() -> None:
    objective, summary = started([1, 2, 4], learner="mlp", contrast_after=0)
    found = float(objective.loss(generator(2)).detach())
    net, real = objective._net, MODALITY.real()
    assert net is not None
    each = [gradients(net, *of_group(real, group)) for group in range(3)]
    whole = gradients(net, summary.points.detach(), summary().targets)
    expected = sum(
        angle(torch.stack([one[name] for one in each]).mean(0), value)
        for name, value in whole.items()
        if value.dim() > 1
    )
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "contrasts"),
    [
        ({}, [False] * 6),
        ({"contrast_after": 4}, [False] * 4 + [True] * 2),
        ({"contrast_matches": 2}, [False, False, True] * 2),
        ({"contrast_after": 3, "contrast_matches": 1}, [False, True, True, True, True, True]),
    ],
)
def test_when_the_contrast_begins(settings: dict[str, int], contrasts: list[bool]) -> None:
    objective, _ = started([1, 1, 1], learner="linear", outer_loops=3, inner_epochs=1, **settings)
    seen = []
    for step in range(6):
        objective.loss(generator(step))
        seen.append(objective._contrasts())
        objective.after_step(generator(step))
    assert seen == contrasts


def test_a_contrast_has_an_augmentation_for_each_class_too() -> None:
    images = ImageModality(torch.rand(24, 1, 8, 8, generator=generator("images")), torch.arange(24) % 2)
    objective = GradientMatching(
        learner="mlp", outer_loops=1, inner_epochs=1, real_size=4, augment=True, contrast_after=0
    )
    objective.start(images, images.summary([2, 2], rng=generator(0)))
    drawn: list[dict[int, int]] = []
    match = objective._match
    assert match is not None

    def noted(batch: Batch, seeds: dict[int, int]) -> Batch:
        drawn.append(dict(seeds))
        return match(batch, seeds)

    objective._match = noted  # type: ignore[assignment]
    assert torch.isfinite(objective.loss(generator(1)))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


# --- IDC ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["hidden-squared", "hidden-absolute"])
def test_hidden_weights_by_hand(distance: str) -> None:
    objective, summary = started([1, 2, 3], learner="mlp", distance=distance)
    found = float(objective.loss(generator(2)).detach())
    net, real = objective._net, MODALITY.real()
    assert net is not None
    expected, batch = 0.0, summary()
    for group in range(3):
        theirs, ours = (gradients(net, *of_group(one, group)) for one in (real, batch))
        for name, value in ours.items():
            if value.dim() > 1 and not name.startswith("head"):
                gap = value - theirs[name]
                expected += float(gap.square().sum() if distance == "hidden-squared" else gap.abs().sum())
    assert found == pytest.approx(expected, rel=1e-4)


def test_groups_take_turns_and_a_round_is_a_match() -> None:
    objective, summary = started(
        [2, 0, 3], learner="mlp", groups_per_step=1, outer_loops=2, inner_epochs=1, trained_on="real"
    )
    moved, nets = [], []
    for step in range(8):
        summary.points.grad = None
        objective.loss(generator(step)).backward()
        moved.append((summary.points.grad != 0).any(1).tolist())
        nets.append(torch.cat([value.detach().flatten() for value in objective._net.parameters()]))  # type: ignore[union-attr]
        objective.after_step(generator(step))
    first, last = [True] * 2 + [False] * 3, [False] * 2 + [True] * 3
    assert moved == [first, last] * 4
    gaps = [float((a - b).norm()) for a, b in zip(nets, nets[1:])]
    assert gaps[0] == gaps[2] == gaps[4] == gaps[6] == 0  # the same network for all groups of a round
    assert 0 < gaps[1] < 0.5 * gaps[3]  # trained after the first round, replaced after the second
    assert 0 < gaps[5] < 0.5 * gaps[3]


def test_steps_of_single_groups_add_up_to_a_step_of_all() -> None:
    whole, _ = started([2, 2, 2], learner="mlp")
    parts, _ = started([2, 2, 2], learner="mlp", groups_per_step=1)
    expected = float(whole.loss(generator(4)).detach())
    net, found = whole._net, 0.0
    for step in range(3):
        parts._net, parts._turn = net, step
        found += float(parts.loss(generator(4)).detach())
    assert found == pytest.approx(expected, rel=1e-5)


def test_only_the_groups_of_a_step_are_drawn() -> None:
    objective = GradientMatching(learner="linear", real_size=2, groups_per_step=2)
    objective.start(MODALITY, MODALITY.summary([1, 1, 1], rng=generator(0)))
    drawn = []
    original = objective._real.draw

    def noted(size: int, **options: Any) -> Batch:
        drawn.append(options["groups"])
        return original(size, **options)  # type: ignore[no-any-return]

    objective._real.draw = noted
    for step in range(4):
        objective.loss(generator(step))
        objective.after_step(generator(step))
    assert drawn == [[0, 1], [2], [0, 1], [2]]


def test_training_on_real_points_is_ordinary_training() -> None:
    """Full batches, so that there is no order to know: SGD with momentum and decay whose state lives from match to match."""
    objective, summary = started(
        [1, 1, 1],
        learner="linear",
        trained_on="real",
        inner_real=None,
        outer_loops=10,
        inner_epochs=2,
        inner_momentum=0.9,
        inner_weight_decay=0.1,
        inner_lr=0.05,
    )
    objective.loss(generator(0))
    net, real = objective._net, MODALITY.real()
    assert net is not None
    twin = MODALITY.learner("linear", rng=generator(9))
    twin.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    before = summary.points.detach().clone()
    for match in range(2):
        objective.after_step(generator(match))
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(twin(real.inputs), real.targets).backward()
            optimizer.step()
        for ours, theirs in zip(net.parameters(), twin.parameters()):
            torch.testing.assert_close(ours, theirs)
    assert torch.equal(summary.points.detach(), before)


def test_published_augmentation_of_inner_training_mixes_images() -> None:
    found = load_digits()
    images, labels = torch.tensor(found.images[:200], dtype=torch.float32), torch.tensor(found.target[:200])
    modality = ImageModality(images, labels)
    seen: list[Tensor] = []
    original = modality.loss

    def noted(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return original(outputs, targets)

    modality.loss = noted  # type: ignore[method-assign]
    objective = GradientMatching(
        learner="convnet-w8",
        real_size=4,
        trained_on="real",
        outer_loops=10,
        inner_epochs=2,
        inner_batch=16,
        inner_real=5,
        inner_augment="idc",
        distance="hidden-absolute",
        groups_per_step=10,
    )
    objective.start(modality, modality.summary([1] * 10, rng=generator(0)))
    objective.loss(generator(0))
    seen.clear()
    objective.after_step(generator(0))
    assert len(seen) == 2 * 4
    mixed = [targets for targets in seen if targets.is_floating_point()]
    assert 0 < len(mixed) < len(seen)  # CutMix has probability one half
    assert all(bool(((targets > 0).sum(1) <= 2).all()) for targets in mixed)


def test_a_run_that_stops_within_a_round_goes_on_in_it() -> None:
    objective, _ = started([1, 1, 1], learner="mlp", groups_per_step=1, outer_loops=2, inner_epochs=1)
    for step in range(4):
        objective.loss(generator(step))
        objective.after_step(generator(step))
    other, _ = started([1, 1, 1], learner="mlp", groups_per_step=1, outer_loops=2, inner_epochs=1)
    other.load_state_dict(objective.state_dict())
    assert (other._turn, other._matches, other._steps) == (1, 1, 4)
    assert torch.equal(other.loss(generator(7)).detach(), objective.loss(generator(7)).detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups_per_step": 1, "contrast_matches": 1}, "groups_per_step must be None"),
        ({"trained_on": "reals"}, "Did you mean 'real'"),
        ({"distance": "hidden-square"}, "Did you mean 'hidden-squared'"),
        ({"inner_momentum": 1.0}, r"inner_momentum must be a number in \[0, 1\)"),
        ({"inner_augment": "idc"}, "inner_augment and inner_real are of training on real points"),
        ({"inner_real": 7}, "set trained_on='real'"),
        ({"synthetic_limit": 0}, "synthetic_limit must be an integer of at least 1"),
        ({"contrast_matches": -1}, "contrast_matches must be an integer of at least 0"),
        ({"learner": "linear", "distance": "hidden-squared"}, "weights before its head"),
        ({"trained_on": "real", "inner_augment": "idc"}, "have no augmentation 'idc'"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        started([1, 1, 1], **settings)


def test_augmented_groups_in_one_pass_are_those_that_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0] * 6 + [1] * 9 + [2] * 7)
    pixels = torch.rand(len(labels), 1, 8, 8, generator=generator("augmented"), dtype=torch.float64)
    results = []
    for alone in (False, True):
        if alone:
            monkeypatch.setattr(ImageModality, "group_augmenter", Modality.group_augmenter)
            monkeypatch.setattr(ConvNet, "group_gradients", Learner.group_gradients)
        modality = ImageModality(pixels, labels)
        summary = modality.summary([1, 2, 1], rng=generator("summary"))
        objective = GradientMatching(learner="convnet-d2-w12", augment=True)
        objective.start(modality, summary)
        loss = objective.loss(generator("loss"))
        parameters = [value for values in summary.parameter_groups().values() for value in values]
        results.append([loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)])
    for together, one in zip(*results):
        if together is None or one is None:
            assert together is one
        else:
            assert torch.allclose(together, one, rtol=1e-4, atol=1e-6)


SETTINGS: list[dict[str, Any]] = [
    {"augment": True, "weighting": "size"},
    {"distance": "hidden-squared", "synthetic_limit": 2},
    {"distance": "cosine", "groups_per_step": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_groups_in_parts_are_those_of_one_graph(
    settings: dict[str, Any], labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = torch.tensor([0] * 6 + [1] * 9 + [2] * 7 + [3] * 4)
    pixels = torch.rand(len(ours), 1, 8, 8, generator=generator("parts"), dtype=torch.float64)
    modality, results = ImageModality(pixels, ours).to(dtype=torch.float64), []
    for room, parts in ((2**40, [[0, 1, 2, 3]]), (1, [[0], [1], [2], [3]])):
        monkeypatch.setattr(in_parts, "_ROOM", room)
        summary = modality.summary([1, 3, 2, 1], rng=generator("summary"), labels=labels)
        objective = GradientMatching(learner="convnet-d2-w12", **settings)
        objective.start(modality, summary)
        assert [list(part) for part in objective._parts] == parts
        found = []
        for step in range(2):
            loss = 3 * objective.loss(generator(step))
            parameters = [value for values in summary.parameter_groups().values() for value in values]
            found += [loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)]
            objective.after_step(generator(step))
        results.append([value for value in found if value is not None])
    assert len(results[0]) == len(results[1]) >= 4
    for whole, cut in zip(*results):
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)


def test_parts_are_what_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(torch.rand(7, 6), torch.zeros(7), torch.tensor([0, 2, 2, 2, 3, 4, 5]))
    net = MLP(6, 2, depth=0)
    # A point has 6 numbers and gives 2; a group has 14 weights. All of that four times, in four bytes.
    each = {group: 16 * (8 * points + 14) for group, points in ((0, 1), (2, 3), (3, 1), (4, 1), (5, 1))}
    with memory.limit(4 * (each[0] + each[2] + each[3] - 1)):
        assert parts_of_groups(net, batch) == [{0: 1, 2: 3}, {3: 1, 4: 1, 5: 1}]
        assert parts_of_groups(net, batch, 2) == [{0: 1, 2: 2, 3: 1}, {4: 1, 5: 1}]
    with memory.limit(1):
        assert parts_of_groups(net, batch) == [
            {group: points} for group, points in ((0, 1), (2, 3), (3, 1), (4, 1), (5, 1))
        ]
    assert len(parts_of_groups(net, batch)) == 1
    nested = Batch((batch.inputs,), batch.targets, batch.groups)
    with memory.limit(1):
        assert len(parts_of_groups(net, nested)) == 1


def test_a_sum_of_parts_keeps_no_graph_of_theirs() -> None:
    batch, weights = Batch(torch.rand(5, 3, requires_grad=True), torch.zeros(5), torch.arange(5)), torch.rand(4)
    alive: list[Any] = []

    def part(number: int) -> Any:
        def value(own: Batch) -> Tensor:
            assert not [one for one in alive if one() is not None]
            powers = own.inputs.exp()  # which its graph keeps
            alive.append(weakref.ref(powers.untyped_storage()))
            return weights[number] * powers[number].sum()

        return value

    kept = part(0)(batch)
    assert alive.pop()() is not None  # as long as there is a graph
    del kept
    found = sum_of_parts(batch, (part(number) for number in range(4)))
    (slopes,) = torch.autograd.grad(2 * found, batch.inputs, retain_graph=True)
    assert len(alive) == 4
    torch.testing.assert_close(found, (weights[:, None] * batch.inputs[:4].exp()).sum())
    torch.testing.assert_close(slopes[:4], 2 * weights[:, None] * batch.inputs[:4].exp())
    (again,) = torch.autograd.grad(found.square(), batch.inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()
    assert not slopes[4].any()
    alive.clear()
    fixed = Batch(batch.inputs.detach(), batch.targets, batch.groups)
    assert not sum_of_parts(fixed, [part(0)]).requires_grad


def test_a_match_has_at_most_so_many_synthetic_points_of_a_group() -> None:
    objective, summary = started([5, 1, 3], learner="mlp", synthetic_limit=2)
    moved = []
    for step in range(20):
        summary.points.grad = None
        objective.loss(generator(step)).backward()
        moved.append((summary.points.grad != 0).any(1))
        objective.after_step(generator(step))
    for one in moved:
        assert [int(part.sum()) for part in one.split([5, 1, 3])] == [2, 1, 2]
    assert bool(torch.stack(moved).any(0).all())  # another choice each time
    alone, _ = started([5, 1, 3], learner="mlp", synthetic_limit=5)
    whole, _ = started([5, 1, 3], learner="mlp")
    assert torch.equal(alone.loss(generator(1)).detach(), whole.loss(generator(1)).detach())
