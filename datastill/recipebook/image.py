"""Recipes for images."""

from __future__ import annotations

from datastill.recipe import Recipe

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
        name="bptt",
        title="training unrolled with momentum, free images",
        paper="Deng & Russakovsky, NeurIPS 2022, arXiv 2206.02916 (without factorisation)",
        published={
            "MNIST": {1: 95.2, 10: 98.8, 50: 99.2},
            "CIFAR-10": {1: 49.1, 10: 62.4, 50: 70.5},
        },
        protocol="linba",
        modalities=("image",),
        objective="unrolled",
        # Students of few images soon are what they will be. Ten quick steps from a head of zeros, with outputs scaled, come near
        # that, and cost and vary less than a longer training, most of whose gradient is noise.
        settings={**_QUICK, "learner": "convnet-w64", "inner_steps": 10},
        summary={"init": "kmeans", "clamp": False},
        steps=2200,
        lr={"points": 0.05, "sharpness": 0.03},
        schedule="cosine",
        clip=2.0,
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
        settings={**_QUICK, "learner": "convnet-w64", "inner_steps": 20, "inner_batch": 100, "inner_precision": "auto"},
        summary={"storage": "bases", "bases": 16, "downscale": 2, "init": "kmeans", "clamp": False},
        steps=340,
        lr={"points": 0.02, "sharpness": 0.03},
        validate_every=0,
        schedule="cosine",
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
    Recipe(
        name="kfs",
        title="latent codes through small shared decoders, by distribution matching",
        paper="Lee et al., 2022, arXiv 2208.10494",
        published={"CIFAR-10": {1: 59.8, 10: 72.0, 50: 75.0}},
        protocol="dm",
        modalities=("image",),
        objective="distribution-matching",
        settings={"real_size": 256, "real_precision": "auto"},
        summary={"storage": "codes", "decoders": 2, "clamp": False},
        steps=1000,
        lr=0.01,
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
        settings={"kernel": "cntk-avgpool-stem", "ridge": 1e-6, "real_size": 500, "solve_labels": True},
        summary={"labels": "signed", "clamp": False},
        steps=1000,
        lr=0.05,
        validator="cntk-avgpool-stem",
    ),
    Recipe(
        name="rfad",
        title="kernel ridge regression on the features of random wide networks, Platt-scaled, with learned labels",
        paper="Loo et al., NeurIPS 2022, arXiv 2210.12067",
        # By kernel regression, like the objective; a network of width 1024 by the protocol "rfad" has 94.4, 98.5, 98.8 of MNIST.
        published={"MNIST": {1: 97.2, 10: 99.1, 50: 99.1}, "CIFAR-10": {1: 61.4, 10: 73.7, 50: 76.6}},
        protocol="krr-rfad",
        modalities=("image",),
        objective="kernel-ridge",
        # The paper has eight networks of width 256 and 512 real images a class: 160 times the work of a step.
        settings={
            "kernel": "features",
            "learner": "convnet-w64-none",
            "learners": 4,
            "draw": "gaussian",
            "platt": True,
            "ridge": 5e-3,
            "real_size": 102,
            "real_precision": "auto",
        },
        summary={"labels": "signed", "clamp": False},
        steps=2000,
        lr={"points": 0.1, "labels": 0.1, "sharpness": 0.03},
        schedule="cosine",  # each step has networks of its own, and the noise of that has to be averaged out
        validate_every=0,  # by the kernel of these networks in the limit it takes minutes; the last step has the least noise
    ),
]
