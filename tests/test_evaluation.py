"""Evaluation: the rows it must have, what they are trained on, and its arithmetic."""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import Any

import pytest
import torch

from datastill.backbones.training import Protocol
from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import InputError
from datastill.evaluation import Evaluation, Row, evaluate
from datastill.loop import distill
from datastill.modalities.base import Published, Split
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.meta_model import UnrolledTraining
from datastill.rng import generator


def test_rows_of_a_result() -> None:
    modality = ToyModality(points=30)
    summary = modality.summary([1, 1, 1], rng=generator("eval"), init="noise")
    result = distill(modality, summary, KernelRidge(ridge=1e-2, real_size=None), steps=80, lr=0.1, progress=False)
    found = evaluate(result, learners=["mlp", "ntk"], seeds=3, progress=False)
    assert [(row.data, row.learner) for row in found.rows] == [
        (data, learner) for learner in ("mlp", "ntk") for data in ("summary", "random subset", "full data")
    ]
    row = found.row("summary", "ntk")
    assert row.points == 3
    assert row.nbytes == 3 * 5 * 4 + 3 * 8
    assert found.row("full data").points == 90
    assert found.row("random subset").nbytes == row.nbytes
    assert found.row("summary", "ntk").mean("accuracy") > found.row("random subset", "ntk").mean("accuracy")
    trained = {(row.learner, row.data): len(row.scores["accuracy"]) for row in found.rows}
    assert [trained["mlp", data] for data in ("summary", "random subset", "full data")] == [3, 3, 3]
    assert [trained["ntk", data] for data in ("summary", "random subset", "full data")] == [1, 3, 1]
    text = found.table()
    assert "random subset" in text
    assert "±" in text
    stored = found.to_json()
    assert stored["rows"][0]["summary"]["accuracy"]["mean"] == pytest.approx(found.rows[0].mean("accuracy"))


def test_inexact_export_is_reported_beside_the_summary() -> None:
    class Rounded(ToySummary):
        exact_export = False

        def export(self) -> tuple[torch.Tensor, torch.Tensor]:
            points, labels = super().export()
            return points.round(), labels

    modality = ToyModality()
    good = modality.summary([1, 1, 1], rng=generator("eval"))
    found = evaluate(Rounded(good.points.detach(), good.get_buffer("labels")), modality, seeds=1, progress=False)
    assert [row.data for row in found.rows] == ["summary", "exported", "random subset", "full data"]


def test_native_dataset_and_no_baselines() -> None:
    modality = ToyModality()
    dataset = modality.subset([2, 2, 2], rng=generator("eval"))
    found = evaluate(dataset, modality, seeds=2, baselines=False, progress=False)
    assert [row.data for row in found.rows] == ["summary"]


def test_random_subsets_differ_between_seeds() -> None:
    modality = ToyModality(points=40)
    drawn = []
    original = modality.subset

    def subset(counts: list[int], *, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(original(counts, rng=rng))
        return drawn[-1]

    modality.subset = subset  # type: ignore[method-assign, assignment]
    evaluate(modality.summary([1, 1, 1], rng=generator("eval")), modality, seeds=3, progress=False)
    assert len({tuple(points.flatten().tolist()) for points, _ in drawn}) == 4  # three seeds and one for the size


def test_arithmetic() -> None:
    rows = [
        Row("summary", "net", {"accuracy": [0.7, 0.8]}, 1, 1, 0.0),
        Row("random subset", "net", {"accuracy": [0.4, 0.6]}, 1, 1, 0.0),
        Row("full data", "net", {"accuracy": [0.9, 1.0]}, 1, 1, 0.0),
    ]
    found = Evaluation("accuracy", rows)
    assert found.gap_closed() == pytest.approx((0.75 - 0.5) / (0.95 - 0.5))
    assert rows[0].std("accuracy") == pytest.approx(statistics.stdev([0.7, 0.8]))
    assert Row("summary", "net", {"accuracy": [0.7]}, 1, 1, 0.0).std("accuracy") == 0.0
    with pytest.raises(InputError, match="No row 'teacher'"):
        found.row("teacher")


def test_refusals() -> None:
    modality = ToyModality()
    summary = modality.summary([1, 1, 1], rng=generator("eval"))
    with pytest.raises(InputError, match="needs modality"):
        evaluate(summary)
    with pytest.raises(InputError, match="Did you mean 'linear'"):
        evaluate(summary, modality, learners=["liner"])
    with pytest.raises(InputError, match="seeds must be an integer of at least 1"):
        evaluate(summary, modality, seeds=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learners": "mlp"}, r"learners must be a list of names, such as \['mlp'\]\."),
        ({"learners": [3]}, r"learners must be a list of names, such as \[\"convnet\"\], or None, got \[3\]\."),
        ({"learners": 3}, r"learners must be a list of names, .*, or None, got 3\."),
        ({"protocol": 3}, r"protocol must be the name of a published protocol, a Protocol or None, got 3\."),
        ({"protocol": ["dsa"]}, r"protocol must be the name of a published protocol, .* got \['dsa'\]\."),
    ],
)
def test_arguments_of_another_kind_are_refused_in_words(given: dict[str, Any], said: str) -> None:
    modality = ToyModality()
    with pytest.raises(InputError, match=said):
        evaluate(modality.summary([1, 1, 1], rng=generator("eval")), modality, progress=False, **given)


PUBLISHED = {
    "paper": Published(paper="", learner="mlp", training=Protocol(steps=30, lr=0.05, loss="squared", target_scale=2.0)),
    "learned": Published(paper="", learner="mlp", training=Protocol(steps=3), learned_lr=True),
    "searched": Published(paper="", learner="mlp", training=Protocol(steps=20), rates=(1e-6, 0.05)),
    "krr": Published(paper="", learner="ntk", ridges=(1e-6,)),
}


class Paper(ToyModality):
    published = PUBLISHED
    kernel_limit = 50


def test_published_protocols_by_name() -> None:
    modality = Paper()
    dataset = modality.subset([3, 3, 3], rng=generator("eval"))
    found = evaluate(dataset, modality, protocol="paper", seeds=1, progress=False)
    assert [(row.data, row.learner) for row in found.rows] == [
        (data, "mlp") for data in ("summary", "random subset", "full data")
    ]
    predictor = modality.fit(
        modality.read(dataset),
        "mlp",
        rng=generator(0, "evaluate", 0),
        protocol=Protocol(steps=30, lr=0.05, loss="squared", target_scale=2.0),
    )
    assert found.rows[0].scores["accuracy"] == [modality.score(predictor, "test")["accuracy"]]
    stored = json.loads(json.dumps(found.to_json()))
    assert {row["protocol"] for row in stored["rows"]} == {"paper"}
    assert stored["rules"]["paper"]["training"]["target_scale"] == 2.0
    with pytest.raises(InputError, match=r"Unknown toy protocol 'papper'. Did you mean 'paper'"):
        evaluate(dataset, modality, protocol="papper")


def test_kernel_ridge_by_hand() -> None:
    modality = Paper()
    dataset = modality.subset([2, 2, 2], rng=generator("eval"))
    found = evaluate(dataset, modality, protocol="krr", seeds=1, progress=False)
    assert [row.data for row in found.rows] == ["summary", "random subset"]  # 60 points of full data are too many here
    stated = json.loads(json.dumps(found.to_json()))["rules"]["krr"]
    assert (stated["training"], stated["ridges"]) == (None, [1e-6])
    kernel, batch = modality.kernel("ntk"), modality.read(dataset)
    gram = kernel(batch.inputs, batch.inputs).double()
    labels = torch.eye(3, dtype=torch.float64)[batch.targets] - 1 / 3
    weights = torch.linalg.inv(gram + 1e-6 * gram.trace() / 6 * torch.eye(6)) @ labels
    (held,) = modality.held_out("test")
    right = (kernel(held.inputs, batch.inputs).double() @ weights).argmax(1) == held.targets
    assert found.rows[0].scores["accuracy"] == [pytest.approx(float(right.double().mean()))]


def test_a_learned_rate_comes_with_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = Paper()
    summary = modality.summary([1, 1, 1], rng=generator("eval"))
    with pytest.raises(InputError, match="learning rate that was learned with the summary"):
        evaluate(summary, modality, protocol="learned")
    objective = UnrolledTraining(inner_steps=2, inner_lr=0.25, learn_lr=False, lr_per_step=False, real_size=None)
    result = distill(modality, summary, objective, steps=1, progress=False)
    used: list[float] = []
    original = modality.fit

    def fit(*given: Any, **named: Any) -> Any:
        used.append(named["protocol"].lr)
        return original(*given, **named)

    monkeypatch.setattr(modality, "fit", fit)
    evaluate(result, protocol="learned", seeds=1, progress=False)
    own = PUBLISHED["learned"].training
    assert own is not None
    assert used == pytest.approx([0.25, own.lr, own.lr])  # real points, which the rate is not of, have the protocol's
    for rate in (0.0, -0.1, [0.1, -0.3], float("nan")):
        given = dataclasses.replace(result, learned={"inner_lr": rate})
        with pytest.raises(InputError, match="must be a positive number, got"):
            evaluate(given, protocol="learned", seeds=1, progress=False)
    assert len(used) == 3


def test_rates_are_chosen_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = Paper()
    scored: list[Split] = []
    original = modality.score

    def score(predictor: Any, split: Split) -> dict[str, float]:
        scored.append(split)
        return original(predictor, split)

    monkeypatch.setattr(modality, "score", score)
    full = modality.read(modality.subset([20, 20, 20], rng=generator("eval")))
    data = (full.inputs, full.targets)
    found = evaluate(data, modality, protocol="searched", seeds=1, baselines=False, progress=False)
    assert scored == ["validation", "validation", "test"]
    good = modality.fit(full, "mlp", rng=generator(0, "evaluate", 0), protocol=Protocol(steps=20, lr=0.05))
    assert found.rows[0].scores["accuracy"] == [original(good, "test")["accuracy"]]
