"""`Rules`: how a learner is trained on a summary, for its score on test data and for the validation that selects it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datastill.backbones.base import Predictor
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol
from datastill.errors import InputError, require
from datastill.modalities.base import Modality, Published
from datastill.rng import generator


@dataclass(frozen=True)
class Rules:
    """How to train whatever is evaluated: by a published protocol, a given one, or the modality's own."""

    target: Modality
    name: str | None = None
    published: Published | None = None
    given: Protocol | None = None
    rates: tuple[float, ...] = ()

    @classmethod
    def of(cls, protocol: str | Protocol | None, target: Modality, learned: Mapping[str, Any]) -> Rules:
        require(
            protocol is None or isinstance(protocol, str | Protocol),
            f"protocol must be the name of a published protocol, a Protocol or None, got {protocol!r}.",
        )
        if not isinstance(protocol, str):
            return cls(target, given=protocol)
        published = target.published_protocol(protocol)
        rates = published.rates
        if published.learned_lr:
            found = learned.get("inner_lr")
            if not found:
                raise InputError(
                    f"protocol {protocol!r} trains with the learning rate that was learned with the summary, which comes with a "
                    "Result or an Artifact of an objective that learns one: give that, or another protocol."
                )
            rates = (statistics.fmean(found if isinstance(found, list) else [found]),)
        return cls(target, protocol, published, rates=rates)

    @property
    def learner(self) -> str:
        if self.published is not None:
            return self.published.learner
        return self.target.evaluator or self.target.learners[0]

    def fit(self, batch: Batch, learner: str, *, full: bool, key: tuple[int | str, ...]) -> Predictor:
        """Train on `batch`; of several learning rates the best on the validation split, each from the same start."""
        if self.published is None:
            return self.target.fit(batch, learner, rng=generator(*key), protocol=self.given)
        rates = () if self.target.is_kernel(learner) else self.rates
        plans = [self.published.on(len(batch), self.target.num_groups, full=full, lr=rate) for rate in rates or (None,)]
        trained = [
            self.target.fit(batch, learner, rng=generator(*key), protocol=plan, ridges=self.published.ridges)
            for plan in plans
        ]
        if len(trained) == 1:
            return trained[0]
        return max(trained, key=lambda one: self.target.score(one, "validation")[self.target.metric])

    def stated(self) -> dict[str, Any]:
        """The published rules by name, as JSON-able values."""
        if self.name is None or self.published is None:
            return {}
        return {self.name: json.loads(json.dumps(asdict(self.published)))}
