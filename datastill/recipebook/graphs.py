"""Recipes for sets of small graphs; DosCond's, which is for nodes too, is in `graph.py`."""

from __future__ import annotations

from datastill.recipe import Recipe

RECIPES = [
    Recipe(
        name="graphs-default",
        title="kernel ridge regression on pooled propagated features, Bernoulli edges",
        paper="",
        modalities=("graphs",),
        objective="kernel-ridge",
        settings={"ridge": 0.1, "real_size": None},
        summary={"init": "central"},
        steps=200,
        lr={"features": 0.05, "adjacency": 0.1},
        validate_every=50,
        select_on="export",
    ),
]
