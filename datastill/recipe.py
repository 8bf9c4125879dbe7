"""`Recipe`: a published or house method as plain data: summary x objective x learner x hyper-parameters, no code of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datastill import registry
from datastill.errors import InputError, unknown_name
from datastill.objectives.base import Objective
from datastill.outer import Schedule


@dataclass(frozen=True)
class Recipe:
    """One way to distil.

    Attributes:
        name: by which `recipes` knows it.
        title: what it is, in a few words.
        paper: where it was published; "" for a recipe of this library.
        modalities: the kinds of data it is for; the first is the one it was made for.
        objective: name of the objective; None optimises nothing: the summary is real points, chosen by `summary["init"]`.
        settings: the objective's hyper-parameters.
        target: options of the modality that the method needs, such as "unlabelled" of graphs.
        summary: options of `modality.summary`, such as "init".
        steps: outer steps.
        optimizer: "adam", "adamw", "adabelief", "lamb" or "sgd".
        lr: outer learning rate, or one for each parameter group.
        momentum: of the outer optimiser; of "adam" the first beta, or both.
        schedule: of the outer learning rate.
        alternate: parameter groups that take turns.
        clip: largest gradient norm.
        validate_every: steps between validations; None is a tenth of the run.
        validator: learner or kernel that validates; None is the protocol's, or the modality's evaluator.
        validation_protocol: the published protocol by which it is trained; None is the modality's own way.
        validation_seeds: trainings a validation.
        select_on: "summary" or "export".
        overrides: other values of any of these fields, by kind of data.
        published: the paper's scores in percent by dataset and points a class (or other budget), such as
            `{"MNIST": {1: 89.7}}`.
        protocol: the modality's published protocol that they were scored by, a name that `evaluate` takes.
    """

    name: str
    title: str
    paper: str
    modalities: tuple[str, ...]
    objective: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 200
    optimizer: str = "adam"
    lr: float | Mapping[str, float] = 0.01
    momentum: float | tuple[float, float] | None = None
    schedule: Schedule = "constant"
    alternate: Mapping[str, int] | None = None
    clip: float | None = None
    validate_every: int | None = None
    validator: str | None = None
    validation_protocol: str | None = None
    validation_seeds: int = 1
    select_on: Literal["summary", "export"] = "summary"
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    protocol: str | None = None

    def on(self, kind: str) -> Recipe:
        """This recipe as it is for `kind` of data.

        Raises:
            InputError: if the recipe is not for that kind.
        """
        if kind not in self.modalities:
            raise InputError(
                f"Recipe {self.name!r} is for {', '.join(self.modalities)} data, not for {kind}; "
                "`datastill recipes` lists the others."
            )
        changed = dict(self.overrides.get(kind, {}))
        for merged in (
            "settings",
            "target",
            "summary",
        ):  # an override changes the options it names and leaves the others
            if merged in changed:
                changed[merged] = {**getattr(self, merged), **changed[merged]}
        return dataclasses.replace(self, **changed, overrides={})

    def make_objective(self) -> Objective:
        """The objective with this recipe's settings; there must be one."""
        assert self.objective is not None
        made: Objective = registry.find("objectives", self.objective)(**self.settings)
        return made

    def loop_options(self) -> dict[str, Any]:
        """The arguments of `distill` that the recipe decides."""
        outer = ("steps", "optimizer", "lr", "momentum", "schedule", "alternate", "clip")
        selection = ("validate_every", "validator", "validation_protocol", "validation_seeds", "select_on")
        return {name: getattr(self, name) for name in outer + selection}


class RecipeBook(Mapping[str, Recipe]):
    """All recipes by name. An unknown name raises `InputError` with the nearest one suggested."""

    def __init__(self, entries: list[Recipe], defaults: Mapping[str, str]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self.defaults = dict(defaults)

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._entries:
            raise unknown_name("recipe", name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def default(self, kind: str) -> Recipe:
        """The recipe that `condense_*` uses for `kind` of data when none is named."""
        return self[self.defaults[kind]].on(kind)

    def table(self) -> str:
        """All recipes as a text table, with published scores at 1, 10 and 50 images a class."""
        datasets, budgets = ("MNIST", "CIFAR-10"), (1, 10, 50)
        head = ("recipe", "for", "objective", "summary", "learner", *(f"{name} 1/10/50" for name in datasets), "paper")
        rows = [head]
        most = len(self.defaults)  # every kind of data has a default
        for recipe in self.values():
            figures = []
            for dataset in datasets:
                scores = recipe.published.get(dataset, {})
                figures.append(
                    " / ".join(f"{scores[n]:.1f}" if n in scores else "-" for n in budgets) if scores else ""
                )
            options = ", ".join(f"{name}={value}" for name, value in recipe.summary.items() if isinstance(value, str))
            learner = str(recipe.settings.get("kernel") or recipe.settings.get("learner") or "")
            kinds = "all" if len(recipe.modalities) == most else ", ".join(recipe.modalities)
            about = recipe.paper or recipe.title
            rows.append((recipe.name, kinds, recipe.objective or "-", options, learner, *figures, about))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
