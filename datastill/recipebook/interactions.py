"""Recipes for recommender logs."""

from __future__ import annotations

import dataclasses

from datastill.recipe import Recipe

_DEFAULT = Recipe(
    name="interactions-default",
    title="weighted rows, thinned out while they learn what a teacher recommends",
    paper="",
    modalities=("interactions",),
    objective="kernel-ridge",
    settings={"ridge": 1.0, "real_size": 1024},
    target={"teacher": "ease"},
    summary={"sampler": "weights", "init": "kmeans"},
    steps=100,
    lr=0.04,
    schedule="cosine",
    validate_every=20,
    select_on="export",
)

RECIPES = [
    _DEFAULT,
    dataclasses.replace(
        _DEFAULT,
        name="interactions-dense",
        title="the same with all weights left, to be used as they are and not exported",
        summary={**_DEFAULT.summary, "anneal": None},
        select_on="summary",
    ),
    Recipe(
        name="distill-cf",
        title="Gumbel-sampled users against an infinite-width autoencoder",
        paper="Sachdeva et al., NeurIPS 2022, arXiv 2206.02626",
        modalities=("interactions",),
        objective="kernel-ridge",
        settings={"retune": 25, "real_size": None, "real_limit": None},
        target={"metric": "hr@100", "ridges": (1e-5, 1e-3, 1e-1, 1.0, 5.0, 50.0)},
        summary={
            "sampler": "gumbel",
            "draws": 200,
            "temperature": 10.0,
            "init_scale": 1.0,
            "cardinality": 1e-3,
        },
        steps=500,
        lr=0.04,
        validate_every=25,
    ),
]
