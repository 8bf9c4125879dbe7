"""Recipes are data that build: every one of them makes its objective, for every kind of data that it names."""

from __future__ import annotations

import pytest

from datastill import recipes, registry
from datastill.condense.common import find_recipe
from datastill.errors import InputError
from datastill.modalities.image_protocols import PUBLISHED
from datastill.objectives.coresets import COMPOSED, METHODS
from datastill.recipe import Recipe

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
        "89.7 / 97.5 / 98.6",
        "26.0 / 48.9 / 63.0",
        "Zhao & Bilen, WACV 2023, arXiv 2110.04181",
    ]
    assert "- / 79.5 / -" in table  # DD has ten images a class only


def test_published_scores_name_a_protocol_of_their_kind_of_data() -> None:
    for name, recipe in recipes.items():
        known = registry.find("modalities", recipe.modalities[0]).published
        assert recipe.protocol is None or recipe.protocol in known
        budgets = (1, 10, 50) if known is PUBLISHED else (35, 70, 140)
        for scores in recipe.published.values():
            assert all(budget in budgets and 10 < score < 100 for budget, score in scores.items()), name
