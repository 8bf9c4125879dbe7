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
    # Factorised (survey, section 2.5). Their published scores are at the bytes of 1, 10 or 50 float32 images a class, in which
    # they hold more images.
    Recipe(
        name="linba",
        title="linear combinations of bases that all classes share, optimised through training with momentum",
        paper="Deng & Russakovsky, NeurIPS 2022, arXiv 2206.02916",
        published={
            "MNIST": {1: 98.7, 10: 99.3, 50: 99.4},
            "CIFAR-10": {1: 66.4, 10: 71.2, 50: 73.6},
        },
        protocol="linba",
        modalities=("image",),
        objective="unrolled",
        settings={
            "inner_steps": 30,
            "inner_lr": 0.01,
            "learn_lr": False,
            "momentum": 0.9,
            "real_size": 64,
            "augment": True,
        },
        summary={"storage": "bases", "bases": 16, "downscale": 2},
        steps=300,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
        clip=2.0,
    ),
    Recipe(
        name="haba",
        title="bases in several styles, which an adversary keeps apart, by matching the trajectories of experts",
        paper="Liu et al., NeurIPS 2022, arXiv 2210.16774",
        published={"CIFAR-10": {1: 48.3, 10: 69.9, 50: 74.0}},
        protocol="mtt",
        modalities=("image",),
        objective="trajectory-matching",
        settings={"experts": 10, "max_start": 5, "span": 2, "inner_steps": 30, "inner_lr": 0.01},
        summary={"storage": "hallucinators", "styles": 5},
        steps=500,
        lr=0.01,
    ),
    Recipe(
        name="kfs",
        title="latent codes through small shared decoders, by distribution matching",
        paper="Lee et al., 2022, arXiv 2208.10494",
        published={"CIFAR-10": {1: 59.8, 10: 72.0, 50: 75.0}},
        protocol="dm",
        modalities=("image",),
        objective="distribution-matching",
        settings={"real_size": 256},
        summary={"storage": "codes", "decoders": 2},
        steps=1000,
        lr=0.01,
    ),
]
