"""Differentiating through training."""

from __future__ import annotations

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

# The inner training of Deng & Russakovsky, with and without bases; their students train like it, without augmentation. The paper
# unrolls 150 steps of a fresh network and has SGD for 500,000 of them; in hundreds Adam gets further.
_QUICK = {
    "inner_lr": 0.03,
    "learn_lr": False,
    "momentum": 0.9,
    "real_size": 64,
    "real_precision": "auto",
    "zero_head": True,
    "platt": True,
}

RECIPES = [
    Recipe(
        name="dd",
        title="training unrolled, with learned step sizes",
        paper="Wang et al., 2018, arXiv 1811.10959",
        published={"MNIST": {10: 79.5}, "CIFAR-10": {10: 36.8}},
        modalities=EVERY,
        objective="unrolled",
        # Every step trains on all points. In the paper each has points of its own, of which students are to know the order, so
        # that its result is a program of training and no dataset; its scores are of that program and have no protocol here. It
        # begins from noise, and halves its rate every 40 passes over the real points; this begins from real ones, and is shorter.
        settings={"inner_steps": 30, "inner_lr": 0.02, "lr_per_step": True, "real_size": 102},
        steps=300,
        lr=0.01,
        momentum=0.5,
        overrides={
            "image": {"summary": {"clamp": False}, "settings": {"real_limit": 1024}},  # of many classes, as published
            "text": {
                "settings": {
                    "inner_steps": 10,
                    "inner_lr": 0.02,
                    "momentum": 0.5,
                    "lr_per_step": False,
                    "real_size": 64,
                },
                "steps": 60,
                "lr": {"points": 0.02, "inner_lr": 0.01},
                "momentum": None,
            },
            "graph": {
                "summary": {"init": "propagated"},
                "settings": {
                    "learner": "sgc",
                    "inner_steps": 20,
                    "inner_lr": 0.5,
                    "momentum": 0.9,
                    "lr_per_step": False,
                    "real_size": None,
                },
                "steps": 100,
                "momentum": None,
            },
            "graphs": {
                "settings": {
                    "learner": "profile",
                    "inner_steps": 20,
                    "inner_lr": 0.1,
                    "momentum": 0.9,
                    "lr_per_step": False,
                    "real_size": None,
                },
                "steps": 150,
                "lr": {"features": 0.05, "adjacency": 0.1, "inner_lr": 0.01},
                "momentum": None,
                "select_on": "export",
            },
            "interactions": {
                "summary": {"init": "kmeans", "temperature": 1.0},
                "settings": {
                    "inner_steps": 10,
                    "inner_lr": 1.0,
                    "momentum": 0.9,
                    "lr_per_step": False,
                    "real_size": 256,
                },
                "steps": 60,
                "lr": {"points": 0.03, "inner_lr": 0.01},
                "momentum": None,
            },
        },
    ),
    Recipe(
        name="bptt",
        title="training unrolled with momentum",
        paper="Deng & Russakovsky, NeurIPS 2022, arXiv 2206.02916 (without factorisation)",
        published={
            "MNIST": {1: 95.2, 10: 98.8, 50: 99.2},
            "CIFAR-10": {1: 49.1, 10: 62.4, 50: 70.5},
        },
        protocol="linba",
        modalities=EVERY,
        objective="unrolled",
        settings={**_QUICK, "inner_steps": 10},
        overrides={
            # Students of few images soon are what they will be. Ten quick steps from a head of zeros, with outputs scaled, come
            # near that, and cost and vary less than a longer training, most of whose gradient is noise.
            "image": {
                "settings": {"learner": "convnet-w64", "real_limit": 1024},
                "summary": {"init": "kmeans", "clamp": False},
                "steps": 2200,
                "lr": {"points": 0.05, "sharpness": 0.03},
                "schedule": "cosine",
                "clip": 2.0,
            },
            "text": {"steps": 100, "lr": {"points": 0.02, "sharpness": 0.03}},
            "graph": {
                "settings": {"learner": "sgc", "inner_steps": 20, "inner_lr": 0.5, "real_size": None},
                "summary": {"init": "propagated"},
                "steps": 100,
            },
            "graphs": {
                "settings": {"learner": "profile", "inner_steps": 20, "inner_lr": 0.1, "real_size": None},
                "steps": 150,
                "lr": {"features": 0.05, "adjacency": 0.1, "sharpness": 0.03},
                "select_on": "export",
            },
            "interactions": {
                "settings": {"inner_lr": 1.0, "real_size": 256},
                "summary": {"init": "kmeans", "temperature": 1.0},
                "steps": 60,
                "lr": {"points": 0.03, "sharpness": 0.03},
            },
        },
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
        # Twice the steps of "bptt", as images are taken a hundred at a time. The last step has the least noise, and is kept:
        # validation trains augmented, as students of this protocol do not, and picked an early step.
        settings={
            **_QUICK,
            "learner": "convnet-w64",
            "inner_steps": 20,
            "inner_batch": 100,
            "inner_precision": "auto",
            "real_limit": 1024,
        },
        summary={"storage": "bases", "bases": 16, "downscale": 2, "init": "kmeans", "clamp": False},
        steps=340,
        lr={"points": 0.02, "sharpness": 0.03},
        validate_every=0,
        schedule="cosine",
        clip=2.0,
    ),
]
