"""Every objective check catches an objective that is broken in just the way it looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datastill.modalities.classification  # noqa: F401  (the forbidden import that the blindness check must see)
from datastill.checks import CheckFailed, ToyModality, check_objective
from datastill.checks import objective as checks
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.rng import generator


class Good(Objective):
    """Squared distance of the overall means: right in every respect but the import above."""

    name = "good"

    def loss(self, rng: torch.Generator) -> Tensor:
        real, ours = self.modality.real(4, rng=rng), self.summary(rng)
        return (real.inputs.mean(0) - ours.inputs).square().sum()


class Nameless(Good):
    name = ""


class GlobalInConstructor(Good):
    def __init__(self) -> None:
        torch.rand(1)


class Unstorable(Good):
    def config(self) -> dict[str, Any]:
        return {"callback": print}


class Vector(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        return self.summary(rng).inputs.square().sum(1)


class Infinite(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        return super().loss(rng) / 0


class Blind(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        return super().loss(rng).detach() + 0 * self.summary(rng).inputs.sum()


class ForgottenLearnable(Good):
    def learnables(self) -> dict[str, nn.Parameter]:
        return {"lr": nn.Parameter(torch.ones(1))}


class HalfDetached(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        points = self.summary(rng).inputs
        return (points * points.detach()).sum()


_DRIFT = generator("drift")


class Unseeded(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        return super().loss(rng) * float(torch.rand(1, generator=_DRIFT))


class GlobalNoise(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        return super().loss(rng) + float(torch.rand(1))


class Vandal(Good):
    def loss(self, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            self.summary.get_parameter("points").add_(0.1)
        return super().loss(rng)


class UnstorableState(Good):
    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": object()}


class Rateless(Good):
    learns_rate = True


class Forgetful(Good):
    """Weighs its loss by how often it was called, and does not say so in its state."""

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self.calls = 0

    def loss(self, rng: torch.Generator) -> Tensor:
        self.calls += 1
        # Adam hardly sees the scale of a gradient, but it does see which coordinate it is in.
        return super().loss(rng) + 5 * self.calls * self.summary(rng).inputs[0, self.calls % 5]


class FolderBound(Good):
    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        super().start(modality, summary, seed=seed, workdir=workdir)
        self.scale = 1.0 if workdir is None else 2.0

    def loss(self, rng: torch.Generator) -> Tensor:
        return self.scale * super().loss(rng)


@pytest.mark.parametrize(
    ("twin", "check", "message"),
    [
        (Nameless, checks.check_constructor, "class attribute `name`"),
        (GlobalInConstructor, checks.check_constructor, "global random state"),
        (Unstorable, checks.check_constructor, "cannot be stored"),
        (Good, checks.check_blindness, "datastill.modalities.classification"),
        (Vector, checks.check_loss, "must give a scalar"),
        (Infinite, checks.check_loss, "not finite"),
        (Blind, checks.check_loss, "gives no gradient"),
        (ForgottenLearnable, checks.check_loss, "own parameter 'lr'"),
        (HalfDetached, checks.check_finite_differences, "disagrees with finite differences"),
        (Unseeded, checks.check_same_seed_same_loss, "differ for equal generators"),
        (GlobalNoise, checks.check_same_seed_same_loss, "global random state of torch"),
        (Vandal, checks.check_target_unmutated, "changed the summary itself"),
        (UnstorableState, checks.check_state, "cannot be stored"),
        (Rateless, checks.check_state, r"learns_rate is True: learned\(\) must have 'inner_lr'"),
        (Forgetful, checks.check_restart, "missing in state_dict"),
        (FolderBound, checks.check_workdir, "depends on workdir"),
    ],
)
def test_check_catches_its_broken_twin(twin: type[Objective], check: Any, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        check(twin, ToyModality())


def test_every_check_has_a_broken_twin() -> None:
    marks = test_check_catches_its_broken_twin.pytestmark  # type: ignore[attr-defined]
    tested = {case[1] for mark in marks for case in mark.args[1]}
    assert tested == set(checks.OBJECTIVE_CHECKS)


def test_good_twin_passes_all_but_the_import() -> None:
    failures = check_objective(Good, on_fail="report")
    assert [failure.split(":")[0] for failure in failures] == ["check_blindness"]
    assert check_objective(DistributionMatching) == []
