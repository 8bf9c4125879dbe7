"""`Validation`: what a summary is worth by the validation split of the real data, by which runs select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from datastill import processes
from datastill.backbones.training import Protocol
from datastill.errors import check_count, require
from datastill.modalities.base import Modality, Summary
from datastill.rng import derive_seed, isolated
from datastill.rules import Rules


@dataclass(frozen=True)
class Validation:
    """How summaries of a target dataset are scored in a run. Nothing of it touches test data.

    Attributes:
        modality: the target dataset.
        learner: learner or kernel that is trained; None takes the protocol's, or the modality's evaluator.
        protocol: how, as `evaluate` takes it; None is the modality's own way.
        seeds: trainings, averaged; the same seeds each time.
        select_on: whether training is on the summary itself or on what `export` makes of it.
    """

    modality: Modality
    learner: str | None = None
    protocol: str | Protocol | None = None
    seeds: int = 1
    select_on: Literal["summary", "export"] = "summary"

    def check(self, learned: Mapping[str, Any] | None = None) -> None:
        """Raise `InputError` for values that are not allowed, such as a learner that the protocol says nothing of.

        Args:
            learned: what is learned beside the summary, as an objective that has started gives it: a protocol that trains by a
                learned rate needs one in it. None leaves that out.
        """
        check_count("validation_seeds", self.seeds)
        require(
            self.select_on in ("summary", "export"),
            f"select_on must be 'summary' or 'export', got {self.select_on!r}.",
        )
        rules = Rules.named(self.protocol, self.modality)
        rules.check_learner(self.trains)
        if learned is not None:
            rules.check_learned(learned)

    @property
    def trains(self) -> str:
        """The learner or kernel that is trained."""
        return self.learner or Rules.named(self.protocol, self.modality).learner

    def score(self, summary: Summary, *, seed: int, learned: Mapping[str, Any] | None = None) -> float:
        """The mean of the modality's metric on the validation split, in [0, 1]; all processes get the main one's.

        Args:
            summary: what learners are trained on; unchanged.
            seed: of the trainings.
            learned: what was learned beside the summary, as an objective's `learned` gives it, for a protocol that trains by it.

        Raises:
            InputError: if the protocol trains by a learning rate that was not learned.
        """
        rules = Rules.of(self.protocol, self.modality, learned or {})
        with torch.no_grad():
            exported = self.select_on == "export"
            batch = self.modality.read(summary.export()) if exported else summary().detach().to(self.modality.device)
        scores = []
        for number in range(self.seeds):
            with isolated(derive_seed(seed, "validation", number)):
                predictor = rules.fit(batch, self.trains, key=(seed, "validation", number))
                scores.append(self.modality.score(predictor, "validation")[self.modality.metric])
        return float(processes.agree(sum(scores) / len(scores)))

    def identity(self) -> tuple[Any, ...]:
        """What has to be the same for a run to go on from a checkpoint."""
        return (self.learner, self.seeds, self.select_on, *([] if self.protocol is None else [self.protocol]))
