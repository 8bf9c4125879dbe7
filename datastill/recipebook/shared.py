"""Published methods that run on every kind of data, with what each kind needs otherwise."""

from __future__ import annotations

from typing import Any

from datastill.recipe import Recipe

_ANY = ("image", "text", "graph", "graphs", "interactions")
# Trajectories on sentences: experts are few and train long between snapshots.
_TEXT_EXPERTS: dict[str, Any] = {
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
}
# As published: experts and students see augmented images, and pixels are not clipped.
_IMAGE_EXPERTS: dict[str, Any] = {"settings": {"augment": True}, "summary": {"clamp": False}}

RECIPES = [
    Recipe(
        name="dc",
        title="gradient matching",
        paper="Zhao, Mopuri & Bilen, ICLR 2021, arXiv 2006.05929",
        published={"MNIST": {1: 91.7, 10: 97.4, 50: 98.2}, "CIFAR-10": {1: 28.3, 10: 44.9, 50: 53.9}},
        protocol={"MNIST": "dc-mnist", "CIFAR-10": "dc"},
        modalities=_ANY,
        objective="gradient-matching",
        settings={"inner_lr": 0.01, "real_size": 256},
        steps=1000,
        optimizer="sgd",
        lr=0.1,
        momentum=0.5,
        overrides={
            "image": {"settings": {"real_precision": "auto"}, "summary": {"clamp": False}},
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
        },
    ),
    Recipe(
        name="kip",
        title="kernel ridge regression with an infinite-width network",
        paper="Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        published={"MNIST": {1: 85.5, 10: 97.2, 50: 98.4}, "CIFAR-10": {1: 40.5, 10: 53.1, 50: 58.6}},
        protocol="krr",
        modalities=_ANY,
        objective="kernel-ridge",
        settings={"kernel": "ntk", "ridge": 1e-6, "real_size": 500},
        steps=300,
        lr=0.04,
        overrides={
            "image": {
                "summary": {"labels": "signed", "clamp": False},
                "steps": 1000,
                "lr": {"points": 0.04, "labels": 0.01},
                "validator": "ntk",
            },
            "text": {"settings": {"ridge": 1e-2}, "steps": 60, "lr": 0.02},
            "graph": {
                "summary": {"init": "propagated"},
                "settings": {"ridge": 1.0, "real_size": None},
                "steps": 100,
                "lr": 3e-3,
            },
            "graphs": {
                "settings": {"ridge": 0.1, "real_size": None},
                "steps": 200,
                "lr": {"features": 0.05, "adjacency": 0.1},
                "select_on": "export",
            },
            "interactions": {"settings": {"real_size": 1024}, "steps": 60, "lr": 0.2},
        },
    ),
    Recipe(
        name="dd",
        title="training unrolled, with learned step sizes",
        paper="Wang et al., 2018, arXiv 1811.10959",
        published={"MNIST": {10: 79.5}, "CIFAR-10": {10: 36.8}},
        modalities=_ANY,
        objective="unrolled",
        # Every step trains on all points. In the paper each has points of its own, of which students are to know the order, so
        # that its result is a program of training and no dataset; its scores are of that program and have no protocol here.
        settings={"inner_steps": 30, "inner_lr": 0.02, "lr_per_step": True, "real_size": 102},
        steps=300,
        lr=0.01,
        momentum=0.5,
        overrides={
            "image": {"summary": {"clamp": False}},
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
        name="mtt",
        title="matching the trajectories of experts",
        paper="Cazenavette et al., CVPR 2022, arXiv 2203.11932",
        published={"CIFAR-10": {1: 46.3, 10: 65.3, 50: 71.6}},
        protocol="mtt",
        modalities=_ANY,
        objective="trajectory-matching",
        settings={"experts": 10, "max_start": 5, "span": 2, "inner_steps": 30, "inner_lr": 0.01},
        steps=500,
        lr=0.01,
        overrides={
            "image": _IMAGE_EXPERTS,
            "text": _TEXT_EXPERTS,
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
        },
    ),
    Recipe(
        name="tesla",
        title="matching the trajectories of experts, with a gradient that holds the inner weights constant",
        paper="Cui et al., ICML 2023, arXiv 2211.10586",
        modalities=("image", "text"),
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
            "text": _TEXT_EXPERTS,
        },
    ),
    Recipe(
        name="datm",
        title="matching trajectories of growing difficulty, with learned labels that begin from the experts",
        paper="Guo et al., ICLR 2024, arXiv 2310.05773",
        modalities=("image", "text"),
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
        name="frepo",
        title="ridge regression on the features of a pool of networks that train online, with learned labels",
        paper="Zhou, Nezhadarya & Ba, NeurIPS 2022, arXiv 2206.00719",
        published={"MNIST": {1: 93.0, 10: 98.6, 50: 99.2}, "CIFAR-10": {1: 46.8, 10: 65.5, 50: 71.7}},
        protocol="frepo",
        modalities=_ANY,
        objective="feature-regression",
        settings={"pool": 10, "max_age": 100, "inner_lr": 3e-4, "ridge": 1e-6},
        steps=2000,
        schedule="cosine",
        overrides={
            # Pixels outside the valid range, as published: kept inside they score far less. The pool has the network that is
            # evaluated, where the paper's has batch norm, which gets less far in hundreds of steps. Narrower ones are faster and
            # noisier: the regression of a few features changes from network to network. The networks that score a summary train
            # a thousand augmented steps on it, so the pool's train augmented too, several steps at a visit: by the paper's one
            # plain step a short run never meets such networks.
            "image": {
                "summary": {"labels": "signed", "clamp": False},
                "settings": {
                    "learner": "convnet-w128-frepo-none",
                    "real_precision": "auto",
                    "inner_precision": "auto",
                    "inner_augment": "frepo",
                    "inner_steps": 5,
                    "max_age": 500,
                    "mirror": True,
                    "unit_outputs": 10,
                    "margin": 10.0,  # the paper has 1
                },
                "lr": {"points": 0.1, "labels": 0.005},
                "validate_every": 0,  # the network takes minutes to train; the last step has the least noise
            },
            "text": {
                "summary": {"labels": "learned"},
                "settings": {"real_size": 64},
                "steps": 200,
                "lr": {"points": 0.02, "labels": 1e-3},
            },
            "graph": {
                "summary": {"init": "propagated"},
                "settings": {"learner": "gcn", "real_size": None, "ridge": 1e-2, "inner_lr": 0.01},
                "steps": 150,
                "lr": 0.01,
                "validator": "sgc",
            },
            "graphs": {
                "settings": {"learner": "profile", "real_size": 256, "ridge": 1e-2, "inner_lr": 1e-3},
                "steps": 150,
                "lr": {"features": 0.05, "adjacency": 0.1},
                "select_on": "export",
            },
            "interactions": {
                "summary": {"init": "kmeans", "temperature": 1.0},
                "settings": {"real_size": 256, "ridge": 1.0, "inner_lr": 1e-3},
                "steps": 100,
                "lr": 0.03,
            },
        },
    ),
]
