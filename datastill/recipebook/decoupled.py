"""Decoupled methods: a teacher is trained on the target dataset once, and points are recovered or chosen, and labelled, by it.

The papers label every augmented view anew while students train, from stored labels or the teacher itself. Here each point has one
soft label, stored with the summary and counted in its bytes.
"""

from __future__ import annotations

from typing import Any

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

# Graph sets and logs have no soft labels; the choice of points works on them too.
_HARD: dict[str, dict[str, Any]] = {kind: {"summary": {"labels": "own"}} for kind in ("graphs", "interactions")}

RECIPES = [
    Recipe(
        name="sre2l",
        title="recovering points from the statistics that a trained network keeps of its features, with its labels",
        paper="Yin, Xing & Shen, NeurIPS 2023, arXiv 2306.13092",
        published={"ImageNet-1K": {10: 21.3, 50: 46.8}, "Tiny ImageNet": {50: 41.1}},
        modalities=EVERY,
        objective="statistics-matching",
        settings={"weight": 0.01, "first_weight": 10.0},
        steps=1000,
        lr=0.25,
        momentum=(0.5, 0.9),
        schedule="cosine",
        overrides={
            "image": {
                "settings": {"learner": "convnet-bn"},
                "summary": {"init": "noise", "labels": "learned"},
            },
            "text": {"summary": {"labels": "learned"}, "steps": 100, "lr": 0.02, "momentum": None},
            "graph": {
                "summary": {"init": "propagated", "labels": "learned"},
                "settings": {"learner": "gcn"},
                "steps": 200,
                "lr": 0.02,
                "momentum": None,
            },
            "graphs": {
                "steps": 200,
                "lr": {"features": 0.05, "adjacency": 0.1},
                "momentum": None,
                "select_on": "export",
            },
            "interactions": {
                "summary": {"init": "kmeans", "temperature": 1.0},
                "steps": 100,
                "lr": 0.03,
                "momentum": None,
            },
        },
    ),
    Recipe(
        name="sre2l-kmeans",
        title="the same from the centres of k-means, by a network without batch normalisation",
        paper="",
        modalities=("image",),
        objective="statistics-matching",
        settings={"weight": 0.1, "first_weight": 10.0, "augment": False},
        summary={"init": "kmeans", "labels": "learned"},
        steps=300,
        lr=0.05,
    ),
    Recipe(
        name="rded",
        title="the crops of real images, or the real points, at which a trained network has the lowest loss, with its labels",
        paper="Sun et al., CVPR 2024, arXiv 2312.03526",
        published={"ImageNet-1K": {10: 42.0}},
        modalities=EVERY,
        objective=None,
        summary={"init": "rded", "labels": "teacher"},
        steps=0,
        overrides=_HARD,
    ),
    Recipe(
        name="soft-random",
        # The paper stops the training of that network early; here it is whole.
        title="random real points with the labels of a trained network",
        paper="Qin, Deng & Alvarez-Melis, NeurIPS 2024, arXiv 2406.10774",
        modalities=EVERY[:3],
        objective=None,
        summary={"init": "random", "labels": "teacher"},
        steps=0,
    ),
]
