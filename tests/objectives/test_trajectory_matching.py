"""Trajectory matching: the buffer of experts, the moving window, labels from experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from datastill.backbones.base import call_with
from datastill.checks.toy import ToyModality
from datastill.errors import InputError
from datastill.loop import distill
from datastill.modalities.image import ImageModality
from datastill.objectives import experts
from datastill.objectives.experts import ExpertBuffer, ExpertPlan, split_parameters
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator

PLAN = ExpertPlan("linear", 2, 4, 5, None, "sgd", 0.1, 0.0, 0.0, False)


def digits() -> ImageModality:
    found = load_digits()
    images, labels = torch.tensor(found.images[:300], dtype=torch.float32), torch.tensor(found.target[:300])
    return ImageModality(images, labels, test=(images[:50], labels[:50]))


# --- experts ------------------------------------------------------------------------------------------------------------


def test_shards_hold_what_memory_holds(tmp_path: Path) -> None:
    modality = ToyModality()
    in_memory, on_disk = ExpertBuffer(modality, PLAN, 3, None), ExpertBuffer(modality, PLAN, 3, tmp_path)
    for number, position in ((0, 0), (1, 4), (0, 2)):
        assert torch.equal(in_memory.snapshot(number, position), on_disk.snapshot(number, position))
    assert not on_disk._kept


def test_an_expert_is_plain_training_on_the_target_dataset() -> None:
    modality = ToyModality()
    plan = ExpertPlan("linear", 1, 2, 3, None, "adam", 0.05, 0.0, 0.01, False)
    buffer = ExpertBuffer(modality, plan, 0, None)
    net = modality.learner("linear", rng=generator("any"))
    net.load_state_dict(split_parameters(buffer.snapshot(0, 0), net))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05, weight_decay=0.01)
    real = modality.real()
    for step in range(1, 7):
        optimizer.zero_grad()
        modality.loss(net(real.inputs), real.targets).backward()
        optimizer.step()
        if step % 3 == 0:
            torch.testing.assert_close(experts.flatten_parameters(net), buffer.snapshot(0, step // 3))


def test_runs_share_a_folder_and_other_experts_do_not_disturb_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, trained = ToyModality(), []
    original = experts.train_expert

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        trained.append(kwargs["seed"])
        return original(*args, **kwargs)

    monkeypatch.setattr(experts, "train_expert", counted)

    def loss(run_seed: int, **settings: Any) -> float:
        objective = TrajectoryMatching(
            learner="linear", experts=1, max_start=2, inner_steps=2, expert_folder=str(tmp_path), **settings
        )
        objective.start(modality, modality.summary([1, 1, 1], rng=generator(0)), seed=run_seed)
        return float(objective.loss(generator(9)).detach())

    first = loss(1, expert_seed=7)
    assert loss(2, expert_seed=7) == first
    assert len(trained) == 1
    loss(1, expert_seed=8)
    loss(1, expert_seed=7, expert_lr=0.5)
    assert len(trained) == 3
    assert loss(3, expert_seed=7) == first
    assert len(trained) == 3


def test_only_what_can_be_matched_is_trained(tmp_path: Path) -> None:
    modality = ToyModality()
    objective = TrajectoryMatching(learner="linear", experts=1, max_start=3, span=2, inner_steps=1)
    objective.start(modality, modality.summary([1, 1, 1], rng=generator(0)), workdir=tmp_path)
    objective.loss(generator(0))
    (shard,) = tmp_path.glob("experts/*/expert-0000/data.safetensors")
    parameters = sum(value.numel() for value in modality.learner("linear", rng=generator(0)).parameters())
    assert shard.stat().st_size < 4 * parameters * 5 + 1000  # the initial weights and four snapshots


# --- the window ---------------------------------------------------------------------------------------------------------


def test_the_window_of_starting_points_grows() -> None:
    modality = ToyModality()
    objective = TrajectoryMatching(
        learner="linear", experts=1, min_start=1, first_max_start=2, max_start=6, expand_steps=8, span=1, inner_steps=1
    )
    objective.start(modality, modality.summary([1, 1, 1], rng=generator(0)))
    asked: list[int] = []
    original = objective._buffer.snapshot

    def noted(number: int, position: int) -> Tensor:
        asked.append(position)
        return original(number, position)

    objective._buffer.snapshot = noted  # type: ignore[method-assign]
    ends = []
    for step in range(12):
        asked.clear()
        for draw in range(40):
            objective.loss(generator(step, draw))
        starts = set(asked[::2])
        assert [goal - start for start, goal in zip(asked[::2], asked[1::2])] == [1] * 40
        assert min(starts) == 1
        ends.append(max(starts) + 1)
        objective.after_step(generator(step))
    assert ends == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6, 6]
    other = TrajectoryMatching(learner="linear", experts=1, first_max_start=2, max_start=6, expand_steps=8)
    other.start(modality, modality.summary([1, 1, 1], rng=generator(0)))
    other.load_state_dict(objective.state_dict())
    assert other._window_end() == 6


# --- labels -------------------------------------------------------------------------------------------------------------


def test_labels_begin_as_the_mean_output_of_experts_that_are_right() -> None:
    modality = digits()
    summary = modality.summary([2] * 10, rng=generator(0), labels="learned")
    objective = TrajectoryMatching(
        learner="mlp", experts=3, expert_lr=0.1, expert_interval=4, max_start=2, span=1, expert_labels=True
    )
    objective.start(modality, summary, seed=2)
    batch, net = summary(), modality.learner("mlp", rng=generator(0))
    outputs = []
    for number in range(3):
        weights = split_parameters(objective._buffer.snapshot(number, 2), net)
        outputs.append(call_with(net, weights, batch.inputs))
    seen = set()
    for place, group in enumerate(batch.groups.tolist()):
        right = [out[place] for out in outputs if int(out[place].argmax()) == group]
        seen.add(len(right))
        expected = torch.stack(right or [out[place] for out in outputs]).mean(0).softmax(0)
        torch.testing.assert_close(batch.targets[place], expected)
    assert len(seen) > 1  # experts disagree, or the rule is not tested


def test_labels_are_left_alone_where_the_loss_is_high() -> None:
    modality = digits()
    for threshold, moves in ((1e-6, False), (1e6, True), (None, True)):
        summary = modality.summary([1] * 10, rng=generator(0), labels="learned")
        objective = TrajectoryMatching(
            learner="mlp", experts=1, expert_interval=2, max_start=1, inner_steps=2, label_threshold=threshold
        )
        objective.start(modality, summary)
        objective.loss(generator(0)).backward()
        groups = summary.parameter_groups()
        assert float(groups["points"][0].grad.abs().max()) > 0  # type: ignore[union-attr]
        slope = groups["labels"][0].grad
        assert (slope is not None and bool((slope != 0).any())) == moves


def test_momentum_does_not_move_labels_either() -> None:
    modality = digits()
    seen: list[Tensor] = []

    class Closing(TrajectoryMatching):
        """Lets labels move in the first two steps alone."""

        def after_step(self, rng: torch.Generator) -> None:
            super().after_step(rng)
            seen.append(self.summary.parameter_groups()["labels"][0].detach().clone())
            if len(seen) == 2:
                self.label_threshold = 1e-9

    objective = Closing(learner="mlp", experts=1, expert_interval=2, max_start=1, inner_steps=2, label_threshold=1e6)
    summary = modality.summary([1] * 10, rng=generator(0), labels="learned")
    distill(modality, summary, objective, steps=4, lr=0.01, validate_every=0, progress=False)
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    for later in seen[2:]:
        torch.testing.assert_close(later, seen[1], rtol=0, atol=1e-6)


def test_hard_labels_cannot_begin_from_experts() -> None:
    modality = digits()
    objective = TrajectoryMatching(learner="mlp", experts=1, expert_interval=1, max_start=1, expert_labels=True)
    with pytest.raises(InputError, match="no learned labels"):
        objective.start(modality, modality.summary([1] * 10, rng=generator(0)))


def test_tesla_gives_the_same_loss_and_another_gradient() -> None:
    modality, found = ToyModality(), []
    for gradient in ("exact", "tesla"):
        summary = modality.summary([2, 2, 2], rng=generator(0))
        objective = TrajectoryMatching(experts=1, max_start=1, inner_steps=5, inner_lr=0.5, gradient=gradient)  # type: ignore[arg-type]
        objective.start(modality, summary)
        loss = objective.loss(generator(0))
        loss.backward()
        assert summary.points.grad is not None
        found.append((float(loss.detach()), summary.points.grad))
    assert found[0][0] == found[1][0]
    cosine = torch.nn.functional.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), 0)
    assert 0 < float(cosine) < 0.999


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_start": 5}, "min_start must be below max_start, 5, got 5"),
        ({"first_max_start": 6}, "at most max_start, 5, got 6"),
        ({"first_max_start": 1, "min_start": 1}, "above min_start, 1"),
        ({"gradient": "telsa"}, "Did you mean 'tesla'"),
        ({"expert_optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"label_threshold": 0.0}, "label_threshold must be a positive number"),
        ({"expert_weight_decay": -1.0}, "expert_weight_decay must be a number of at least 0"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrajectoryMatching(**settings)
