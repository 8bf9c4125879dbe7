"""The recipes that come with the library, as plain data: a file for each kind of data, one for those that fit every kind."""

from __future__ import annotations

from datastill.recipe import RecipeBook
from datastill.recipebook import (
    coresets,
    decoupled,
    distribution,
    gradient,
    graph,
    image,
    interactions,
    shared,
    text,
)

recipes = RecipeBook(
    [
        *image.RECIPES,
        *text.RECIPES,
        *graph.RECIPES,
        *interactions.RECIPES,
        *shared.RECIPES,
        *distribution.RECIPES,
        *gradient.RECIPES,
        *coresets.RECIPES,
        *decoupled.RECIPES,
    ],
    defaults={
        "image": "image-default",
        "text": "text-default",
        "graph": "graph-default",
        "graphs": "doscond",
        "interactions": "interactions-default",
    },
)
