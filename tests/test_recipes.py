"""Recipes are data that build: every one of them makes its objective, for every kind of data that it names."""

from __future__ import annotations

import re

import pytest
import torch

from datastill import recipes, registry
from datastill.condense.common import find_recipe
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.modalities.image_protocols import PUBLISHED
from datastill.objectives.coresets import COMPOSED, METHODS
from datastill.recipe import Recipe
from datastill.rng import generator

REQUIRED = ["dm", "dc", "dsa", "kip", "dd", "mtt", "gcond", "gcond-x", "gcdm", "doscond", "distill-cf", "text-dd"]


def test_the_book_has_what_it_must() -> None:
    assert set(REQUIRED) <= set(recipes)
    assert set(recipes.defaults) == {"image", "text", "graph", "graphs", "interactions"}
    assert all(recipes[name].name == name for name in recipes)
    assert all(recipes[name].paper for name in REQUIRED)


@pytest.mark.parametrize("name", list(recipes))
def test_every_recipe_builds(name: str) -> None:
    for kind in recipes[name].modalities:
        recipe = recipes[name].on(kind)
        if recipe.objective is None:  # real points, not optimised
            assert recipe.steps == 0
            assert recipe.summary["init"] in {**METHODS, **COMPOSED}
            continue
        objective = recipe.make_objective()
        assert objective.name == recipe.objective
        assert objective.config().items() >= dict(recipe.settings).items()
        assert recipe.loop_options()["steps"] >= 1


def test_the_five_families_are_on_every_modality() -> None:
    for kind in ("image", "text", "graph", "graphs", "interactions"):
        families = {recipe.objective for recipe in recipes.values() if kind in recipe.modalities}
        assert families >= set(registry.names("objectives"))


def test_overrides_change_only_what_they_name() -> None:
    recipe = Recipe(
        name="r",
        title="",
        paper="",
        modalities=("image", "text"),
        objective="kernel-ridge",
        settings={"ridge": 0.1, "depth": 2},
        lr=0.5,
        overrides={"text": {"settings": {"ridge": 0.3}, "steps": 7}},
    )
    assert recipe.on("image").settings == {"ridge": 0.1, "depth": 2}
    assert recipe.on("text").settings == {"ridge": 0.3, "depth": 2}
    assert recipe.on("text").steps == 7
    assert recipe.on("text").lr == 0.5


def test_settings_in_steps_keep_their_share_of_a_longer_or_shorter_run() -> None:
    for name, setting, share in (("dcc", "contrast_after", 0.25), ("datm", "expand_steps", 0.6)):
        recipe = recipes[name].on("image")
        assert recipe.settings[setting] == share * recipe.steps
        for steps in (20, 4000):
            lasting = recipe.lasting(steps)
            assert (lasting.steps, lasting.settings[setting]) == (steps, share * steps)
            assert {**lasting.settings, setting: 0} == {**recipe.settings, setting: 0}
    assert recipes["dcc"].on("image").lasting(1).settings["contrast_after"] == 1
    graph = recipes["graph-default"].on("graph")
    assert graph.lasting(30).settings == {**graph.settings, "anneal": 30}


def test_refusals_suggest() -> None:
    with pytest.raises(InputError, match="Did you mean 'gcond'"):
        recipes["gcnd"]
    with pytest.raises(InputError, match="for graph data, not for image"):
        find_recipe("gcond", "image")
    with pytest.raises(InputError, match="Did you mean 'kernel-ridge'"):
        registry.find("objectives", "kernel-ridg")
    with pytest.raises(InputError, match=r"Unknown modality 'imagee'. Did you mean 'image'"):
        registry.find("modalities", "imagee")


def test_table_lists_all() -> None:
    table = recipes.table()
    assert all(name in table for name in recipes)
    (line,) = (line for line in table.splitlines() if line.startswith("dm "))
    cells = [cell for cell in line.split("  ") if cell]
    assert [cell.strip() for cell in cells] == [
        "dm",
        "all",
        "distribution-matching",
        "clamp=False",
        "convnet",
        "89.7 / 97.5 / 98.6",
        "26.0 / 48.9 / 63.0",
        "Zhao & Bilen, WACV 2023, arXiv 2110.04181",
    ]
    assert "- / 79.5 / -" in table  # DD has ten images a class only


def rows(table: str) -> dict[str, list[str]]:
    """The cells of a table by recipe, read by where its rule says that columns are; further lines of a cell are joined."""
    _, rule, *lines = table.splitlines()
    bounds = [(found.start(), found.end()) for found in re.finditer("-+", rule)]
    found: dict[str, list[str]] = {}
    for line in lines:
        parts = [line[first:last].strip() for first, last in bounds]
        if parts[0]:
            name = parts[0]
            found[name] = parts
        else:
            found[name] = [f"{cell} {part}".strip() for cell, part in zip(found[name], parts)]
    return found


@pytest.mark.parametrize(
    ("name", "options", "learner"),
    [
        ("frepo", "labels=signed, clamp=False", "convnet-w128-frepo-none"),
        ("kip", "labels=signed, clamp=False", "ntk"),
        ("linba", "storage=bases, bases=16, downscale=2, init=kmeans, clamp=False", "convnet-w64"),
        ("kip-conv", "labels=signed, clamp=False", "cntk-avgpool-stem"),
        ("rfad", "labels=signed, clamp=False", "convnet-w64-none"),  # its kernel is that of this network's features
        ("dsa", "clamp=False", "convnet"),
        ("text-dd", "labels=learned", "textcnn"),
        ("text-default", "tokens=nearest", "ntk"),
        ("doscond", "init=kmeans, adjacency=bernoulli", "gcn"),
        ("graph-default", "init=kmeans, adjacency=none", "ntk"),
        ("interactions-dense", "sampler=weights, init=kmeans, anneal=None", "ntk"),
        ("herding", "init=herding, space=convnet", ""),
    ],
)
def test_the_table_shows_summary_and_learner_of_the_data_that_a_recipe_was_made_for(
    name: str, options: str, learner: str
) -> None:
    assert rows(recipes.table())[name][3:5] == [options, learner]


def test_every_row_of_the_table_is_whole() -> None:
    found = rows(recipes.table())
    assert list(found) == list(recipes)
    for name, (_, _, objective, options, learner, *_, about) in found.items():
        recipe = recipes[name]
        merged = {**recipe.summary, **recipe.overrides.get(recipe.modalities[0], {}).get("summary", {})}
        assert options == ", ".join(f"{option}={value}" for option, value in merged.items())
        assert (objective == "-") == (learner == "")
        assert about == (recipe.paper or recipe.title)
    assert max(map(len, recipes.table().splitlines())) < 220


@pytest.mark.parametrize("name", ["dm", "mtt", "frepo", "sre2l", "cafe", "dd", "dc"])
def test_the_learner_shown_is_the_one_that_a_run_asks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def build(modality: ImageModality, learner: str) -> None:
        asked.append(learner)
        raise LookupError

    monkeypatch.setattr(ImageModality, "build", build)
    images, labels = torch.rand(20, 1, 8, 8, generator=generator(0)), torch.arange(20) % 2
    modality = ImageModality(images, labels, validation=(images, labels))
    objective = recipes[name].on("image").make_objective()
    with pytest.raises(LookupError):
        objective.footprint(modality, modality.summary([1, 1], rng=generator(0), labels="learned"))
    assert recipes[name].learner("image") == asked[0]


def test_a_page_has_the_recipe_as_it_is_on_each_kind_of_data() -> None:
    recipe = Recipe(
        name="r",
        title="something",
        paper="",
        modalities=("image", "text", "graph"),
        objective="kernel-ridge",
        settings={"ridge": 0.1, "depth": 2},
        summary={"init": "kmeans"},
        lr={"points": 0.5, "labels": 0.1},
        published={"MNIST": {1: 50.0, 10: 60.5}},
        overrides={"text": {"settings": {"ridge": 0.3}, "steps": 7, "lr": 0.25}},
    )
    head, shared, text = recipe.page().split("\n\n")
    assert "r: something" in head
    assert "MNIST" in head
    assert "50.0 at 1, 60.5 at 10" in head
    fields = {}
    for section in (shared, text):
        title, *lines = section.splitlines()
        fields[title] = dict(re.split(r":\s+", line.strip(), maxsplit=1) for line in lines)
    assert set(fields) == {"on image, graph data", "on text data"}
    everywhere, on_text = fields["on image, graph data"], fields["on text data"]
    assert everywhere["settings"] == "ridge=0.1, depth=2"
    assert on_text["settings"] == "ridge=0.3, depth=2"
    assert (everywhere["steps"], on_text["steps"]) == ("200", "7")
    assert (everywhere["lr"], on_text["lr"]) == ("points=0.5, labels=0.1", "0.25")
    assert on_text["summary"] == "init=kmeans"
    assert on_text["learner"] == "ntk"
    assert "momentum" not in on_text


@pytest.mark.parametrize("name", list(recipes))
def test_every_page_is_readable(name: str) -> None:
    page = recipes[name].page()
    assert "{" not in page
    assert all(len(line) <= 100 for line in page.splitlines()[2:])
    assert all(kind in page for kind in recipes[name].modalities)
    assert ("steps:" in page) == (recipes[name].objective is not None)


def test_published_scores_name_a_protocol_of_their_kind_of_data() -> None:
    for name, recipe in recipes.items():
        known = registry.find("modalities", recipe.modalities[0]).published
        assert {recipe.scored_by(dataset) for dataset in recipe.published} <= {*known, None}
        budgets = (1, 10, 50) if known is PUBLISHED else (35, 70, 140)
        for scores in recipe.published.values():
            assert all(budget in budgets and 10 < score < 100 for budget, score in scores.items()), name
