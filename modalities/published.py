"""`Published`: the rules by which a paper scored its summaries, as data, so that a row can be checked under its own rules."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from datastill.backbones.training import Protocol
from datastill.errors import InputError, require


@dataclass(frozen=True)
class Published:
    """One published way to score a summary. What it cannot say is said in `differs`.

    Attributes:
        paper: whose tables used it.
        learner: the learner or kernel that was trained, a name that the modality knows.
        training: how a network was trained; None if it was a kernel, for which nothing is trained.
        steps_by_points: (points, steps) pairs where the length of training depends on the size of the summary; a size
            between takes the nearest one by ratio, the longer training at a tie.
        unit_scale_classes: if given, encoded targets are scaled by sqrt(this / classes) beside `training.target_scale`.
        learned_lr: whether the rate is the one that was learned with the summary ("inner_lr"). Real points, which it was not
            learned for, train at that of `training`.
        rates: learning rates that are tried; the best on the validation split is taken. Empty takes `training.lr`.
        ridges: of a kernel, relative to the mean diagonal; with several the best on the validation split is taken.
        full_epochs: passes that the full data get in place of `training.epochs`, which are meant for small sets.
        selection: which moment the published score is of; ours is of the last one, or the best on validation where
            `training.validate_every` says so, and never selected on test.
        trainings: how many fresh learners a published score averages.
        differs: what is not as published, in words; "" if nothing that we know of.
    """

    paper: str
    learner: str
    training: Protocol | None = None
    steps_by_points: tuple[tuple[int, int], ...] = ()
    unit_scale_classes: int | None = None
    learned_lr: bool = False
    rates: tuple[float, ...] = ()
    ridges: tuple[float, ...] = ()
    full_epochs: int = 30
    selection: str = "last"
    trainings: int = 5
    differs: str = ""

    def __post_init__(self) -> None:
        network = bool(self.steps_by_points or self.unit_scale_classes or self.learned_lr or self.rates)
        require(
            not (self.ridges if self.training else network),
            f"A published protocol of {self.learner!r} must have either training, of a network, or what a kernel is fitted by "
            "(ridges, or nothing for the modality's): leave the other's options out.",
        )

    def on(self, points: int, groups: int, *, full: bool = False, lr: float | None = None) -> Protocol:
        """The training of a summary of so many points in so many groups.

        Args:
            points: of the training data.
            groups: classes.
            full: whether it is the target dataset itself that is trained on.
            lr: in place of the rate of `training`.

        Raises:
            InputError: for a protocol of a kernel.
        """
        if self.training is None:
            raise InputError(f"The protocol of {self.learner!r} fits a kernel, which has no training of so many steps.")
        changed: dict[str, float | int] = {}
        if self.steps_by_points:
            changed["steps"] = min(self.steps_by_points, key=lambda pair: (abs(math.log(points / pair[0])), -pair[1]))[
                1
            ]
        if self.training.epochs is not None and full:
            changed["epochs"] = min(self.training.epochs, self.full_epochs)
        if self.unit_scale_classes is not None:
            changed["target_scale"] = self.training.target_scale * math.sqrt(self.unit_scale_classes / groups)
        if lr is not None:
            changed["lr"] = lr
        return dataclasses.replace(self.training, **changed)  # type: ignore[arg-type]
