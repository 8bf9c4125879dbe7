"""Matching the trajectories of experts."""

from __future__ import annotations

from typing import Any

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

# What other kinds of data than images need: experts are few and train long between snapshots.
_ELSEWHERE: dict[str, dict[str, Any]] = {
    "text": {
        "settings": {
            "experts": 3,
            "expert_lr": 0.1,
            "expert_interval": 10,
            "max_start": 4,
            "inner_steps": 10,
            "inner_lr": 0.1,
        },
        "steps": 60,
        "lr": {"points": 0.02, "inner_lr": 0.01},
    },
    "graph": {
        "summary": {"init": "propagated"},
        "settings": {
            "learner": "sgc",
            "experts": 5,
            "expert_lr": 0.5,
            "expert_batch": None,
            "expert_interval": 10,
            "inner_steps": 20,
            "inner_lr": 0.5,
        },
        "steps": 100,
    },
    "graphs": {
        "settings": {
            "learner": "profile",
            "experts": 5,
            "expert_lr": 0.1,
            "expert_momentum": 0.9,
            "expert_interval": 10,
            "inner_steps": 15,
            "inner_lr": 0.1,
        },
        "steps": 150,
        "lr": {"features": 0.05, "adjacency": 0.1, "inner_lr": 0.01},
        "select_on": "export",
    },
    "interactions": {
        "summary": {"init": "kmeans", "temperature": 1.0},
        "settings": {
            "experts": 5,
            "expert_lr": 1.0,
            "expert_momentum": 0.9,
            "inner_steps": 15,
            "inner_lr": 1.0,
        },
        "steps": 60,
        "lr": {"points": 0.03, "inner_lr": 0.01},
    },
}
# As published: experts and students see augmented images, and pixels are not clipped. Experts and their epochs are fewer, one
# setting for all sizes: the papers train 100, and MTT has for 1, 10 and 50 images a class of CIFAR-10 starts in the first 2, 20
# and 40 epochs and 50, 30 and 30 steps. `max_start` and `inner_steps` are what to raise with the size.
_IMAGE_EXPERTS: dict[str, Any] = {"settings": {"augment": True}, "summary": {"clamp": False}}

RECIPES = [
    Recipe(
        name="mtt",
        title="matching the trajectories of experts",
        paper="Cazenavette et al., CVPR 2022, arXiv 2203.11932",
        published={"CIFAR-10": {1: 46.3, 10: 65.3, 50: 71.6}},
        protocol="mtt",
        modalities=EVERY,
        objective="trajectory-matching",
        settings={"experts": 10, "max_start": 5, "span": 2, "inner_steps": 30, "inner_lr": 0.01},
        steps=500,
        lr=0.01,
        overrides={
            "image": _IMAGE_EXPERTS,
            **_ELSEWHERE,
        },
    ),
    Recipe(
        name="tesla",
        # With the labels of the classes, as its figures of CIFAR-10 are; the paper takes those of the target expert on ImageNet.
        title="matching the trajectories of experts, with a gradient that holds the inner weights constant",
        paper="Cui et al., ICML 2023, arXiv 2211.10586",
        modalities=EVERY,
        published={"CIFAR-10": {1: 48.5, 10: 66.4, 50: 72.6}},
        protocol="mtt",
        objective="trajectory-matching",
        settings={
            "experts": 10,
            "max_start": 5,
            "span": 2,
            "inner_steps": 50,
            "inner_lr": 0.01,
            "gradient": "tesla",
        },
        steps=500,
        lr=0.01,
        overrides={
            "image": _IMAGE_EXPERTS,
            **_ELSEWHERE,
        },
    ),
    Recipe(
        name="datm",
        title="matching trajectories of growing difficulty, with learned labels that begin from the experts",
        paper="Guo et al., ICLR 2024, arXiv 2310.05773",
        modalities=("image", "text"),  # "geom" is what it became on graphs
        published={"CIFAR-10": {1: 46.9, 10: 66.8, 50: 76.1}},
        protocol="datm",
        objective="trajectory-matching",
        settings={
            "experts": 10,
            "first_max_start": 4,
            "max_start": 12,
            "expand_steps": 300,
            "span": 2,
            "inner_steps": 40,
            "inner_lr": 0.01,
            "expert_labels": True,
            "label_threshold": 1.0,
        },
        summary={"init": "correct", "labels": "learned"},
        steps=500,
        lr={"points": 0.01, "labels": 0.003, "inner_lr": 0.01},
        overrides={
            "image": _IMAGE_EXPERTS,
            "text": {
                "settings": {
                    "experts": 3,
                    "expert_lr": 0.1,
                    "expert_interval": 10,
                    "first_max_start": 2,
                    "max_start": 6,
                    "expand_steps": 40,
                    "inner_steps": 10,
                    "inner_lr": 0.1,
                },
                "steps": 60,
                "lr": {"points": 0.02, "labels": 0.01, "inner_lr": 0.01},
            },
        },
    ),
    Recipe(
        name="haba",
        title="bases in several styles, which an adversary keeps apart, by matching the trajectories of experts",
        paper="Liu et al., NeurIPS 2022, arXiv 2210.16774",
        published={"CIFAR-10": {1: 48.3, 10: 69.9, 50: 74.0}},
        protocol="mtt",
        modalities=("image",),
        objective="trajectory-matching",
        settings={
            "experts": 10,
            "max_start": 5,
            "span": 2,
            "inner_steps": 30,
            "inner_lr": 0.01,
            "one_version": True,
            "augment": True,
        },
        summary={"storage": "hallucinators", "styles": 5, "clamp": False},
        steps=500,
        lr=0.01,
    ),
]
