"""Every objective on every modality: all pairs, on data small enough for a unit test.

Each pair is run end to end, its gradient is held against finite differences, and a stopped run against an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from datastill import distill, recipes
from datastill.checks import check_resume
from datastill.checks import objective as checks
from datastill.condense.common import first_summary, run_recipe
from datastill.evaluation import evaluate
from datastill.modalities.base import Modality
from datastill.objectives.base import Objective
from datastill.objectives.coresets import METHODS, choose, coreset
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.feature_regression import FeatureRegression
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.layer_matching import LayerMatching
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.statistics_matching import StatisticsMatching
from datastill.objectives.trajectory_matching import TrajectoryMatching
from datastill.rng import generator


def images() -> Modality:
    from datastill.modalities.image import ImageModality

    labels = torch.arange(3).repeat_interleave(8)
    pixels = torch.rand(24, 1, 8, 8, generator=generator("pixels"))
    pixels[torch.arange(24), 0, labels * 2] += 1.0
    even, odd = (pixels[::2], labels[::2]), (pixels[1::2], labels[1::2])
    return ImageModality(pixels, labels, validation=even, test=odd)


def texts() -> Modality:
    from datastill.modalities.text import TextModality

    words = {"good": ["bright", "warm", "lovely", "clever"], "bad": ["dull", "cold", "awful", "stupid"]}
    rng = generator("words")
    lines, labels = [], []
    for label, own in words.items():
        for _ in range(10):
            picks = torch.randint(4, (3,), generator=rng).tolist()
            lines.append("a film so " + " and ".join(own[pick] for pick in picks))
            labels.append(label)
    return TextModality(lines, labels, validation=(lines[::3], labels[::3]), test=(lines[1::3], labels[1::3]))


def graph() -> Modality:
    geometric = pytest.importorskip("torch_geometric.data")
    from datastill.modalities.graph import GraphModality

    rng = generator("graph")
    labels = torch.arange(30) % 3
    features = torch.randn(30, 6, generator=rng) + 2 * torch.eye(3, 6)[labels]
    linked = (torch.rand(30, 30, generator=rng) < 0.05 + 0.2 * (labels[:, None] == labels)).triu(1)
    edges = torch.cat([linked.nonzero().T, linked.T.nonzero().T], 1)
    masks = {f"{part}_mask": torch.arange(30) % 5 == number for number, part in ((3, "val"), (4, "test"))}
    data = geometric.Data(x=features, edge_index=edges, y=labels, train_mask=torch.arange(30) % 5 < 3, **masks)
    return GraphModality(data, hidden=16)


def graphs() -> Modality:
    geometric = pytest.importorskip("torch_geometric.data")
    from datastill.modalities.graphs import GraphsModality

    rng = generator("graphs")
    found = []
    # Enough graphs that a synthetic one is not at the real one it began from, where infinite-width kernels have a kink.
    for number in range(60):
        label, nodes = number % 2, 3 + number % 4
        linked = (torch.rand(nodes, nodes, generator=rng) < 0.3 + 0.4 * label).triu(1)
        features = torch.randn(nodes, 3, generator=rng) + label * torch.eye(1, 3)
        edges = torch.cat([linked.nonzero(), linked.nonzero().flip(1)]).T
        found.append(geometric.Data(x=features, edge_index=edges, y=torch.tensor([label])))
    place = torch.arange(60)
    return GraphsModality(found, split={"train": place[:40], "valid": place[40:50], "test": place[50:]}, hidden=8)


def interactions() -> Modality:
    from scipy import sparse

    from datastill.modalities.interactions import InteractionsModality

    rng = np.random.default_rng(0)
    taste = rng.random((24, 2)) @ rng.random((2, 15))
    rows, columns = np.nonzero(taste > np.quantile(taste, 0.55))
    logs = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(24, 15))
    return InteractionsModality.from_logs(logs, validation=0.15, test=0.15, width=16)


MODALITIES: dict[str, Callable[[], Modality]] = {
    "image": images,
    "text": texts,
    "graph": graph,
    "graphs": graphs,
    "interactions": interactions,
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "distribution-matching": lambda: DistributionMatching(real_size=4, refresh=2),
    "distribution-matching/gaussian": lambda: DistributionMatching(real_size=4, discrepancy="gaussian", class_loss=0.1),
    "feature-regression": lambda: FeatureRegression(pool=2, max_age=2, inner_lr=0.01, real_size=4, ridge=1e-2),
    "gradient-matching": lambda: GradientMatching(real_size=4, outer_loops=2, inner_epochs=1),
    "kernel-ridge": lambda: KernelRidge(real_size=4, ridge=1e-2),
    "layer-matching": lambda: LayerMatching(real_size=4, query_size=4, window=2, max_matches=2, max_epochs=2),
    "statistics-matching": lambda: StatisticsMatching(teacher_steps=3, weight=0.1),
    "unrolled": lambda: UnrolledTraining(inner_steps=3, inner_lr=0.1, momentum=0.5, real_size=4),
    "trajectory-matching": lambda: TrajectoryMatching(
        experts=1, expert_interval=1, max_start=2, span=1, inner_steps=2, inner_lr=0.1
    ),
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("image", {}),
    ("text", {}),
    ("graph", {}),
    ("graph", {"adjacency": "learned", "hidden": 8}),
    ("graph", {"adjacency": "bernoulli"}),
    ("graphs", {"nodes": 5}),
    ("graphs", {"adjacency": "none", "padding": "keep"}),
    ("interactions", {}),
    ("interactions", {"sampler": "gumbel", "draws": 5}),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("kind", "options"),
    OPTIONS,
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_pair(kind: str, options: dict[str, Any], objective: str) -> None:
    modality = MODALITIES[kind]()
    counts = [2] * modality.num_groups
    summary = modality.summary(counts, rng=generator("pair"), **options)
    before = {name: value.clone() for name, value in summary.state_dict().items()}
    result = distill(modality, summary, OBJECTIVES[objective](), steps=3, validate_every=0, lr=0.01, progress=False)
    assert all(np.isfinite(record["loss"]) for record in result.history)
    for parameters in summary.parameter_groups().values():
        assert all(parameter.isfinite().all() for parameter in parameters)
    assert any(not torch.equal(before[name], value) for name, value in summary.state_dict().items())
    found = evaluate(result, seeds=1, progress=False, learners=[modality.kernels[0]])
    assert {row.data for row in found.rows} >= {"summary", "random subset", "full data"}
    assert found.row("summary").points == sum(counts)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", MODALITIES)
def test_pair_keeps_the_contract(kind: str, objective: str) -> None:
    modality, make = MODALITIES[kind](), OBJECTIVES[objective]
    checks.check_finite_differences(make, modality)
    checks.check_same_seed_same_loss(make, modality)
    check_resume(modality, make, steps=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODALITIES)
def test_a_coreset_of_every_modality(kind: str, method: str) -> None:
    """As a native dataset, and as what a summary begins from."""
    modality = MODALITIES[kind]()
    counts = [2] * modality.num_groups
    for space in ("vectors", modality.learners[0]):
        index = choose(modality, counts, method=method, space=space, rng=generator("coreset"))
        groups = modality.full().groups[index]
        batch = modality.read(modality.pick(index))
        assert torch.equal(batch.groups, groups)
        assert torch.bincount(groups).tolist() == counts
        assert len(index.unique()) == sum(counts)
    summary = modality.summary(counts, rng=generator("coreset"), init=index)
    assert torch.equal(summary().groups, groups)
    found = evaluate(coreset(modality, counts, method=method), modality, seeds=1, progress=False, baselines=False)
    assert found.rows[0].points == sum(counts)


# Options that suit real datasets but ask for more than the data of a unit test have.
SMALLER: dict[str, dict[str, Any]] = {"distill-cf": {"draws": 5}, "haba": {"styles": 2}, "linba": {"bases": 4}}
STORED_TOGETHER = {"idc": 4}  # images of a class


@pytest.mark.parametrize("name", recipes)
def test_a_recipe_fits_the_data_it_names(name: str) -> None:
    for kind in recipes[name].modalities:
        recipe, modality = recipes[name].on(kind), MODALITIES[kind]()
        options = {**recipe.summary, **SMALLER.get(name, {})}
        if recipe.objective is None:
            result = run_recipe(modality, [2] * modality.num_groups, recipe, progress=False)
            assert result.summary.num_points == 2 * modality.num_groups
            assert result.best_score is not None
            continue
        points = STORED_TOGETHER.get(name, 2)
        summary = first_summary(modality, [points] * modality.num_groups, seed=0, **options)
        roles = set(summary.parameter_groups())
        if isinstance(recipe.lr, dict):
            assert roles <= set(recipe.lr), f"{name} has no rate for a part of its summary"
        assert set(recipe.alternate or ()) <= roles
        assert recipe.validator is None or modality.knows(recipe.validator)
        learner = recipe.settings.get("learner")
        assert learner is None or modality.knows(learner)
