"""Real points instead of synthetic ones: what distillation has to beat, on every kind of data."""

from __future__ import annotations

from datastill.recipe import Recipe
from datastill.recipebook.kinds import EVERY

# The figures of the survey's Table 1, which are those of DC's tables.
_PUBLISHED = {
    "random": {"MNIST": {1: 64.9, 10: 95.1, 50: 97.9}, "CIFAR-10": {1: 14.4, 10: 26.0, 50: 43.4}},
    "herding": {"MNIST": {1: 89.2, 10: 93.7, 50: 94.9}, "CIFAR-10": {1: 21.5, 10: 31.6, 50: 40.4}},
    "forgetting": {"MNIST": {1: 35.5, 10: 68.1, 50: 88.2}, "CIFAR-10": {1: 13.5, 10: 23.3, 50: 23.3}},
}


# On images these choose by the features of a network that has trained on all of them.
_EMBEDDED = ("herding", "k-center", "kmeans-real")


def _recipe(name: str, title: str, paper: str) -> Recipe:
    published = _PUBLISHED.get(name, {})
    return Recipe(
        name,
        title,
        paper,
        EVERY,
        objective=None,
        summary={"init": name},
        steps=0,
        published=published,
        protocol={"MNIST": "dc-mnist", "CIFAR-10": "dc"} if published else None,
        overrides={"image": {"summary": {"space": "convnet"}}} if name in _EMBEDDED else {},
    )


RECIPES = [
    _recipe("random", "random real points, nothing optimised", ""),
    _recipe(
        "herding", "real points whose mean follows the mean of their group", "Welling, ICML 2009; arXiv 1611.07725"
    ),
    _recipe("k-center", "real points that cover their group", "Sener & Savarese, ICLR 2018, arXiv 1708.00489"),
    _recipe("kmeans-real", "the real points nearest to k-means centres", "Cui et al., NeurIPS 2022, arXiv 2207.09639"),
    _recipe("forgetting", "real points that training forgets most often", "Toneva et al., ICLR 2019, arXiv 1812.05159"),
]
