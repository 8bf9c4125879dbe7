"""`distill`: the one outer loop, for every objective and every modality."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from datastill import processes
from datastill.backbones.training import Protocol
from datastill.checkpoint import Checkpoints
from datastill.errors import DivergenceError, check_count, check_device, require
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import Objective
from datastill.outer import OptimizerFactory, OuterOptimizer, Rates, Schedule
from datastill.rng import derive_seed, generator, isolated
from datastill.validation import Validation


@dataclass(frozen=True)
class Event:
    """What a callback is told.

    Attributes:
        kind: "step", "validation" or "end".
        step: finished steps.
        steps: of the whole run.
        record: what is noted of this step: "step", "seconds", and "loss" or "score".
        summary: the summary as it is now; not to be changed.
    """

    kind: Literal["step", "validation", "end"]
    step: int
    steps: int
    record: Mapping[str, Any]
    summary: Summary


Callback: TypeAlias = Callable[[Event], None]


@dataclass
class Result:
    """What `distill` gives back.

    Attributes:
        summary: with the selected parameters, on the CPU.
        modality: the target dataset.
        objective: the objective, as it stands after the last step; None for a coreset, which is not optimised.
        seed: of the run.
        history: a dict for each step ("step", "loss", "seconds") and each validation ("step", "score", "seconds"). With a
            limit in bytes these have the "bytes" that the summary took, too; without validations they have no "score".
        best_step: after how many steps the selected parameters stood.
        best_score: their validation score; None if there was no validation.
        seconds: time spent, over all parts of a resumed run.
        recipe: the recipe's name, if one was used.
        learned: what the objective had learned beside the selected parameters, such as an inner learning rate; and what is to be
            known of the run: the "scope" of the target dataset, the bytes of "memory" that it was expected to take.
    """

    summary: Summary
    modality: Modality
    objective: Objective | None
    seed: int
    history: list[dict[str, Any]]
    best_step: int
    best_score: float | None
    seconds: float
    recipe: str | None = None
    learned: dict[str, Any] = field(default_factory=dict)

    def export(self) -> Any:
        """The summary as the native dataset of its modality."""
        return self.summary.export()


def distill(
    modality: Modality,
    summary: Summary,
    objective: Objective,
    *,
    steps: int,
    optimizer: str | OptimizerFactory = "adam",
    lr: Rates = 1e-2,
    momentum: float | tuple[float, float] | None = None,
    schedule: Schedule = "constant",
    alternate: Mapping[str, int] | None = None,
    clip: float | None = None,
    seed: int = 0,
    validate_every: int | None = None,
    validator: str | None = None,
    validation_protocol: str | Protocol | None = None,
    validation_seeds: int = 1,
    select_on: Literal["summary", "export"] = "summary",
    nbytes: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    identity: Mapping[str, str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Result:
    """Optimise `summary` (in place) so that it stands for the modality's target dataset.

    The summary that is best on the validation split is kept, the initial one included. Everything random follows from `seed`;
    the caller's global random state is untouched. With `checkpoint_dir` a run that was killed goes on where it was when called
    again with the same arguments, and ends bit-for-bit as if it had not been (on a GPU up to the rounding of sums whose order is
    free there).

    Under `torchrun` all processes make the same call; real batches are shared out and the main process writes, see
    `datastill.processes`.

    Args:
        modality: the target dataset.
        summary: what is optimised; it holds the selected parameters afterwards, on the CPU.
        objective: the outer loss.
        steps: outer steps, at least 1.
        optimizer: "adam", "adamw", "adabelief", "lamb", "sgd", or a function of PyTorch parameter groups.
        lr: outer learning rate, or one for each role of `summary.parameter_groups()` and `objective.learnables()`.
        momentum: of "sgd" (default 0), or the first beta of the others, or both.
        schedule: of the learning rate: "constant", "cosine", or "halving" after 60, 80 and 90 % of the steps.
        alternate: roles that take turns, with the steps of each turn, as in GCond: `{"adjacency": 10, "features": 40}`.
        clip: largest gradient norm of a role.
        seed: of everything random in the run.
        validate_every: steps between validations; None is a tenth of the run, 0 is never (the last summary is kept).
        validator: learner or kernel that is trained for validation; None takes the protocol's, or the modality's evaluator.
        validation_protocol: how it is trained, as the `protocol` of `evaluate`; None is the modality's own way. Where summaries
            will be trained on in another way than that, select by it: which step is best can depend on the training.
        validation_seeds: trainings a validation, averaged; the same seeds at every validation.
        select_on: whether validation trains on the summary itself or on what `export` makes of it.
        nbytes: most bytes that the export of the selected summary may take; None is no limit. A summary that takes more is
            validated and noted, but not selected; the initial one has to fit. Without validations the size is looked at every
            tenth of the run, and the last summary that fits is kept.
        callbacks: called with an `Event` after each step, each validation, and at the end.
        checkpoint_dir: where checkpoints are kept, and found when the run is resumed.
        checkpoint_every: steps between checkpoints; None is a tenth of the run.
        identity: what else makes the run this run, such as how the summary began: a checkpoint of another one is refused, as is
            one of other settings.
        device: where to compute; None is where the modality is.
        progress: whether a progress bar is shown on stderr.

    Raises:
        InputError: for an argument that is not allowed, or an initial summary of more than `nbytes`, before work starts.
        DivergenceError: if the loss, a gradient or a parameter is not finite; the summary keeps its last good values.
    """
    for name, value, kind in (
        ("modality", modality, Modality),
        ("summary", summary, Summary),
        ("objective", objective, Objective),
    ):
        require(isinstance(value, kind), f"{name} must be a {kind.__name__}, ready to use, got {value!r}.")
    require(all(map(callable, callbacks)), f"callbacks must be functions of an Event, got {callbacks!r}.")
    require(
        checkpoint_dir is None or isinstance(checkpoint_dir, str | Path),
        f"checkpoint_dir must be the path of a folder, or None, got {checkpoint_dir!r}.",
    )
    check_count("steps", steps)
    check_count("seed", seed, least=0)
    if checkpoint_every is not None:
        check_count("checkpoint_every", checkpoint_every)
    check_device(device)
    require(
        validate_every is None or (isinstance(validate_every, int) and validate_every >= 0),
        f"validate_every must be None, 0 or a positive integer, got {validate_every!r}.",
    )
    validation = Validation(modality, validator, validation_protocol, validation_seeds, select_on)
    validation.check()
    if validate_every != 0:
        modality.check_split("validation")
    if nbytes is not None:
        check_count("nbytes", nbytes)
    every = max(1, steps // 10) if validate_every is None else validate_every
    modality.to(processes.local_device(device))
    summary.to(modality.device)
    processes.copy_main([*summary.state_dict().values()])  # points chosen by trained learners may differ by device
    if nbytes is not None:
        _check_fits(nbytes, exported_bytes(modality, summary))
    summary.plan(steps)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with (
        isolated(derive_seed(seed, "start")),
        processes.main_first(),
    ):  # what it prepares in the folder the others find there
        objective.start(modality, summary, seed=derive_seed(seed, "objective"), workdir=folder)
    if validate_every != 0:
        validation.check(objective.learned())
    groups = {**summary.parameter_groups(), **{name: [value] for name, value in objective.learnables().items()}}
    outer = OuterOptimizer(
        groups,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        schedule=schedule,
        alternate=alternate,
        clip=clip,
        steps=steps,
    )
    run = _Run(modality, summary, objective, outer, seed, steps, validation, nbytes, callbacks)
    checkpoints = None
    if folder is not None:
        whole = {
            "objective": objective.name,
            "settings": repr(sorted(objective.config().items())),
            "summary": {name: list(value.shape) for name, value in summary.state_dict().items()},
            "target": modality.fingerprint(),
            **modality.identity(),
            "optimizer": repr((type(outer.optimizer).__name__, outer.rates, momentum, schedule, outer.alternate, clip)),
            "validation": repr((every, *validation.identity())),
            "seed": seed,
            "steps": steps,
            **({} if nbytes is None else {"nbytes": nbytes}),
            **(identity or {}),
        }
        checkpoints = Checkpoints(folder, whole)
        state = checkpoints.newest()
        if state is not None:
            run.load_state_dict(state)
    run.go(every, checkpoints, checkpoint_every or max(1, steps // 10), progress)
    summary.to("cpu")
    return Result(
        summary,
        modality,
        objective,
        seed,
        run.history,
        run.best_step,
        run.best_score,
        run.seconds,
        learned=run.learned,
    )


def exported_bytes(modality: Modality, summary: Summary) -> int:
    """Bytes that the export of `summary` takes; under torchrun, what the main process says."""
    return int(processes.agree(modality.size(summary.export()).nbytes))


def _check_fits(nbytes: int, takes: int) -> None:
    require(
        takes <= nbytes,
        f"The summary takes {takes:,} bytes before anything is optimised, more than nbytes={nbytes:,}: ask for fewer points, for "
        "numbers of fewer bits, or for more bytes.",
    )


class _Run:
    """The state of one run, and its step."""

    def __init__(
        self,
        modality: Modality,
        summary: Summary,
        objective: Objective,
        outer: OuterOptimizer,
        seed: int,
        steps: int,
        validation: Validation,
        nbytes: int | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.modality, self.summary, self.objective, self.outer = modality, summary, objective, outer
        self.seed, self.steps, self.callbacks = seed, steps, callbacks
        self.validation, self.nbytes = validation, nbytes
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best_step = 0
        self.best_score: float | None = None
        self.best: dict[str, Tensor] | None = None
        self.learned: dict[str, Any] = {}

    def go(self, every: int, checkpoints: Checkpoints | None, checkpoint_every: int, progress: bool) -> None:
        began = time.perf_counter() - self.seconds
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc=self.objective.name,
            disable=not (progress and processes.is_main()),
            leave=False,
        )
        shown: dict[str, str] = {}
        weigh = max(1, self.steps // 10) if self.nbytes is not None and not every else 0
        with bar, self.outer.taking_turns():
            if every and self.step == 0 and self.best_score is None:
                self._validate(began)
            if weigh and self.best is None:
                self._weigh(began)
            while self.step < self.steps:
                loss = self._one_step(began)
                shown["loss"] = f"{loss:.4g}"
                if every and (self.step % every == 0 or self.step == self.steps):
                    shown[self.modality.metric] = f"{self._validate(began):.4f}"
                if weigh and (self.step % weigh == 0 or self.step == self.steps):
                    self._weigh(began)
                bar.set_postfix(shown, refresh=False)
                bar.update()
                self.seconds = time.perf_counter() - began
                due = self.step % checkpoint_every == 0 or self.step == self.steps
                if checkpoints is not None and due and processes.is_main():
                    checkpoints.save(self.step, self.state_dict())
        if self.best is not None:
            self.summary.load_state_dict(self.best)
        else:
            self.objective.settle()
            self.best_step, self.learned = self.step, self.objective.learned()
        self._tell("end", {"step": self.step, "seconds": self.seconds})

    def _one_step(self, began: float) -> float:
        self.outer.prepare(self.step)
        with isolated(derive_seed(self.seed, "global", self.step)):
            try:
                loss = self.objective.loss(generator(self.seed, "loss", self.step))
                penalty = self.summary.penalty()
                loss = loss if penalty is None else loss + penalty
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise self._divergence(f"a matrix that should be positive definite ({error})") from error
            value = float(processes.average([loss.detach()])[0])
            if not math.isfinite(value):
                raise self._divergence("loss")
            if loss.requires_grad or not self.outer.alternate:  # it may not depend on the role whose turn it is
                loss.backward()
            processes.average_gradients(self.outer.parameters)
            self._check_gradients()
            moving = [parameter for parameter in self.outer.parameters if parameter.requires_grad]
            before = [parameter.detach().clone() for parameter in moving]
            self.outer.step(self.step)
            self.summary.project_()
            if not all(map(_finite, moving)):
                with torch.no_grad():
                    for parameter, good in zip(moving, before):
                        parameter.copy_(good)
                raise self._divergence("parameters")
            self.objective.after_step(generator(self.seed, "after", self.step))
        self.step += 1
        self._note("step", {"step": self.step, "loss": value}, began)
        return value

    def _check_gradients(self) -> None:
        for name, parameters in self.outer.groups.items():
            for parameter in parameters:
                if parameter.grad is not None and not _finite(parameter.grad):
                    raise self._divergence(f"gradient of {name}")

    def _divergence(self, cause: str) -> DivergenceError:
        return DivergenceError(
            f"Step {self.step} of {self.objective.name} met NaN or infinity in: {cause}. The summary holds its last good "
            "values; try a smaller lr, or a larger ridge or smaller inner_lr where the objective has one.",
            step=self.step,
            cause=cause,
        )

    def _validate(self, began: float) -> float:
        self.objective.settle()
        takes = self._bytes()
        score = self.validation.score(self.summary, seed=self.seed, learned=self.objective.learned())
        if self._fits(takes) and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self._keep()
        self._note("validation", {"step": self.step, "score": score, **takes}, began)
        return score

    def _weigh(self, began: float) -> None:
        """Keep the summary, in place of a validation, if it is not too large."""
        self.objective.settle()
        takes = self._bytes()
        if self._fits(takes):
            self._keep()
        self.history.append({"step": self.step, **takes, "seconds": round(time.perf_counter() - began, 3)})

    def _bytes(self) -> dict[str, int]:
        """The record of what the summary takes now, empty if nobody asked."""
        if self.nbytes is None:
            return {}
        takes = exported_bytes(self.modality, self.summary)
        if self.step == 0:  # the objective may have set its labels
            _check_fits(self.nbytes, takes)
        return {"bytes": takes}

    def _fits(self, takes: Mapping[str, int]) -> bool:
        return self.nbytes is None or takes["bytes"] <= self.nbytes

    def _keep(self) -> None:
        self.best_step = self.step
        self.best = copy.deepcopy(self.summary.state_dict())
        self.learned = self.objective.learned()

    def _note(self, kind: Literal["step", "validation"], record: dict[str, Any], began: float) -> None:
        record["seconds"] = round(time.perf_counter() - began, 3)
        self.history.append(record)
        self._tell(kind, record)

    def _tell(self, kind: Literal["step", "validation", "end"], record: Mapping[str, Any]) -> None:
        event = Event(kind, self.step, self.steps, record, self.summary)
        for callback in self.callbacks:
            callback(event)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "summary": dict(self.summary.state_dict()),
            "optimizer": self.outer.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "learnables": {name: value.detach() for name, value in self.objective.learnables().items()},
            "best": {"step": self.best_step, "score": self.best_score, "summary": self.best, "learned": self.learned},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.summary.load_state_dict(state["summary"])
        self.objective.load_state_dict(state["objective"])
        with torch.no_grad():
            for name, value in self.objective.learnables().items():
                value.copy_(state["learnables"][name])
        self.outer.optimizer.load_state_dict(state["optimizer"])
        best = state["best"]
        self.best_step, self.best_score, self.best = best["step"], best["score"], best["summary"]
        self.learned = best["learned"]


def _finite(values: Tensor) -> bool:
    """Whether all numbers are finite: one pass, for NaN is both the least and the largest."""
    return values.numel() == 0 or all(bool(bound.isfinite()) for bound in values.detach().aminmax())
