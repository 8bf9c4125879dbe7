"""`Rules`: how a learner is trained on a summary, for its score on test data and for the validation that selects it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from datastill.backbones.base import Predictor
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol
from datastill.errors import require, unknown_name
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
    def named(cls, protocol: str | Protocol | None, target: Modality) -> Rules:
        """The rules of `protocol` before anything is learned: to be checked, or trained by where they ask for no learned rate.

        Raises:
            InputError: for a protocol that `target` does not have.
        """
        require(
            protocol is None or isinstance(protocol, str | Protocol),
            f"protocol must be the name of a published protocol, a Protocol or None, got {protocol!r}.",
        )
        if not isinstance(protocol, str):
            return cls(target, given=protocol)
        published = target.published_protocol(protocol)
        return cls(target, protocol, published, rates=published.rates)

    @classmethod
    def of(cls, protocol: str | Protocol | None, target: Modality, learned: Mapping[str, Any]) -> Rules:
        """The rules of `protocol`, with the learning rate of `learned` where they ask for one.

        Raises:
            InputError: for a protocol that `target` does not have, or what `check_learned` refuses.
        """
        rules = cls.named(protocol, target)
        rules.check_learned(learned)
        if rules.published is None or not rules.published.learned_lr:
            return rules
        return replace(rules, rates=(_learned_rate(learned),))

    def check_learns(self, rate: bool) -> None:
        """Raise `InputError` if a learning rate is needed, and `rate` says that none is learned with the summary."""
        require(
            rate or self.published is None or not self.published.learned_lr,
            f"protocol {self.name!r} trains with the learning rate that was learned with the summary, which comes with a Result "
            "or an Artifact of an objective that learns one: give that, or another protocol.",
        )

    def check_learned(self, learned: Mapping[str, Any]) -> None:
        """Raise `InputError` if a learning rate is needed and `learned`, as `Objective.learned` gives it, has none above 0."""
        self.check_learns(learned.get("inner_lr") not in (None, []))
        if self.published is None or not self.published.learned_lr:
            return
        rate = _learned_rate(learned)
        require(
            0 < rate < math.inf,
            f"protocol {self.name!r} trains with the learning rate that was learned with the summary, which must be a positive "
            f"number, got {rate!r}: give another protocol.",
        )

    def check_learner(self, name: str) -> None:
        """Raise `InputError` unless the target dataset knows the learner or kernel `name`, which can read its points, and the
        protocol trains such ones."""
        target, published = self.target, self.published
        if not target.knows(name):
            raise unknown_name(
                f"{target.kind} learner", name, (*target.learners, *target.further, *target.kernels, *target.fitted)
            )
        kernel = target.is_kernel(name)
        if not kernel and name not in target.fitted:
            target.learner(name, rng=generator("fits"))
        if published is None:
            return
        if published.training is None:
            require(
                kernel,
                f"protocol {self.name!r} fits a kernel and says nothing of how {name!r} is trained: ask for a kernel, such as "
                f"{published.learner!r}, or leave the protocol out.",
            )
            return
        require(
            not kernel and name not in target.fitted,
            f"protocol {self.name!r} trains a network and says nothing of how {name!r} is fitted: ask for a network, such as "
            f"{published.learner!r}, or leave the protocol out.",
        )

    @property
    def learner(self) -> str:
        """What is trained unless another one is asked for."""
        if self.published is not None:
            return self.published.learner
        return self.target.evaluator or self.target.learners[0]

    def fit(
        self, batch: Batch, learner: str, *, key: tuple[int | str, ...], real: bool = False, full: bool = False
    ) -> Predictor:
        """Train on `batch`; of several learning rates the best on the validation split, each from the same start.

        Args:
            batch: the points.
            learner: what is trained.
            key: of everything random.
            real: whether the points are real ones. A rate that was learned with a summary is that summary's alone, so that they
                train at the protocol's own.
            full: whether they are the whole target dataset.
        """
        if self.published is None:
            return self.target.fit(batch, learner, rng=generator(*key), protocol=self.given)
        if self.published.training is None:
            return self.target.fit(batch, learner, rng=generator(*key), ridges=self.published.ridges)
        groups = self.target.num_groups
        others = real and self.published.learned_lr
        rates = self.published.rates if others else self.rates
        plans = [self.published.on(len(batch), groups, full=full, lr=rate) for rate in rates or (None,)]
        trained = [self.target.fit(batch, learner, rng=generator(*key), protocol=plan) for plan in plans]
        if len(trained) == 1:
            return trained[0]
        return max(trained, key=lambda one: self.target.score(one, "validation")[self.target.metric])

    def stated(self) -> dict[str, Any]:
        """The published rules by name, as JSON-able values."""
        if self.name is None or self.published is None:
            return {}
        return {self.name: json.loads(json.dumps(asdict(self.published)))}


def _learned_rate(learned: Mapping[str, Any]) -> float:
    """The learned rate, or the mean of those that were learned for each step."""
    found = learned["inner_lr"]
    return statistics.fmean(found if isinstance(found, list) else [found])
