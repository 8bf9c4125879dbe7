"""`Validation`: the training that a protocol asks for, on the validation split, with what was learned beside the summary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datastill import distill
from datastill.backbones.training import Protocol
from datastill.checks.toy import ToyModality
from datastill.condense.common import run_recipe
from datastill.errors import InputError
from datastill.modalities.base import Published
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.meta_model import UnrolledTraining
from datastill.recipe import Recipe
from datastill.rng import generator
from datastill.validation import Validation

RULES = Protocol(steps=9, optimizer="sgd", lr=0.03, momentum=0.5, schedule="constant")


class Paper(ToyModality):
    published = {
        "paper": Published(paper="", learner="mlp", training=RULES),
        "learned": Published(paper="", learner="mlp", training=Protocol(steps=5, optimizer="sgd"), learned_lr=True),
    }


def by_hand(modality: ToyModality, summary: Any, seed: int, learner: str, protocol: Protocol | None) -> float:
    with torch.no_grad():
        batch = summary().detach()
    predictor = modality.fit(batch, learner, rng=generator(seed, "validation", 0), protocol=protocol)
    return modality.score(predictor, "validation")["accuracy"]


def start(modality: ToyModality) -> Any:
    return modality.summary([2, 2, 2], rng=generator("start"), init="noise")


def scores(objective: Objective, **options: Any) -> list[float]:
    modality = Paper()
    result = distill(modality, start(modality), objective, steps=2, validate_every=2, progress=False, seed=3, **options)
    return [record["score"] for record in result.history if "score" in record]


def test_validation_trains_by_the_protocol_and_its_learner() -> None:
    modality = Paper()
    expected = by_hand(modality, start(modality), 3, "mlp", RULES)
    assert scores(DistributionMatching(), validation_protocol="paper")[0] == expected
    assert scores(DistributionMatching(), validator="mlp", validation_protocol=RULES)[0] == expected
    assert scores(DistributionMatching(), validator="mlp")[0] == by_hand(modality, start(modality), 3, "mlp", None)
    linear = by_hand(modality, start(modality), 3, "linear", RULES)
    assert scores(DistributionMatching(), validator="linear", validation_protocol="paper")[0] == linear
    # Were two of these alike, the asserts above could not tell the arguments apart.
    assert len({expected, by_hand(modality, start(modality), 3, "mlp", None), linear}) == 3


def test_a_learned_rate_goes_into_the_validation() -> None:
    seen: list[float] = []

    class Watching(Paper):
        def fit(self, *given: Any, protocol: Protocol | None = None, **options: Any) -> Any:
            seen.append(-1.0 if protocol is None else protocol.lr)
            return super().fit(*given, protocol=protocol, **options)

    modality = Watching()
    objective = UnrolledTraining(inner_steps=3, inner_lr=0.07, learn_lr=True)
    distill(
        modality, start(modality), objective, steps=2, validate_every=2, progress=False, validation_protocol="learned"
    )
    last = objective.learned()["inner_lr"]
    assert seen == pytest.approx([0.07, sum(last) / len(last)])
    assert seen[0] != seen[1]


def test_a_rate_that_nothing_learns_is_said() -> None:
    with pytest.raises(InputError, match="protocol 'learned' trains with the learning rate that was learned"):
        scores(DistributionMatching(), validation_protocol="learned")


def test_a_missing_rate_is_found_before_any_work() -> None:
    validation = Validation(Paper(), protocol="learned")
    validation.check()
    validation.check({"inner_lr": [0.1, 0.2]})
    nothing: list[dict[str, Any]] = [{}, {"inner_lr": None}, {"inner_lr": []}]
    for learned in nothing:
        with pytest.raises(InputError, match="protocol 'learned' trains with the learning rate that was learned"):
            validation.check(learned)
    Validation(Paper(), protocol="paper").check({})


def test_a_kernel_cannot_validate_by_the_rules_of_a_network() -> None:
    with pytest.raises(InputError, match="protocol 'paper' trains a network and says nothing of how 'ntk' is fitted"):
        scores(DistributionMatching(), validator="ntk", validation_protocol="paper")


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown toy protocol 'papper'. Did you mean 'paper'"):
        scores(DistributionMatching(), validation_protocol="papper")


def test_a_mean_over_seeds() -> None:
    modality = Paper()
    singles = []
    for number in range(3):
        with torch.no_grad():
            batch = start(modality)().detach()
        predictor = modality.fit(batch, "mlp", rng=generator(5, "validation", number), protocol=RULES)
        singles.append(modality.score(predictor, "validation")["accuracy"])
    found = Validation(modality, protocol="paper", seeds=3).score(start(modality), seed=5)
    assert found == pytest.approx(sum(singles) / 3)
    assert len(set(singles)) > 1


def test_real_points_are_scored_by_the_protocol_of_their_recipe() -> None:
    modality = Paper()
    recipe = Recipe("r", "", "", ("toy",), None, summary={"init": "random"}, validation_protocol="paper")
    result = run_recipe(modality, [2, 2, 2], recipe, seed=4, progress=False)
    assert result.best_score == by_hand(modality, result.summary, 4, "mlp", RULES)


def test_so_they_are_by_its_seeds_and_form() -> None:
    modality = Paper()
    recipe = Recipe("r", "", "", ("toy",), None, summary={"init": "random"}, validation_seeds=3, select_on="export")
    seen: list[Validation] = []

    def noted(self: Validation, *given: Any, **named: Any) -> float:
        seen.append(self)
        return 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "score", noted)
        run_recipe(modality, [2, 2, 2], recipe, seed=4, progress=False)
    assert [(one.seeds, one.select_on) for one in seen] == [(3, "export")]


def test_a_run_by_another_protocol_does_not_go_on(tmp_path: Any) -> None:
    scores(DistributionMatching(), checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="validation was"):
        scores(DistributionMatching(), checkpoint_dir=tmp_path, validation_protocol="paper")
