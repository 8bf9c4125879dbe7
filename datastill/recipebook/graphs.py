"""Recipes for sets of small graphs; DosCond's, which is for nodes too, is in `graph.py`."""

from __future__ import annotations

from datastill.recipe import Recipe

RECIPES = [
    Recipe(
        name="graphs-default",
        title="one-step gradient matching from central graphs, with edges and categories that are annealed to what is exported",
        paper="",
        modalities=("graphs",),
        objective="gradient-matching",
        settings={
            "learner": "gcn",
            "outer_loops": 1,
            "inner_epochs": 0,
            "distance": "relative",
            "real_size": 32,
            "weighting": "size",
        },
        summary={"init": "central", "anneal": 100},
        steps=150,
        lr={"features": 0.05, "adjacency": 0.2},
        validate_every=75,
        select_on="export",
    ),
]
