"""Recipes for images."""

from __future__ import annotations

from datastill.recipe import Recipe

RECIPES = [
    Recipe(
        name="image-default",
        title="kernel ridge regression with an infinite-width network, images augmented",
        paper="",
        modalities=("image",),
        objective="kernel-ridge",
        settings={"kernel": "ntk", "depth": 3, "ridge": 0.1, "real_size": 128, "augment": True},
        steps=400,
        lr=0.02,
        validate_every=100,
    ),
    Recipe(
        name="dsa",
        title="gradient matching with siamese augmentation",
        paper="Zhao & Bilen, ICML 2021, arXiv 2102.08259",
        published={"MNIST": {1: 88.7, 10: 97.8, 50: 99.2}, "CIFAR-10": {1: 28.8, 10: 52.1, 50: 60.6}},
        protocol="dsa",
        modalities=("image",),
        objective="gradient-matching",
        settings={"outer_loops": 10, "inner_epochs": 50, "inner_lr": 0.01, "real_size": 256, "augment": True},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
    ),
]
