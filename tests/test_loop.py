"""The outer loop: selection, resume after a kill, divergence, alternation, isolation."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datastill.checks.toy import ToyModality, ToySummary
from datastill.errors import DivergenceError, InputError
from datastill.loop import Event, distill
from datastill.metrics_log import MetricsLog
from datastill.modalities.base import Modality, Size, Summary
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.meta_model import UnrolledTraining
from datastill.outer import OuterOptimizer
from datastill.rng import generator


def summary_of(modality: ToyModality) -> ToySummary:
    return modality.summary([1] * modality.num_groups, rng=generator("loop"))


def run(objective: Objective, **options: Any) -> Any:
    modality = ToyModality()
    return distill(modality, summary_of(modality), objective, **{"progress": False, "steps": 12, **options})


def test_it_learns() -> None:
    result = run(KernelRidge(ridge=1e-2, real_size=None), steps=100, lr=0.05, validate_every=0)
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_step == 100
    assert result.best_score is None


def test_validation_keeps_the_best_summary() -> None:
    """A rate at which the run falls apart: the summary kept is the best one seen, not the last."""
    seen: dict[int, Tensor] = {}

    def watch(event: Event) -> None:
        if event.kind == "validation":
            seen[event.step] = event.summary.get_parameter("points").detach().clone()

    result = run(DistributionMatching(), optimizer="sgd", lr=3.0, steps=20, validate_every=1, callbacks=[watch])
    scores = {record["step"]: record["score"] for record in result.history if "score" in record}
    assert set(scores) == set(range(21))
    best = max(scores.values())
    assert result.best_score == best
    assert result.best_step == min(step for step, score in scores.items() if score == best)
    assert scores[20] < best
    assert torch.equal(result.summary.points, seen[result.best_step])


def test_what_was_learned_is_of_the_step_that_is_kept(tmp_path: Path) -> None:
    def go(folder: Path, stop_at: int | None = None) -> tuple[Any, dict[int, Any]]:
        objective = UnrolledTraining(inner_steps=3, inner_lr=0.05, real_size=8)
        rates: dict[int, Any] = {}

        def watch(event: Event) -> None:
            if event.kind == "validation":
                rates[event.step] = objective.learned()["inner_lr"]
            if event.step == stop_at:
                raise KeyboardInterrupt

        options = {"lr": {"points": 0.3, "inner_lr": 0.1}, "steps": 10, "validate_every": 1, "checkpoint_every": 1}
        return run(objective, **options, checkpoint_dir=folder, callbacks=[watch]), rates

    whole, rates = go(tmp_path / "whole")
    assert 0 < whole.best_step < 9
    assert whole.learned["inner_lr"] == rates[whole.best_step] != rates[10]
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", 9)
    resumed, after = go(tmp_path / "cut")
    assert min(after) > whole.best_step
    assert resumed.learned == whole.learned


class Swelling(ToyModality):
    """Whose exports take a byte for each unit that their points reach."""

    def size(self, dataset: tuple[Tensor, Tensor]) -> Size:
        return Size(len(dataset[0]), 1 + int(dataset[0].abs().sum()))


class Outwards(Objective):
    """Pulls every point away from the origin."""

    name = "outwards"

    def loss(self, rng: torch.Generator) -> Tensor:
        return -self.summary(rng).inputs.abs().sum()


@pytest.mark.parametrize("validate_every", [1, 0])
def test_what_takes_more_than_the_limit_is_not_kept(validate_every: int) -> None:
    modality = Swelling()
    start = modality.size(summary_of(modality).export()).nbytes
    limit = start + 5  # a step of 0.1 adds 1.5, 15 numbers 0.1 each
    result = distill(
        modality,
        summary_of(modality),
        Outwards(),
        steps=10,
        optimizer="sgd",
        lr=0.1,
        nbytes=limit,
        validate_every=validate_every,
        progress=False,
    )
    sizes = {record["step"]: record["bytes"] for record in result.history if "bytes" in record}
    assert set(sizes) == set(range(11))
    fitting = {step for step, takes in sizes.items() if takes <= limit}
    assert fitting == {0, 1, 2, 3}
    assert modality.size(result.export()).nbytes == sizes[result.best_step] <= limit
    if validate_every:
        scores = {record["step"]: record["score"] for record in result.history if "score" in record}
        assert set(scores) == set(range(11))
        assert result.best_score == max(scores[step] for step in fitting)
        assert scores[result.best_step] == result.best_score
    else:
        assert result.best_step == 3
        assert result.best_score is None
    message = f"takes {start:,} bytes before anything is optimised, more than nbytes={start - 1:,}"
    with pytest.raises(InputError, match=message):
        distill(modality, summary_of(modality), Outwards(), steps=1, nbytes=start - 1, progress=False)


def test_a_run_resumed_within_a_limit_ends_the_same(tmp_path: Path) -> None:
    modality = Swelling()
    limit = modality.size(summary_of(modality).export()).nbytes + 5

    def go(folder: Path, **options: Any) -> Any:
        return distill(
            modality,
            summary_of(modality),
            Outwards(),
            steps=10,
            lr=0.1,
            validate_every=0,
            checkpoint_dir=folder,
            checkpoint_every=2,
            progress=False,
            **options,
        )

    def stop(event: Event) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    whole = go(tmp_path / "whole", nbytes=limit)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", nbytes=limit, callbacks=[stop])
    resumed = go(tmp_path / "cut", nbytes=limit)
    assert 0 < whole.best_step < 5
    assert resumed.best_step == whole.best_step
    assert torch.equal(resumed.summary.points, whole.summary.points)
    with pytest.raises(InputError, match=f"nbytes was {limit} and is now None"):
        go(tmp_path / "cut")


def test_same_seed_same_summary_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = run(GradientMatching(outer_loops=3, inner_epochs=1), seed=4)
    torch.manual_seed(2)
    second = run(GradientMatching(outer_loops=3, inner_epochs=1), seed=4)
    other = run(GradientMatching(outer_loops=3, inner_epochs=1), seed=5)
    assert torch.equal(first.summary.points, second.summary.points)
    assert not torch.equal(first.summary.points, other.summary.points)


def test_global_random_state_is_untouched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    run(DistributionMatching(warmup=2))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert states[2] == random.getstate()


class Broken(Objective):
    """A sum of squares that turns bad at a certain step, in a certain way."""

    name = "broken"

    def __init__(self, at: int, how: str) -> None:
        self.at = at
        self.how = how
        self.step = 0

    def loss(self, rng: torch.Generator) -> Tensor:
        points = self.summary(rng).inputs
        value = points.square().sum()
        if self.step == self.at:
            if self.how == "loss":
                return value * float("nan")
            if self.how == "gradient":
                return value + (points - points).abs().sqrt().sum()
            if self.how == "parameters":
                return value * 1e30
            torch.linalg.cholesky(-torch.eye(2))
        return value

    def after_step(self, rng: torch.Generator) -> None:
        self.step += 1


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("loss", "loss"),
        ("gradient", "gradient of points"),
        ("parameters", "parameters"),
        ("matrix", "positive definite"),
    ],
)
def test_divergence_names_step_and_cause_and_keeps_the_last_good_values(how: str, cause: str) -> None:
    modality = ToyModality()
    summary = summary_of(modality)
    history: list[Tensor] = []

    def watch(event: Event) -> None:
        if event.kind == "step":
            history.append(event.summary.get_parameter("points").detach().clone())

    options: dict[str, Any] = {"optimizer": Scripted} if how == "parameters" else {"optimizer": "sgd", "lr": 0.01}
    with pytest.raises(DivergenceError, match="Step 3 of broken met NaN or infinity") as caught:
        distill(
            modality,
            summary,
            Broken(3, how),
            steps=9,
            validate_every=0,
            callbacks=[watch],
            progress=False,
            **options,
        )
    assert caught.value.step == 3
    assert cause in caught.value.cause
    assert len(history) == 3
    assert torch.equal(summary.points, history[-1])


class Scripted(torch.optim.SGD):
    """Plain descent that overflows when the gradient is huge."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.01)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 1e30 if float(group["params"][0].grad.abs().max()) > 1e20 else 0.01
        return super().step(closure)


def test_alternation_moves_one_role_at_a_time() -> None:
    class Two(ToySummary):
        def __init__(self, points: Tensor, labels: Tensor) -> None:
            super().__init__(points, labels)
            self.shift = nn.Parameter(torch.zeros(points.shape[1]))

        def forward(self, rng: torch.Generator | None = None) -> Any:
            batch = super().forward(rng)
            return type(batch)(batch.inputs + self.shift, batch.targets, batch.groups)

        def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
            return {"points": [self.points], "shift": [self.shift]}

    modality = ToyModality()
    start = summary_of(modality)
    summary = Two(start.points.detach(), start.get_buffer("labels"))
    moved: list[str] = []
    last = {name: value.clone() for name, value in summary.state_dict().items()}

    def watch(event: Event) -> None:
        if event.kind == "step":
            now = event.summary.state_dict()
            moved.append("".join(name[0] for name in ("points", "shift") if not torch.equal(now[name], last[name])))
            last.update({name: value.clone() for name, value in now.items()})

    distill(
        modality,
        summary,
        DistributionMatching(),
        steps=8,
        lr={"points": 0.1, "shift": 0.01},
        alternate={"shift": 1, "points": 3},
        validate_every=0,
        callbacks=[watch],
        progress=False,
    )
    assert moved == ["s", "p", "p", "p"] * 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 10),
        ("halving", [1.0] * 6 + [0.5] * 2 + [0.25, 0.125]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]),
    ],
)
def test_rates_follow_the_schedule(schedule: str, expected: list[float]) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    outer = OuterOptimizer(
        {"points": [weight]},
        optimizer="sgd",
        lr=1.0,
        momentum=None,
        schedule=schedule,
        alternate=None,
        clip=None,
        steps=10,
    )
    moved = []
    for step in range(10):
        before = float(weight.detach())
        outer.prepare(step)
        weight.grad = -torch.ones(1)
        outer.step(step)
        moved.append(float(weight.detach()) - before)
    assert moved == pytest.approx(expected, rel=1e-4)


def test_bad_arguments_are_refused_before_work() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"optimizer": "adan"}, "Did you mean 'adam'"),
        ({"lr": {"pixels": 0.1}}, "Unknown parameter group in lr 'pixels'"),
        ({"lr": float("nan")}, "lr of points must be a number of at least 0, got nan"),
        ({"schedule": "cos"}, "Did you mean 'cosine'"),
        ({"alternate": {"adjacency": 3}}, "Unknown parameter group in alternate"),
        ({"validator": "mlpp"}, "Did you mean 'mlp'"),
        ({"select_on": "test"}, "select_on must be 'summary' or 'export'"),
        ({"validate_every": -1}, "validate_every must be None, 0 or a positive integer"),
        ({"clip": 0.0}, "clip must be a positive number"),
        ({"lr": "fast"}, "lr of points must be a number of at least 0, got 'fast'"),
        ({"momentum": 2}, r"momentum must be a number in \[0, 1\), got 2"),
        ({"callbacks": [5]}, r"callbacks must be functions of an Event, got \[5\]"),
        ({"checkpoint_dir": 5}, "checkpoint_dir must be the path of a folder, or None, got 5"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            run(DistributionMatching(), **options)


def test_numbers_may_be_numpys() -> None:
    expected = run(DistributionMatching(), lr=0.5, clip=2.0, steps=2)
    found = run(DistributionMatching(), lr=np.float32(0.5), clip=np.int64(2), steps=2)
    assert torch.equal(found.summary.points, expected.summary.points)


@pytest.mark.parametrize("name", ["modality", "summary", "objective"])
def test_what_is_not_one_is_refused(name: str) -> None:
    modality = ToyModality()
    given: dict[str, Any] = {
        "modality": modality,
        "summary": summary_of(modality),
        "objective": DistributionMatching(),
        name: KernelRidge,
    }
    with pytest.raises(InputError, match=f"{name} must be a {name.title()}, ready to use, got <class"):
        distill(*given.values(), steps=1, progress=False)


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(DistributionMatching(), checkpoint_dir=tmp_path, seed=1)
    with pytest.raises(InputError, match="seed was 1 and is now 2"):
        run(DistributionMatching(), checkpoint_dir=tmp_path, seed=2)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole = run(DistributionMatching(), checkpoint_dir=tmp_path, checkpoint_every=4)
    newest = tmp_path / "step-00000012" / "data.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    steps: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == "step":
            steps.append(event.step)

    again = run(DistributionMatching(), checkpoint_dir=tmp_path, checkpoint_every=4, callbacks=[watch])
    assert steps == [9, 10, 11, 12]
    assert torch.equal(whole.summary.points, again.summary.points)


def test_metrics_log_survives_a_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 7:
            raise Stop

    path = tmp_path / "metrics.jsonl"
    options: dict[str, Any] = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 5, "validate_every": 4}
    with pytest.raises(Stop):
        run(DistributionMatching(), callbacks=[MetricsLog(path), stop], **options)
    with path.open("a") as file:
        file.write('{"kind": "st')  # cut off by the crash
    run(DistributionMatching(), callbacks=[MetricsLog(path)], **options)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "validation"] == [0, 4, 8, 12]


_CHILD = """
import sys
from datastill.checks.toy import ToyModality
from datastill.loop import distill
from datastill.objectives.gradient_matching import GradientMatching
from datastill.rng import generator
import torch
torch.set_num_threads(1)
modality = ToyModality()
summary = modality.summary([2, 2, 2], rng=generator("child"))
print("ready", flush=True)
distill(modality, summary, GradientMatching(outer_loops=4, inner_epochs=2, inner_optimizer="adam"), steps=60, seed=9,
        validate_every=10, checkpoint_dir=sys.argv[1], checkpoint_every=1, progress=False)
"""


def child_run(folder: Path, kill_after: float | None) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder)], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait()


def test_kill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    """SIGKILL again and again at random moments while every step is saved; the end is the uninterrupted one's, bit for bit."""
    assert child_run(tmp_path / "whole", None) == 0
    moments = random.Random(0)
    kills = 0
    for _ in range(40):
        code = child_run(tmp_path / "killed", moments.uniform(0.01, 0.4))
        kills += code != 0
        if code == 0 or kills >= 5:
            break
    assert kills >= 1
    assert child_run(tmp_path / "killed", None) == 0
    last = "step-00000060/data.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "killed" / last).read_bytes()


def test_step_of_a_small_run_is_quick() -> None:
    """The loop's own cost (checks, copies, records) is small beside even a toy step."""

    class Free(Objective):
        name = "free"

        def loss(self, rng: torch.Generator) -> Tensor:
            return self.summary(rng).inputs.square().sum()

    began = time.perf_counter()
    run(Free(), steps=300, validate_every=0)
    assert time.perf_counter() - began < 3.0


def test_penalty_of_the_summary_is_added() -> None:
    class Penalised(ToySummary):
        def penalty(self) -> Tensor:
            return 7.0 + 0 * self.points.sum()

    modality = ToyModality()
    start = summary_of(modality)
    options: dict[str, Any] = {"steps": 1, "validate_every": 0, "progress": False}
    plain = distill(modality, start, DistributionMatching(), **options)
    fresh = summary_of(modality)
    penalised: Summary = Penalised(fresh.points.detach(), fresh.get_buffer("labels"))
    other = distill(modality, penalised, DistributionMatching(), **options)
    assert other.history[0]["loss"] == pytest.approx(plain.history[0]["loss"] + 7.0, rel=1e-5)


def test_device_is_where_the_modality_is() -> None:
    modality: Modality = ToyModality()
    result = distill(
        modality,
        modality.summary([1, 1, 1], rng=generator(0)),
        DistributionMatching(),
        steps=1,
        device="cpu",
        progress=False,
    )
    assert all(value.device.type == "cpu" for value in result.summary.state_dict().values())


def test_runs_in_threads_are_what_they_are_alone() -> None:
    def go(seed: int) -> Tensor:
        objective = GradientMatching(learner="mlp", outer_loops=3, inner_epochs=1, real_size=8)
        points: Tensor = run(objective, seed=seed, steps=8).summary.points
        return points.detach().clone()

    alone = [go(seed) for seed in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(go, range(4)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together))
    assert torch.equal(torch.get_rng_state(), before)
