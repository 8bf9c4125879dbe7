"""Gradient matching and its successors."""

from __future__ import annotations

from typing import Any

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

# What other kinds of data than images need: networks are kept longer and summaries move by Adam.
_ELSEWHERE: dict[str, dict[str, Any]] = {
    "text": {
        "settings": {"outer_loops": 5, "inner_epochs": 5, "real_size": 64},
        "steps": 60,
        "optimizer": "adam",
        "lr": 0.02,
        "momentum": None,
    },
    "graph": {
        "summary": {"init": "propagated"},
        "settings": {"learner": "sgc", "outer_loops": 20, "inner_epochs": 15, "inner_optimizer": "adam"},
        "steps": 200,
        "optimizer": "adam",
        "lr": 0.01,
        "momentum": None,
    },
    "graphs": {
        "settings": {"outer_loops": 5, "inner_epochs": 10, "inner_optimizer": "adam", "inner_lr": 1e-3},
        "steps": 150,
        "optimizer": "adam",
        "lr": {"features": 0.05, "adjacency": 0.1},
        "momentum": None,
        "select_on": "export",
    },
    "interactions": {
        "summary": {"init": "kmeans", "temperature": 1.0},
        "settings": {
            "outer_loops": 5,
            "inner_epochs": 5,
            "inner_optimizer": "adam",
            "inner_lr": 1e-3,
        },
        "steps": 100,
        "optimizer": "adam",
        "lr": 0.03,
        "momentum": None,
    },
}
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


def _contrasted(options: dict[str, Any]) -> dict[str, Any]:
    """With a contrast after a quarter of the steps."""
    return {**options, "settings": {**options["settings"], "contrast_after": options["steps"] // 4}}


RECIPES = [
    Recipe(
        name="dc",
        title="gradient matching",
        paper="Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929",
        published={"MNIST": {1: 91.7, 10: 97.4, 50: 98.2}, "CIFAR-10": {1: 28.3, 10: 44.9, 50: 53.9}},
        protocol={"MNIST": "dc-mnist", "CIFAR-10": "dc"},
        modalities=EVERY,
        objective="gradient-matching",
        settings={"inner_lr": 0.01, "real_size": 256},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
        overrides={
            "image": {"settings": {"real_precision": "auto"}, "summary": {"clamp": False}},
            **_ELSEWHERE,
        },
    ),
    Recipe(
        name="dsa",
        title="gradient matching with siamese augmentation",
        paper="Zhao & Bilen, ICML 2021, arXiv 2102.08259",
        published={"MNIST": {1: 88.7, 10: 97.8, 50: 99.2}, "CIFAR-10": {1: 28.8, 10: 52.1, 50: 60.6}},
        protocol="dsa",
        modalities=("image",),
        objective="gradient-matching",
        settings={"inner_lr": 0.01, "real_size": 256, "real_precision": "auto", "augment": True},
        summary={"clamp": False},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
    ),
    Recipe(
        name="dcc",
        title="gradient matching that contrasts classes, after a quarter of the run",
        paper="Lee et al., ICML 2022, arXiv 2202.02916",
        published={"CIFAR-10": {1: 34.0, 10: 54.5, 50: 64.2}},
        protocol="dsa",
        modalities=("image", "text", "graph", "graphs"),
        objective="gradient-matching",
        settings={"inner_lr": 0.01, "real_size": 256},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
        overrides={
            "image": {
                "settings": {
                    "real_precision": "auto",
                    "augment": True,
                    "contrast_after": 250,
                    "contrast_matches": 10,  # of a network, which has as many with more than ten images a class
                },
                "summary": {"clamp": False},
            },
            **{kind: _contrasted(_ELSEWHERE[kind]) for kind in ("text", "graph", "graphs")},
        },
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
