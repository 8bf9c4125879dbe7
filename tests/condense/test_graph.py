"""`condense_graph` from `Data` to `Data`: its budget, its errors, and its score on Cora."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill.artifact import load
from datastill.condense import graph as front_door
from datastill.condense.graph import condense_graph
from datastill.errors import InputError
from datastill.modalities.graph import GraphModality
from datastill.rng import generator

pyg = pytest.importorskip("torch_geometric.data")
PLANETOID = Path(__file__).resolve().parents[2] / "../shared/data/graphs/planetoid"
KINDS = ("gcond", "gcond-x", "gcdm", "doscond", "sfgc", "geom")


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


def test_run_folders_keep_large_propagated_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = two_circles()
    options: dict[str, Any] = {"per_class": 3, "steps": 3, "progress": False}
    plain = condense_graph(data, **options)
    condense_graph(data, out=tmp_path / "small", **options)
    assert not (tmp_path / "small/propagated").exists()
    monkeypatch.setattr(front_door, "_IN_MEMORY", 100)
    filed = condense_graph(data, out=tmp_path / "large", **options)
    assert list((tmp_path / "large/propagated").glob("*-2.npy"))
    torch.testing.assert_close(filed.x, plain.x)


def test_result_is_plain_data_and_the_same_for_one_seed() -> None:
    data = two_circles()
    state = torch.get_rng_state()
    first, again = (condense_graph(data, per_class=2, seed=3, steps=5, progress=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(first) is pyg.Data
    assert first.validate()
    assert first.edge_index.tolist() == [[0, 1, 2, 3]] * 2
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
    loops = condense_graph(two_circles(), recipe="gcond", adjacency="none", **options).edge_index
    assert torch.equal(loops[0], loops[1])
    learned = condense_graph(two_circles(), adjacency="learned", **options)
    assert learned.edge_weight.shape == (learned.edge_index.shape[1],)
    assert "edge_weight" not in condense_graph(two_circles(), adjacency="bernoulli", **options)


def pyg_network(name: str, width: int, classes: int) -> torch.nn.Module:
    """Two of PyG's layers with 16 units, called with the `Data`'s own x and edge_index, as its documentation has it."""
    nn = pytest.importorskip("torch_geometric.nn")
    layers = {
        "GCNConv": lambda a, b: nn.GCNConv(a, b),
        "SAGEConv": lambda a, b: nn.SAGEConv(a, b),
        "GATConv": lambda a, b: nn.GATConv(a, b),
        "ChebConv": lambda a, b: nn.ChebConv(a, b, K=2),
        "TransformerConv": lambda a, b: nn.TransformerConv(a, b),
        "SGConv": lambda a, b: nn.SGConv(a, b, K=1),
    }
    signature = "x, edge_index -> x"
    if name == "APPNP":
        steps = [(nn.Linear(width, classes), "x -> x"), (nn.APPNP(5, 0.1), signature)]
    else:
        make = layers[name]
        steps = [(make(width, 16), signature), (torch.nn.ReLU(), "x -> x"), (make(16, classes), signature)]
    network: torch.nn.Module = nn.Sequential("x, edge_index", steps)
    return network


@pytest.mark.parametrize("adjacency", ["none", "learned", "bernoulli"])
@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GATConv", "APPNP", "SGConv", "ChebConv", "TransformerConv"])
def test_every_pyg_network_trains_on_the_result(name: str, adjacency: Any) -> None:
    data = two_circles()
    small = condense_graph(data, per_class=4, adjacency=adjacency, progress=False, steps=20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = pyg_network(name, 6, 2)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02, weight_decay=1e-3)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(small.x, small.edge_index)[small.train_mask], small.y[small.train_mask])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found = net(data.x, data.edge_index).argmax(1)
    assert losses[-1] < 0.8 * losses[0]
    # Twenty steps leave learned edges about where they began, between all nodes: no network can do much with those.
    if adjacency == "none":
        assert float((found == data.y)[data.test_mask].float().mean()) > 0.85


def test_features_come_back_in_the_scale_of_the_input() -> None:
    data = two_circles()
    small = condense_graph(data, per_class=4, progress=False, steps=10)
    for factor in (1e-6, 1e6):
        scaled = data.clone()
        scaled.x = data.x * factor
        again = condense_graph(scaled, per_class=4, progress=False, steps=10)
        assert 0.8 < float((again.x / factor).abs().mean() / small.x.abs().mean()) < 1.25
    assert 0.3 < float(small.x.abs().mean() / data.x.abs().mean()) < 3


def test_a_run_folder_gives_the_same_data_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {"per_class": 2, "steps": 2, "progress": False}
    for adjacency in ("none", "learned"):
        small = condense_graph(two_circles(), adjacency=adjacency, out=tmp_path / adjacency, **options)
        again = load(tmp_path / adjacency / "artifact").dataset
        assert type(again) is pyg.Data
        assert again.to_dict().keys() == small.to_dict().keys()
        assert all(torch.equal(value, again[name]) for name, value in small.to_dict().items())


def odd_graphs() -> dict[str, Any]:
    """What real graphs bring: loops, directions, weights, nodes without edges, several components, unknown labels."""
    data = two_circles()
    ends = data.edge_index
    kept = (ends < 100).all(0)
    found = {
        "loops": {"edge_index": torch.cat([ends, torch.arange(0, 120, 3).repeat(2, 1)], 1)},
        "directed": {"edge_index": ends[:, : ends.shape[1] // 2]},
        "weighted": {"edge_weight": torch.rand(ends.shape[1], generator=torch.Generator().manual_seed(1)) + 0.1},
        "some weights are zero": {"edge_weight": (torch.arange(ends.shape[1]) % 3 > 0).float()},
        "twenty isolated nodes": {"edge_index": ends[:, kept]},
        "repeated edges": {"edge_index": torch.cat([ends, ends], 1)},
        "no edges": {"edge_index": ends[:, :0]},
        "half of the labels unknown": {"y": torch.where(data.test_mask & (torch.arange(120) % 2 > 0), -1, data.y)},
        "ids in place of masks": {
            name: data[name].nonzero().squeeze(1) for name in ("train_mask", "val_mask", "test_mask")
        },
        "sparse features": {"x": data.x.to_sparse()},
        "whole numbers": {"x": (10 * data.x).long()},
    }
    found["half of the labels unknown"]["test_mask"] = data.test_mask & (found["half of the labels unknown"]["y"] >= 0)
    return found


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
@pytest.mark.parametrize("what", list(odd_graphs()))
def test_odd_graphs(what: str, setting: Any) -> None:
    data = two_circles().update(odd_graphs()[what])
    small = condense_graph(data, per_class=3, setting=setting, progress=False, steps=5)
    assert small.validate()
    assert torch.isfinite(small.x).all()
    modality = GraphModality(data, setting=setting)
    predictor = modality.fit(modality.read(small), rng=generator(0))
    assert modality.score(predictor, "test")["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of ratio, nodes, per_class and nbytes, got none"),
        ({"ratio": 0.1, "nodes": 5}, "got ratio, nodes"),
        ({"ratio": 0.0}, r"ratio must be a number in \(0, 1\]"),
        ({"ratio": 1.5}, r"ratio must be a number in \(0, 1\]"),
        ({"ratio": 0.01}, "below one point for each of the 2 groups"),
        ({"ratio": 0.001}, "A budget of 0 points is below one point"),
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


@pytest.mark.parametrize("other", [{"unlabelled": "ignore"}, {"setting": "inductive"}])
def test_a_run_on_another_target_does_not_go_on_in_its_folder(other: dict[str, Any], tmp_path: Path) -> None:
    graph = two_circles()
    condense_graph(graph, nodes=6, steps=2, unlabelled="teach", out=tmp_path, progress=False)
    with pytest.raises(InputError, match=f"{next(iter(other))} was '.*' and is now"):
        condense_graph(graph, nodes=6, steps=2, **other, out=tmp_path, progress=False)


def test_more_nodes_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="1,000 nodes are asked for, and the graph has 120: ask for fewer"):
        condense_graph(two_circles(), nodes=1000, progress=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": 5}, "y must be class ids from 0 to 1"),
        ({"y": -1}, "y must be class ids from 0 to 1"),
        ({"x": float("nan")}, "x and y must be finite"),
        ({"train_mask": False}, "train_mask must have a node to train on"),
    ],
    ids=str,
)
def test_evaluation_refuses_a_damaged_dataset(changed: dict[str, Any], said: str) -> None:
    modality = GraphModality(two_circles())
    small = modality.subset([3, 3], rng=generator("subset"))
    for name, value in changed.items():
        setattr(small, name, torch.full_like(small[name], value))
    with pytest.raises(InputError, match=said):
        modality.read(small)
