"""`evaluate`: train fresh learners on a summary, and beside it on random subsets of equal size and on the full data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from datastill.artifact import Artifact
from datastill.backbones.batch import Batch
from datastill.backbones.training import Protocol
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.loop import Result
from datastill.modalities.base import Modality, Size, Summary
from datastill.objectives.coresets import COMPOSED, METHODS, VECTORS, check_space, coreset
from datastill.rng import derive_seed, generator, isolated
from datastill.rules import Rules


@dataclass(frozen=True)
class Row:
    """One line of an evaluation.

    Attributes:
        data: "summary" (its continuous form), "exported", "random subset" (or that of another method) or "full data".
        learner: what was trained on it.
        scores: for each metric the score of each seed, in [0, 1].
        points: of the training data.
        nbytes: stored bytes of the training data.
        seconds: of all trainings together.
        protocol: the published protocol of the trainings; None is the library's own, or one given as `Protocol`.
    """

    data: str
    learner: str
    scores: dict[str, list[float]]
    points: int
    nbytes: int
    seconds: float
    protocol: str | None = None

    @property
    def trained(self) -> str:
        """The learner, and the published protocol if there is one."""
        return self.learner if self.protocol is None else f"{self.learner} ({self.protocol})"

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.scores[metric])

    def std(self, metric: str) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        values = self.scores[metric]
        return statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Evaluation:
    """All rows of an evaluation, its main metric, and the rules by which learners were trained.

    Attributes:
        metric: that summaries are compared by.
        rows: what was trained on, and its scores.
        rules: each published protocol of the rows as plain values, with what differs from the paper.
    """

    metric: str
    rows: list[Row]
    rules: dict[str, Any] = field(default_factory=dict)

    def row(self, data: str, learner: str | None = None) -> Row:
        """The first row of that data (and learner)."""
        for row in self.rows:
            if row.data == data and learner in (None, row.learner):
                return row
        raise InputError(f"No row {data!r}{'' if learner is None else f' with {learner!r}'} in this evaluation.")

    def gap_closed(self, data: str = "summary", learner: str | None = None, metric: str | None = None) -> float:
        """(score - random) / (full - random): 0 as good as a random subset, 1 as good as the full data."""
        metric = metric or self.metric
        random, full = (self.row(name, learner).mean(metric) for name in ("random subset", "full data"))
        return (self.row(data, learner).mean(metric) - random) / (full - random)

    def table(self) -> str:
        """The rows as a text table, scores in percent."""
        metrics = list(self.rows[0].scores)
        head = ["data", "learner", *metrics, "points", "bytes", "seconds"]
        body = [
            [
                row.data,
                row.trained,
                *(f"{100 * row.mean(metric):.2f} ± {100 * row.std(metric):.2f}" for metric in metrics),
                f"{row.points:,}",
                f"{row.nbytes:,}",
                f"{row.seconds:.1f}",
            ]
            for row in self.rows
        ]
        return format_table(head, body)

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values, with mean and std of each metric beside the scores."""
        rows = []
        for row in self.rows:
            summary = {name: {"mean": row.mean(name), "std": row.std(name)} for name in row.scores}
            rows.append({**asdict(row), "summary": summary})
        return {"metric": self.metric, "rows": rows, "rules": self.rules}


def evaluate(
    data: Result | Artifact | Summary | Any,
    modality: Modality | None = None,
    *,
    learners: Sequence[str] | None = None,
    seeds: int = 5,
    baselines: bool | Sequence[str] = True,
    baseline_space: str = VECTORS,
    protocol: str | Protocol | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Score a summary on the test split by training fresh learners on it.

    Beside it stand random subsets of equal size (another one for each seed) and the full data, trained the same way; and
    coresets, if asked for.

    Args:
        data: a `Result`, an `Artifact`, a `Summary`, or a native dataset such as `export` gives.
        modality: the target dataset; may be left out for a `Result`.
        learners: learners or kernels to train, for transfer between architectures; None is the protocol's, or the
            modality's evaluator.
        seeds: trainings of each, at least 1; a kernel, which draws nothing at random, is fitted to the same points once.
        baselines: whether random subsets and the full data are scored too; or the methods of `coreset` ("random", "herding",
            "k-center", "kmeans-real", "forgetting", "correct", "confident", "rded") whose subsets are scored beside the full
            data. The full data are left out for a kernel whose Gram matrix they would be too many for
            (`Modality.compares_full`).
        baseline_space: of the features by which these methods choose, or the learner that some of them train: the `space` of
            `coreset`. Recipes of images, such as "herding", choose in that of a trained "convnet".
        protocol: how to train. A name of `modality.published`, such as "dsa" of images, follows a paper's rules, but never
            selects on test data, and says nothing of kernels if it is of networks, or the other way round; a `Protocol` holds
            for every learner; None is the modality's own for each learner.
        seed: of everything random.
        progress: whether a progress bar is shown on stderr.

    Raises:
        InputError: for an unknown learner, baseline or protocol, for a learner that the protocol says nothing of, if `modality`
            is needed and missing, or if the protocol needs a learning rate that was learned with the summary and `data` brings
            none.
    """
    check_count("seeds", seeds)
    learned: Mapping[str, Any] = {}
    if isinstance(data, Result):
        learned = data.learned
        modality, data = modality or data.modality, data.summary
    elif isinstance(data, Artifact):
        learned = data.learned
        data = data.dataset
    if modality is None:
        raise InputError("evaluate() needs modality, the target dataset, unless it is given a Result.")
    target = modality
    rules = Rules.of(protocol, target, learned)
    names = _listed(learners) or [rules.learner]
    for name in names:
        rules.check_learner(name)

    methods = baseline_methods(baselines)
    check_space(target, baseline_space)
    target.check_split("test")

    # Each entry: what it is, its batch for a seed, its size, and whether seeds change it.
    sources: list[tuple[str, Callable[[int], Batch], Size, bool]] = []
    if isinstance(data, Summary):
        with torch.no_grad():
            continuous = data().detach().to(target.device)
        groups = continuous.groups
        if not data.exact_export:
            sources.append(("summary", lambda _: continuous, Size(data.num_points, data.nbytes), False))
        data = data.export()
    else:
        groups = target.read(data).groups
    exported = target.read(data)
    label = "exported" if sources else "summary"
    sources.append((label, lambda _: exported, target.size(data), False))
    counts = torch.bincount(groups.cpu(), minlength=target.num_groups).tolist()
    for method in methods:
        subsets = _Subsets(target, counts, method, baseline_space, seed)
        sources.append((f"{method} subset", subsets.batch, target.size(subsets(0)), subsets.vary))
    if methods:
        sources.append(("full data", lambda _: target.full(), target.full_size(), False))

    # A kernel regression on given points comes out the same every time.
    todo = [
        (name, what, batch_of, size, seeds if varies or not target.is_kernel(name) else 1)
        for name in names
        for what, batch_of, size, varies in sources
        if what != "full data" or not target.is_kernel(name) or target.compares_full(name)
    ]
    rows = []
    with tqdm(total=sum(times for *_, times in todo), desc="evaluate", disable=not progress, leave=False) as bar:
        for name, what, batch_of, size, times in todo:
            began = time.perf_counter()
            scores: dict[str, list[float]] = {}
            for number in range(times):
                bar.set_postfix_str(f"{name} on {what}", refresh=False)
                with isolated(derive_seed(seed, "evaluate", number)):
                    predictor = rules.fit(
                        batch_of(number),
                        name,
                        key=(seed, "evaluate", number),
                        real=what not in ("summary", "exported"),
                        full=what == "full data",
                    )
                    found = target.score(predictor, "test")
                for metric, value in found.items():
                    scores.setdefault(metric, []).append(value)
                bar.update()
            seconds = time.perf_counter() - began
            rows.append(Row(what, name, scores, size.points, size.nbytes, seconds, rules.name))
    return Evaluation(target.metric, rows, rules.stated())


def _listed(learners: Sequence[str] | None) -> list[str]:
    """The names in the argument `learners` of `evaluate`; an `InputError` for anything but a list of strings."""
    require(not isinstance(learners, str), f"learners must be a list of names, such as [{learners!r}].")
    named = learners is None or (isinstance(learners, Sequence) and all(isinstance(name, str) for name in learners))
    require(named, f'learners must be a list of names, such as ["convnet"], or None, got {learners!r}.')
    return list(learners or ())


def baseline_methods(baselines: bool | Sequence[str]) -> tuple[str, ...]:
    """The methods of `coreset` that the argument `baselines` of `evaluate` stands for.

    Raises:
        InputError: for a name that is not one of them.
    """
    if isinstance(baselines, bool):
        return ("random",) if baselines else ()
    require(not isinstance(baselines, str), f"baselines must be a list of names, such as [{baselines!r}].")
    for method in baselines:
        if method not in METHODS and method not in COMPOSED:
            raise unknown_name("baseline", method, (*METHODS, *COMPOSED))
    return tuple(baselines)


class _Subsets:
    """Real points of the same counts as a summary's, another draw for each seed unless that takes a training."""

    def __init__(self, modality: Modality, counts: Sequence[int], method: str, space: str, seed: int) -> None:
        self.modality, self.counts, self.method, self.space, self.seed = modality, counts, method, space, seed
        self.drawn: dict[int, Any] = {}

    @property
    def vary(self) -> bool:
        """Whether seeds draw other points."""
        return self.method in ("random", "kmeans-real")

    def batch(self, number: int) -> Batch:
        return self.modality.read(self(number))

    def __call__(self, number: int) -> Any:
        if self.method == "random":
            return self.modality.subset(self.counts, rng=generator(self.seed, "subset", number))
        if not self.vary:
            number = 0
        if number not in self.drawn:
            seed = derive_seed(self.seed, "subset", number)
            self.drawn[number] = coreset(self.modality, self.counts, method=self.method, space=self.space, seed=seed)
        return self.drawn[number]


def format_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns padded to equal width, the first two to the left and the others to the right."""
    rows = [head, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *(line(row) for row in body)])
