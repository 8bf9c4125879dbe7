"""Real points instead of synthetic ones: what distillation has to beat, on every kind of data."""

from __future__ import annotations

from datastill.recipe import Recipe

_ANY = ("image", "text", "graph", "graphs", "interactions")


def _recipe(name: str, title: str, paper: str) -> Recipe:
    return Recipe(name, title, paper, _ANY, objective=None, summary={"init": name}, steps=0)


RECIPES = [
    _recipe("random", "random real points, nothing optimised", ""),
    _recipe(
        "herding", "real points whose mean follows the mean of their group", "Welling, ICML 2009; arXiv 1611.07725"
    ),
    _recipe("k-center", "real points that cover their group", "Sener & Savarese, ICLR 2018, arXiv 1708.00489"),
    _recipe("kmeans-real", "the real points nearest to k-means centres", "Cui et al., NeurIPS 2022, arXiv 2207.09639"),
    _recipe("forgetting", "real points that training forgets most often", "Toneva et al., ICLR 2019, arXiv 1812.05159"),
]
