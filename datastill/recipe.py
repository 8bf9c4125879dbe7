"""`Recipe`: a published or house method as plain data: summary x objective x learner x hyper-parameters, no code of its own."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from datastill import registry
from datastill.errors import InputError, unknown_name
from datastill.objectives.base import Objective
from datastill.outer import Schedule

_KINDS_WIDTH, _SUMMARY_WIDTH, _ABOUT_WIDTH, _PAGE_WIDTH = 20, 32, 48, 100  # characters of cells and of a page


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
        protocol: the modality's published protocol that they were scored by, a name that `evaluate` takes; or one for each
            dataset of `published`.
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
    protocol: str | Mapping[str, str] | None = None

    def scored_by(self, dataset: str) -> str | None:
        """The protocol of the scores on one dataset of `published`; None if there is none for it."""
        return self.protocol.get(dataset) if isinstance(self.protocol, Mapping) else self.protocol

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

    def lasting(self, steps: int) -> Recipe:
        """This recipe with so many steps; settings that are numbers of steps, as its objective says, are so in proportion."""
        counted = self.make_objective().counted_in_steps
        scaled = {
            name: max(1, round(value * steps / self.steps))
            for name, value in self.settings.items()
            if name in counted and value
        }
        return dataclasses.replace(self, steps=steps, settings={**self.settings, **scaled})

    def make_objective(self) -> Objective:
        """The objective with this recipe's settings; there must be one."""
        assert self.objective is not None
        made: Objective = registry.find("objectives", self.objective)(**self.settings)
        return made

    def learner(self, kind: str) -> str:
        """The network that the objective draws on `kind` of data, or else its kernel; "" where there is no objective.

        Raises:
            InputError: if the recipe is not for that kind.
        """
        recipe = self.on(kind)
        if recipe.objective is None:
            return ""
        chosen = recipe.make_objective().config()
        kernel = chosen.get("kernel", "features")
        if kernel != "features":  # which are those of finite networks
            return str(kernel)
        if "learner" not in chosen:  # an objective of another package may do with neither
            return ""
        return str(chosen["learner"] or registry.find("modalities", kind).learners[0])

    def page(self) -> str:
        """All of the recipe as text: what was published, and then what it is on each kind of data, overrides applied."""
        lines = [f"{self.name}: {self.title}", self.paper or "a recipe of this library"]
        for dataset, scores in self.published.items():
            figures = ", ".join(f"{score} at {budget}" for budget, score in scores.items())
            rules = self.scored_by(dataset)
            lines.append(
                f"published on {dataset}, % at each budget: {figures}" + (f"; protocol {rules}" if rules else "")
            )
        kinds_of: dict[tuple[str, ...], list[str]] = {}
        for kind in self.modalities:
            kinds_of.setdefault(tuple(self._fields(kind)), []).append(kind)
        for fields, kinds in kinds_of.items():
            lines += ["", f"on {', '.join(kinds)} data", *fields]
        return "\n".join(lines)

    def _fields(self, kind: str) -> list[str]:
        """Lines of what is chosen for `kind` of data: nothing of the outer loop where nothing is optimised."""
        recipe = self.on(kind)
        shown: dict[str, Any] = {"target": recipe.target, "summary": recipe.summary}
        if recipe.objective is not None:
            head = {"objective": recipe.objective, "learner": self.learner(kind), "settings": recipe.settings}
            shown = {**head, **shown, **recipe.loop_options()}
        lines: list[str] = []
        for name, value in shown.items():
            text = _listed(value) if isinstance(value, Mapping) else str(value)
            if value is not None and text:
                start = f"  {name + ':':21}"
                lines += textwrap.wrap(
                    start + text, _PAGE_WIDTH, subsequent_indent=" " * len(start), break_on_hyphens=False
                )
        return lines

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
        """All recipes as a text table, with published scores at 1, 10 and 50 images a class.

        Summary and learner are those of the kind of data that a recipe was made for. Long cells go on in further lines.
        """
        datasets, budgets = ("MNIST", "CIFAR-10"), (1, 10, 50)
        head = ("recipe", "for", "objective", "summary", "learner", *(f"{name} 1/10/50" for name in datasets), "paper")
        rows = [[[cell] for cell in head]]
        most = len(self.defaults)  # every kind of data has a default
        for recipe in self.values():
            figures = []
            for dataset in datasets:
                scores = recipe.published.get(dataset, {})
                figures.append(
                    " / ".join(f"{scores[n]:.1f}" if n in scores else "-" for n in budgets) if scores else ""
                )
            made_for = recipe.modalities[0]
            merged = recipe.on(made_for)
            kinds = "all" if len(recipe.modalities) == most else ", ".join(recipe.modalities)
            row = [[recipe.name], _wrapped(kinds, _KINDS_WIDTH), [merged.objective or "-"]]
            row += [_wrapped(_listed(merged.summary), _SUMMARY_WIDTH), [recipe.learner(made_for)]]
            row += [*([figure] for figure in figures), _wrapped(recipe.paper or recipe.title, _ABOUT_WIDTH)]
            rows.append(row)
        widths = [max(len(part) for row in rows for part in row[column]) for column in range(len(head))]
        lines = [
            "  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip()
            for row in rows
            for parts in zip_longest(*row, fillvalue="")
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
