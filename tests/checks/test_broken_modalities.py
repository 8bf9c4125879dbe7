"""Every modality check catches a twin of the toy modality that is broken in just the way it looks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datastill.backbones.base import Kernel, Learner
from datastill.backbones.batch import Batch
from datastill.backbones.mlp import MLP
from datastill.checks import CheckFailed, ToyModality, check_modality
from datastill.checks import modality as checks
from datastill.checks.toy import ToySummary
from datastill.errors import InputError
from datastill.modalities.base import Size, Split
from datastill.rng import generator


class MixedGroups(ToyModality):
    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        batch = super().draw(size, groups, rng)
        return batch.take(torch.arange(len(batch)).flip(0))


class DeafToRng(ToyModality):
    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        return super().draw(size, groups, generator(0))


class GlobalDraws(ToyModality):
    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        torch.rand(1)
        return super().draw(size, groups, rng)


class WrongSizes(ToyModality):
    @property
    def group_sizes(self) -> list[int]:
        return [size + 1 for size in super().group_sizes]


class SameLearnerAlways(ToyModality):
    def build(self, name: str) -> Learner:
        net = super().build(name)
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        return net


class Restless(MLP):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs) + torch.rand(1, generator=_RESTLESS)
        return outputs


_RESTLESS = generator("restless")


class RandomInEval(ToyModality):
    def build(self, name: str) -> Learner:
        return Restless(5, 3)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return grad * values.exp()


class NotTwiceDifferentiable(ToyModality):
    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        return Once.apply(outputs).mean()


class Crooked(Kernel):
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.flip(1).T + torch.arange(len(a), dtype=a.dtype)[:, None]


class AsymmetricKernel(ToyModality):
    def over_inputs(self, kernel: Kernel) -> Kernel:
        return Crooked()


class Negative(Kernel):
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return -(a @ b.T)


class IndefiniteKernel(ToyModality):
    def over_inputs(self, kernel: Kernel) -> Kernel:
        return Negative()


class Summarised(ToyModality):
    """A toy whose summaries are of another class."""

    twin: type[ToySummary]

    def summary(
        self, counts: Sequence[int], *, rng: torch.Generator, init: str | Tensor = "real", **options: Any
    ) -> ToySummary:
        good = super().summary(counts, rng=rng, init=init, **options)
        return self.twin(good.points.detach(), good.get_buffer("labels"))


class OneTooMany(Summarised):
    class twin(ToySummary):
        @property
        def num_points(self) -> int:
            return len(self.points) + 1


class Feather(Summarised):
    class twin(ToySummary):
        @property
        def nbytes(self) -> int:
            return 1


class WrongCounts(ToyModality):
    def summary(self, counts: Sequence[int], **options: Any) -> ToySummary:
        return super().summary(list(counts)[::-1], **options)


class ShortSubset(ToyModality):
    def size(self, dataset: tuple[Tensor, Tensor]) -> Size:
        return Size(len(dataset[0]) + 1, 1)


class Detached(Summarised):
    class twin(ToySummary):
        def forward(self, rng: torch.Generator | None = None) -> Batch:
            batch = super().forward(rng)
            return Batch(batch.inputs.detach() + 0 * batch.inputs, batch.targets, batch.groups)


class Rounded(Summarised):
    class twin(ToySummary):
        def forward(self, rng: torch.Generator | None = None) -> Batch:
            batch = super().forward(rng)
            steps = (4 * batch.inputs).round() / 4
            return Batch(steps.detach() + batch.inputs - batch.inputs.detach(), batch.targets, batch.groups)


_DRIFT = generator("drift")


class Drifting(ToyModality):
    def summary(self, counts: Sequence[int], **options: Any) -> ToySummary:
        good = super().summary(counts, **options)
        with torch.no_grad():
            good.points.add_(torch.rand(1, generator=_DRIFT))
        return good


class Percent(ToyModality):
    def score(self, predictor: Any, split: Split) -> dict[str, float]:
        return {"accuracy": 100 * super().score(predictor, split)["accuracy"] + 1}


class OtherMetric(ToyModality):
    def score(self, predictor: Any, split: Split) -> dict[str, float]:
        return {"acc": super().score(predictor, split)["accuracy"]}


class Aliased(Summarised):
    class twin(ToySummary):
        def export(self) -> tuple[Tensor, Tensor]:
            return self.points.detach(), self.get_buffer("labels")


class OnTheGraph(Summarised):
    class twin(ToySummary):
        def export(self) -> tuple[Tensor, Tensor]:
            return self.points * 1, self.get_buffer("labels")


class NotExact(Summarised):
    class twin(ToySummary):
        def export(self) -> tuple[Tensor, Tensor]:
            points, labels = super().export()
            return points.round(), labels


class LossyPack(ToyModality):
    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return tensors["points"].round(), tensors["labels"]


class UnstorableMeta(ToyModality):
    @staticmethod
    def pack(dataset: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"points": dataset[0], "labels": dataset[1]}, {"size": {1, 2}}


class Misplaced(ToyModality):
    def pick(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return super().pick(index.flip(0))


class Vandal(ToyModality):
    def augment(self, batch: Batch, seed: int) -> Batch:
        self._splits["train"][0].add_(1.0)
        return batch


class Forgetful(ToyModality):
    def augment(self, batch: Batch, seed: int) -> Batch:
        return Batch(batch.inputs + torch.rand(1, generator=_DRIFT), batch.targets, batch.groups)


class Relabelling(ToyModality):
    def augment(self, batch: Batch, seed: int) -> Batch:
        return Batch(batch.inputs, batch.targets.flip(0), batch.groups)


class Unanimous(ToyModality):
    def augment(self, batch: Batch, seed: int) -> Batch:
        return Batch((1 + seed) * batch.inputs, batch.targets, batch.groups)

    def group_augmenter(self, strategy: bool | str) -> Callable[[Batch, Mapping[int, int]], Batch]:
        return lambda batch, seeds: self.augment(batch, seeds[0])


class Terse(ToyModality):
    def learner(self, name: str | None = None, *, rng: torch.Generator) -> Learner:
        if name not in (None, *self.learners):
            raise InputError("bad learner")
        return super().learner(name, rng=rng)


class AnyInit(ToyModality):
    def summary(
        self, counts: Sequence[int], *, rng: torch.Generator, init: str | Tensor = "real", **options: Any
    ) -> ToySummary:
        return super().summary(counts, rng=rng, init="real" if init != "noise" else init, **options)


class KeyErrorForUnknown(ToyModality):
    def learner(self, name: str | None = None, *, rng: torch.Generator) -> Learner:
        if name not in (None, *self.learners):
            raise KeyError(name)
        return super().learner(name, rng=rng)


class Counting(Summarised):
    class twin(ToySummary):
        """Carries a count from draw to draw outside of its state."""

        draws = 0

        def forward(self, rng: torch.Generator | None = None) -> Batch:
            batch = super().forward(rng)
            self.draws += 1
            return Batch(batch.inputs * (1 + 0.1 * self.draws), batch.targets, batch.groups)


@pytest.mark.parametrize(
    ("twin", "check", "message"),
    [
        (MixedGroups, checks.check_real_batches, "in the order asked for"),
        (DeafToRng, checks.check_real_batches, "whatever the generator"),
        (GlobalDraws, checks.check_real_batches, "global random state of torch"),
        (WrongSizes, checks.check_real_batches, "every training point once"),
        (SameLearnerAlways, checks.check_learners, "same draw for different generators"),
        (RandomInEval, checks.check_learners, "draws at random in eval mode"),
        (NotTwiceDifferentiable, checks.check_learners, "cannot be differentiated twice"),
        (AsymmetricKernel, checks.check_kernels, "is not symmetric"),
        (IndefiniteKernel, checks.check_kernels, "eigenvalue"),
        (OneTooMany, checks.check_budgets, "num_points is 5 where 4"),
        (Feather, checks.check_budgets, "nbytes is 1"),
        (WrongCounts, checks.check_budgets, "points of the groups"),
        (ShortSubset, checks.check_budgets, "by size()"),
        (Misplaced, checks.check_chosen_points, "points of other groups"),
        (Detached, checks.check_gradients, "gives no gradient"),
        (Rounded, checks.check_gradients, "disagrees with finite differences"),
        (Drifting, checks.check_same_seed, "differs for equal generators"),
        (Percent, checks.check_score, r"outside \[0, 1\]"),
        (OtherMetric, checks.check_score, "lacks the modality's metric 'accuracy'"),
        (Aliased, checks.check_export, "shares memory"),
        (OnTheGraph, checks.check_export, "autograd graph"),
        (NotExact, checks.check_export, "claims exact_export"),
        (LossyPack, checks.check_export, "unpack"),
        (UnstorableMeta, checks.check_export, "JSON cannot hold"),
        (Vandal, checks.check_target_unchanged, "fingerprint"),
        (Forgetful, checks.check_augmentation, "equal seeds"),
        (Relabelling, checks.check_augmentation, "targets or groups"),
        (Unanimous, checks.check_augmentation, "gives group 1 other points than augment"),
        (Terse, checks.check_bad_input, "not a sentence"),
        (AnyInit, checks.check_bad_input, "accepted silently"),
        (KeyErrorForUnknown, checks.check_bad_input, "raises KeyError"),
        (Counting, checks.check_resumed_run, "resumed differs"),
    ],
)
def test_check_catches_its_broken_twin(twin: type[ToyModality], check: Any, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        check(twin())


def test_every_check_has_a_broken_twin() -> None:
    marks = test_check_catches_its_broken_twin.pytestmark  # type: ignore[attr-defined]
    tested = {case[1] for mark in marks for case in mark.args[1]}
    assert tested == set(checks.MODALITY_CHECKS)


def test_report_lists_all_failures() -> None:
    failures = check_modality(Percent(), on_fail="report")
    assert len(failures) == 1
    assert failures[0].startswith("check_score: ")
    with pytest.raises(CheckFailed):
        check_modality(Percent())
