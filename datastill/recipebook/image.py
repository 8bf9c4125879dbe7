"""This library's own recipes for images."""

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
        name="image-compact",
        title="distribution matching of many images with pixels of two bits",
        paper="",
        modalities=("image",),
        objective="distribution-matching",
        settings={"real_size": 128, "real_precision": "auto"},
        summary={"codec": "int2-entropy"},
        steps=300,
        lr=0.02,
        validate_every=100,
    ),
    Recipe(
        name="image-hard",
        title="real images that a network forgets most often while it trains, with pixels of two bits",
        paper="chosen as by Toneva et al., ICLR 2019, arXiv 1812.05159",
        modalities=("image",),
        objective=None,
        # For budgets of hundreds of images a class: of a few, the odd ones are the worst choice.
        summary={"init": "forgetting", "space": "convnet-w32", "codec": "int2-entropy"},
        steps=0,
    ),
]
