"""`condense_graph` from `Data` to `Data`: its budget, its errors, and its score on Cora."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill.condense.graph import condense_graph
from datastill.errors import InputError
from datastill.modalities.graph import GraphModality
from datastill.rng import generator

pyg = pytest.importorskip("torch_geometric.data")
PLANETOID = Path(__file__).resolve().parents[2] / "../shared/data/graphs/planetoid"
KINDS = ("gcond", "gcond-x", "gcdm", "doscond")


def two_circles(nodes: int = 120) -> Any:
    """Two rings of nodes, whose noisy features tell the ring better after propagation."""
    rng = torch.Generator().manual_seed(0)
    ring = torch.arange(nodes) % 2
    forward = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 2) % nodes])
    x = torch.randn(nodes, 6, generator=rng) + 1.5 * F.one_hot(ring, 6)
    place = torch.arange(nodes)
    return pyg.Data(
        x=x,
        edge_index=torch.cat([forward, forward.flip(0)], 1),
        y=ring,
        train_mask=place < 40,
        val_mask=(place >= 40) & (place < 80),
        test_mask=place >= 80,
    )


def test_budgets() -> None:
    data = two_circles()
    options: dict[str, Any] = {"steps": 1, "progress": False}
    assert condense_graph(data, ratio=0.07, **options).y.tolist() == [0] * 4 + [1] * 4  # 8.4 nodes of 120
    assert condense_graph(data, nodes=5, **options).num_nodes == 5
    assert condense_graph(data, per_class=3, **options).y.tolist() == [0] * 3 + [1] * 3


def test_result_is_plain_data_and_the_same_for_one_seed() -> None:
    data = two_circles()
    state = torch.get_rng_state()
    first, again = (condense_graph(data, per_class=2, seed=3, steps=5, progress=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(first) is pyg.Data
    assert first.validate()
    assert first.edge_index.shape == (2, 0)
    assert first.train_mask.all()
    assert first.x.dtype == data.x.dtype
    assert not first.x.requires_grad
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, condense_graph(data, per_class=2, seed=4, steps=5, progress=False).x)


@pytest.mark.parametrize("recipe", KINDS)
def test_published_recipes_run(recipe: str) -> None:
    small = condense_graph(two_circles(), per_class=2, recipe=recipe, steps=2, progress=False)
    assert small.num_nodes == 4
    assert torch.isfinite(small.x).all()


def test_adjacency_can_be_chosen() -> None:
    options: dict[str, Any] = {"per_class": 3, "steps": 2, "progress": False}
    assert condense_graph(two_circles(), recipe="gcond", adjacency="none", **options).edge_index.numel() == 0
    learned = condense_graph(two_circles(), adjacency="learned", **options)
    assert learned.edge_weight.shape == (learned.edge_index.shape[1],)
    assert "edge_weight" not in condense_graph(two_circles(), adjacency="bernoulli", **options)


def test_any_pyg_network_trains_on_the_result() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    data = two_circles()
    small = condense_graph(data, per_class=4, progress=False, steps=20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.GCN(6, 16, 2, 2)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(net(small.x, small.edge_index), small.y).backward()
            optimizer.step()
        found = net(data.x, data.edge_index).argmax(1)
    assert float((found == data.y)[data.test_mask].float().mean()) > 0.9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of ratio, nodes and per_class, got none"),
        ({"ratio": 0.1, "nodes": 5}, "got ratio, nodes"),
        ({"ratio": 0.0}, r"ratio must be a number in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio must be a number in \(0, 1\]"),
        ({"ratio": 0.01}, "below one point for each of the 2 groups"),
        ({"nodes": 1}, "below one point"),
        ({"nodes": 0}, "nodes must be an integer"),
        ({"per_class": 2.0}, "per_class must be an integer"),
        ({"per_class": 2, "recipe": "gcnd"}, "Did you mean 'gcond'"),
        ({"per_class": 2, "recipe": "distill-cf"}, "not for graph"),
        ({"per_class": 2, "adjacency": "sparse"}, "Unknown adjacency"),
        ({"per_class": 2, "setting": "deductive"}, "Did you mean 'inductive'"),
        ({"per_class": 2, "unlabelled": "drop"}, "Unknown choice of unlabelled"),
        ({"per_class": 2, "split": 1.5}, "split must be"),
    ],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        condense_graph(two_circles(), progress=False, **options)


@pytest.mark.slow
def test_cora(tmp_path: Path) -> None:
    """35 nodes train a GCN to at least 81 % on the public test split, the mean over 5 seeds of the whole run."""
    if not PLANETOID.exists():
        pytest.skip("the Planetoid files are not beside this checkout")
    shutil.copytree(PLANETOID, tmp_path / "planetoid")
    datasets = pytest.importorskip("torch_geometric.datasets")
    transforms = pytest.importorskip("torch_geometric.transforms")
    data = datasets.Planetoid(str(tmp_path / "planetoid"), "Cora", transform=transforms.NormalizeFeatures())[0]
    modality = GraphModality(data)
    scores, random = [], []
    for seed in range(5):
        small = condense_graph(data, ratio=0.013, seed=seed, progress=False)
        assert small.num_nodes == 35
        predictor = modality.fit(modality.read(small), rng=generator(seed))
        scores.append(modality.score(predictor, "test")["accuracy"])
        subset = modality.read(modality.subset([5] * 7, rng=generator(seed)))
        random.append(modality.score(modality.fit(subset, rng=generator(seed)), "test")["accuracy"])
    assert sum(scores) / 5 > 0.81
    assert sum(scores) / 5 > sum(random) / 5 + 0.1
