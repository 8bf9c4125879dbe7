"""Successors of gradient matching, for images."""

from __future__ import annotations

from datastill.recipe import Recipe

# The paper has absolute differences for MNIST and squared ones ("hidden-squared") for CIFAR-10; and for mosaics of MNIST the
# augmentation "idc-plain" in both places, as its protocol idc-mnist has.
_IDC = {
    "trained_on": "real",
    "outer_loops": 100,
    "inner_epochs": 1,
    "inner_lr": 0.01,
    "inner_momentum": 0.9,
    "inner_weight_decay": 5e-4,
    "inner_batch": 64,
    "inner_real": 50,
    "inner_augment": "idc",
    "real_size": 64,
    "real_precision": "auto",
    "distance": "hidden-absolute",
    "augment": "idc-match",
    "groups_per_step": 1,
    "synthetic_limit": 128,
}

RECIPES = [
    Recipe(
        name="dcc",
        title="gradient matching that contrasts classes, after a quarter of the run and after ten matches of a network",
        paper="Lee et al., ICML 2022, arXiv 2202.02916",
        published={"CIFAR-10": {1: 34.0, 10: 54.5, 50: 64.2}},
        protocol="dsa",
        modalities=("image",),
        objective="gradient-matching",
        settings={
            "inner_lr": 0.01,
            "real_size": 256,
            "real_precision": "auto",
            "augment": True,
            "contrast_after": 250,  # of 1,000 steps
            "contrast_matches": 10,  # of a network, with more than ten images a class
        },
        summary={"clamp": False},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
    ),
    Recipe(
        name="idc-i",
        title="matching gradients of hidden weights, class by class, of networks that train on real images with CutMix",
        paper="Kim et al., ICML 2022, arXiv 2205.14959",
        published={"MNIST": {1: 88.9, 10: 98.0, 50: 98.8}, "CIFAR-10": {1: 36.7, 10: 58.3, 50: 69.5}},
        protocol="idc",
        modalities=("image",),
        objective="gradient-matching",
        settings=_IDC,
        steps=4000,
        lr=0.01,
    ),
    Recipe(
        name="idc",
        title="IDC-I with images that are stored four at a time, as a mosaic of small ones",
        paper="Kim et al., ICML 2022, arXiv 2205.14959",
        published={"MNIST": {1: 94.2, 10: 98.4, 50: 99.1}, "CIFAR-10": {1: 50.0, 10: 67.5, 50: 74.5}},
        protocol={"MNIST": "idc-mnist", "CIFAR-10": "idc"},
        modalities=("image",),
        objective="gradient-matching",
        settings=_IDC,
        summary={"storage": "formation", "factor": 2},
        steps=4000,
        lr=0.01,
    ),
]
