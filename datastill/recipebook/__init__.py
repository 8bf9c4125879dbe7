"""The recipes that come with the library, as plain data: a file for each family of methods, others for single kinds of data."""

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
    regression,
    text,
    trajectory,
    unrolled,
)

recipes = RecipeBook(
    [
        *image.RECIPES,
        *text.RECIPES,
        *graph.RECIPES,
        *interactions.RECIPES,
        *gradient.RECIPES,
        *regression.RECIPES,
        *unrolled.RECIPES,
        *trajectory.RECIPES,
        *distribution.RECIPES,
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
