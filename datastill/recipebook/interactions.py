"""Recipes for recommender logs."""

from __future__ import annotations

from datastill.recipe import Recipe

RECIPES = [
    Recipe(
        name="interactions-default",
        title="mean-field Distill-CF against held-out interactions",
        paper="",
        modalities=("interactions",),
        objective="kernel-ridge",
        settings={"ridge": 0.1, "real_size": 1024},
        steps=100,
        lr=0.2,
    ),
    Recipe(
        name="distill-cf",
        title="Gumbel-sampled users against an infinite-width autoencoder",
        paper="Sachdeva et al., NeurIPS 2022, arXiv 2206.02626",
        modalities=("interactions",),
        objective="kernel-ridge",
        settings={"ridge": 1.0, "real_size": None},
        summary={
            "sampler": "gumbel",
            "draws": 50,
            "temperature": 5.0,
            "init_scale": 1.0,
            "cardinality": 1e-3,
        },
        steps=200,
        lr=0.04,
    ),
]
