"""Ridge regression with kernels and with features of networks."""

from __future__ import annotations

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

RECIPES = [
    Recipe(
        name="kip",
        title="kernel ridge regression with an infinite-width network",
        paper="Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        published={"MNIST": {1: 85.5, 10: 97.2, 50: 98.4}, "CIFAR-10": {1: 40.5, 10: 53.1, 50: 58.6}},
        protocol="krr",
        modalities=EVERY,
        objective="kernel-ridge",
        settings={"kernel": "ntk", "ridge": 1e-6, "real_size": 500},
        steps=300,
        lr=0.04,
        overrides={
            "image": {
                "settings": {"real_limit": 5000},  # of many classes, as published
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
        name="kip-label-solve",
        title="real images with the labels that are best for kernel ridge regression, in closed form",
        paper="Nguyen, Chen & Lee, ICLR 2021, arXiv 2011.00050",
        protocol="krr",
        modalities=("image",),
        objective="kernel-ridge",
        settings={"kernel": "ntk", "ridge": 1e-6, "solve_labels": True, "real_size": 500, "solve_size": None},
        summary={"labels": "signed"},
        steps=1,
        lr=0.0,
        validator="ntk",
    ),
    Recipe(
        name="kip-conv",
        title="kernel ridge regression with an infinitely wide convolutional network, labels solved",
        paper="Nguyen et al., NeurIPS 2021, arXiv 2107.13034",
        published={"MNIST": {1: 97.3, 10: 99.1, 50: 99.5}, "CIFAR-10": {1: 64.7, 10: 75.6, 50: 80.6}},
        protocol="krr-conv",
        modalities=("image",),
        objective="kernel-ridge",
        settings={
            "kernel": "cntk-avgpool-stem",
            "ridge": 1e-6,
            "real_size": 500,
            "real_limit": 5000,
            "solve_labels": True,
        },
        summary={"labels": "signed", "clamp": False},
        steps=1000,
        lr=0.05,
        validator="cntk-avgpool-stem",
    ),
    Recipe(
        name="rfad",
        title="kernel ridge regression on the features of random wide networks, Platt-scaled, with learned labels of images",
        paper="Loo et al., NeurIPS 2022, arXiv 2210.12067",
        # By kernel regression, like the objective; a network of width 1024 by the protocol "rfad" has 94.4, 98.5, 98.8 of MNIST.
        published={"MNIST": {1: 97.2, 10: 99.1, 50: 99.1}, "CIFAR-10": {1: 61.4, 10: 73.7, 50: 76.6}},
        protocol="krr-rfad",
        modalities=EVERY,
        objective="kernel-ridge",
        settings={
            "kernel": "features",
            "learners": 4,
            "draw": "gaussian",
            "platt": True,
            "ridge": 5e-3,
            "real_size": 102,
        },
        overrides={
            # The paper has eight networks of width 256 and 512 real images a class: 160 times the work of a step.
            "image": {
                "settings": {"learner": "convnet-w64-none", "real_precision": "auto", "real_limit": 5120},
                "summary": {"labels": "signed", "clamp": False},
                "steps": 2000,
                "lr": {"points": 0.1, "labels": 0.1, "sharpness": 0.03},
                "schedule": "cosine",  # each step has networks of its own, and the noise of that has to be averaged out
                # By the kernel of these networks in the limit it takes minutes; the last step has the least noise.
                "validate_every": 0,
            },
            "text": {
                "settings": {"ridge": 1e-2, "real_size": 64},
                "steps": 100,
                "lr": {"points": 0.02, "sharpness": 0.03},
            },
            "graph": {
                "settings": {"learner": "gcn", "ridge": 0.1, "real_size": None},
                "summary": {"init": "propagated"},
                "steps": 100,
            },
            "graphs": {
                "settings": {"learner": "profile", "ridge": 0.1, "real_size": 256},
                "steps": 150,
                "lr": {"features": 0.05, "adjacency": 0.1, "sharpness": 0.03},
                "select_on": "export",
            },
            "interactions": {
                "settings": {"ridge": 1.0, "real_size": 256, "platt": False},
                "summary": {"init": "kmeans", "temperature": 1.0},
                "steps": 100,
                "lr": 0.03,
            },
        },
    ),
    Recipe(
        name="frepo",
        title="ridge regression on the features of a pool of networks that train online, with learned labels of images and texts",
        paper="Zhou, Nezhadarya & Ba, NeurIPS 2022, arXiv 2206.00719",
        published={"MNIST": {1: 93.0, 10: 98.6, 50: 99.2}, "CIFAR-10": {1: 46.8, 10: 65.5, 50: 71.7}},
        protocol="frepo",
        modalities=EVERY,
        objective="feature-regression",
        settings={"pool": 10, "max_age": 100, "inner_lr": 3e-4, "ridge": 1e-6},
        steps=2000,
        schedule="cosine",
        overrides={
            # Pixels outside the valid range, as published: kept inside they score far less. The pool has the network that is
            # evaluated, where the paper's has batch norm, which gets less far in hundreds of steps. Narrower ones are faster and
            # noisier: the regression of a few features changes from network to network. The networks that score a summary train
            # a thousand augmented steps on it, so the pool's train augmented too, several steps at a visit: by the paper's one
            # plain step a short run never meets such networks. The rate falls to zero, there to a tenth.
            "image": {
                "summary": {"labels": "signed", "clamp": False},
                "settings": {
                    "learner": "convnet-w128-frepo-none",
                    "real_precision": "auto",
                    "real_limit": 1024,
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
