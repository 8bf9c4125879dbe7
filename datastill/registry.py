"""Objectives and modalities by name: the library's own and those that installed packages bring.

Another package registers its class by an entry point in the group `datastill.objectives` or `datastill.modalities`.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

from datastill.errors import unknown_name

_OWN = {
    "objectives": {
        "distribution-matching": "datastill.objectives.distribution_matching:DistributionMatching",
        "feature-regression": "datastill.objectives.feature_regression:FeatureRegression",
        "gradient-matching": "datastill.objectives.gradient_matching:GradientMatching",
        "kernel-ridge": "datastill.objectives.kernel_ridge:KernelRidge",
        "layer-matching": "datastill.objectives.layer_matching:LayerMatching",
        "statistics-matching": "datastill.objectives.statistics_matching:StatisticsMatching",
        "trajectory-matching": "datastill.objectives.trajectory_matching:TrajectoryMatching",
        "unrolled": "datastill.objectives.meta_model:UnrolledTraining",
    },
    "modalities": {
        "graph": "datastill.modalities.graph:GraphModality",
        "graphs": "datastill.modalities.graphs:GraphsModality",
        "image": "datastill.modalities.image:ImageModality",
        "interactions": "datastill.modalities.interactions:InteractionsModality",
        "text": "datastill.modalities.text:TextModality",
    },
}


def names(kind: str) -> list[str]:
    """Known names of `kind`, "objectives" or "modalities"."""
    return sorted({*_OWN[kind], *(point.name for point in metadata.entry_points(group=f"datastill.{kind}"))})


def find(kind: str, name: str) -> Any:
    """The class registered as `name`; an `InputError` suggests the nearest name if there is none."""
    if name in _OWN[kind]:
        module, _, attribute = _OWN[kind][name].partition(":")
        return getattr(import_module(module), attribute)
    for point in metadata.entry_points(group=f"datastill.{kind}", name=name):
        return point.load()
    raise unknown_name(kind.removesuffix("s").replace("modalitie", "modality"), name, names(kind))
