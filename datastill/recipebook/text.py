"""Recipes for text."""

from __future__ import annotations

from datastill.recipe import Recipe

RECIPES = [
    Recipe(
        name="text-default",
        title="kernel ridge regression on sentences that stay on words of the vocabulary",
        paper="",
        modalities=("text",),
        objective="kernel-ridge",
        settings={"kernel": "ntk", "depth": 3, "ridge": 1.0, "real_size": 500},
        summary={"tokens": "nearest"},
        steps=150,
        lr=0.05,
    ),
    Recipe(
        name="text-dd",
        title="training on word embeddings unrolled, with learned soft labels",
        paper="Sucholutsky & Schonlau, IJCNN 2021, arXiv 1910.02551",
        modalities=("text",),
        objective="unrolled",
        settings={"learner": "textcnn", "inner_steps": 20, "inner_lr": 0.02, "lr_per_step": True, "real_size": 512},
        summary={"labels": "learned"},
        steps=200,
        lr=0.01,
        momentum=0.5,
    ),
]
