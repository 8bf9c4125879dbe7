"""Every objective keeps the contract, on toy data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from datastill.checks import OBJECTIVE_CHECKS, ToyModality
from datastill.objectives.base import Objective
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.feature_regression import FeatureRegression
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.layer_matching import LayerMatching
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.statistics_matching import StatisticsMatching
from datastill.objectives.trajectory_matching import TrajectoryMatching

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "distribution-matching": lambda: DistributionMatching(real_size=5),
    "distribution-matching/warm": lambda: DistributionMatching(real_size=None, refresh=3, warmup=3, weighting="share"),
    "distribution-matching/m3d": lambda: DistributionMatching(real_size=5, discrepancy="gaussian"),
    "distribution-matching/idm": lambda: DistributionMatching(
        real_size=5, refresh=2, warmup=4, spread_warmup=True, class_loss=0.5
    ),
    "feature-regression": lambda: FeatureRegression(
        pool=3, max_age=2, inner_lr=0.05, inner_batch=4, real_size=5, ridge=1e-2
    ),
    "gradient-matching": lambda: GradientMatching(outer_loops=3, inner_epochs=2, real_size=5),
    "gradient-matching/dcc": lambda: GradientMatching(
        outer_loops=2, inner_epochs=1, real_size=5, contrast_after=2, contrast_matches=1
    ),
    # All groups at a step, since one loss has to reach every point; turns have tests of their own.
    "gradient-matching/idc": lambda: GradientMatching(
        outer_loops=2,
        inner_epochs=1,
        real_size=5,
        trained_on="real",
        inner_momentum=0.9,
        distance="hidden-squared",
        groups_per_step=3,
    ),
    "gradient-matching/bfloat16": lambda: GradientMatching(outer_loops=2, real_size=5, real_precision="bfloat16"),
    "gradient-matching/doscond": lambda: GradientMatching(outer_loops=1, inner_epochs=0, distance="squared"),
    "gradient-matching/gcond": lambda: GradientMatching(
        outer_loops=4, inner_epochs=1, inner_optimizer="adam", inner_batch=4, weighting="size", distance="cosine"
    ),
    "kernel-ridge": lambda: KernelRidge(ridge=1e-3, real_size=5),
    "kernel-ridge/annealed": lambda: KernelRidge(ridge=(1.0, 1e-2), anneal=4, real_size=5),
    "kernel-ridge/features": lambda: KernelRidge(kernel="features", ridge=1e-3, real_size=None, learners=2),
    "kernel-ridge/rfad": lambda: KernelRidge(
        kernel="features", ridge=5e-3, real_size=5, learners=2, draw="gaussian", platt=True
    ),
    "layer-matching": lambda: LayerMatching(real_size=5, query_size=6, window=2, max_matches=3, max_epochs=3),
    "statistics-matching": lambda: StatisticsMatching(teacher_steps=5, weight=1.0),
    "statistics-matching/several": lambda: StatisticsMatching(
        teachers=2, teacher_steps=3, synthetic_limit=4, weight=0.1
    ),
    "unrolled": lambda: UnrolledTraining(inner_steps=4, inner_lr=0.1, real_size=5),
    "unrolled/bfloat16": lambda: UnrolledTraining(inner_steps=4, inner_lr=0.1, real_size=5, inner_precision="bfloat16"),
    "unrolled/dd": lambda: UnrolledTraining(
        inner_steps=3, inner_lr=0.1, lr_per_step=True, momentum=0.5, inner_batch=3, weight_decay=0.01, augment=True
    ),
    "unrolled/pool": lambda: UnrolledTraining(
        inner_steps=2, inner_lr=0.1, momentum=0.5, pool=2, max_age=4, real_size=5
    ),
    "unrolled/platt": lambda: UnrolledTraining(inner_steps=4, inner_lr=0.1, real_size=5, zero_head=True, platt=True),
    "trajectory-matching": lambda: TrajectoryMatching(
        experts=2, max_start=2, span=1, inner_steps=3, expert_batch=16, inner_lr=0.1
    ),
    "trajectory-matching/datm": lambda: TrajectoryMatching(
        experts=1, first_max_start=1, max_start=3, expand_steps=2, span=1, inner_steps=2, expert_optimizer="adam"
    ),
}


@pytest.mark.parametrize("check", OBJECTIVE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name: str, check: Callable[..., None]) -> None:
    check(OBJECTIVES[name], ToyModality())
