"""`condense_graphs` from a list of `Data` to a list of `Data`: what comes out trains PyG networks, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill import recipes
from datastill.artifact import load
from datastill.condense.graphs import condense_graphs
from datastill.errors import InputError
from datastill.evaluation import evaluate
from datastill.modalities.graphs import GraphsModality
from datastill.sources_graphs import read_graph_sets

pyg = pytest.importorskip("torch_geometric.data")
SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
RECIPES = ("doscond", "dm", "kip")


def rings_and_stars(count: int = 80, features: str = "numbers") -> list[Any]:
    """Rings (class 0) and stars (class 1) of 4 to 8 nodes."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        label, nodes = number % 2, 4 + number % 5
        place = torch.arange(nodes)
        ends = torch.stack([place, (place + 1) % nodes]) if label == 0 else torch.stack([0 * place[1:], place[1:]])
        fields: dict[str, Any] = {"edge_index": torch.cat([ends, ends.flip(0)], 1), "y": torch.tensor([label])}
        if features == "numbers":
            # Whether a node is the end of a ray, in a ring, or in the middle; and noise.
            degree = torch.bincount(fields["edge_index"][1], minlength=nodes).clamp(max=3)
            fields["x"] = torch.cat([F.one_hot(degree - 1, 3), torch.randn(nodes, 1, generator=rng)], 1)
        elif features == "categories":
            fields["x"] = torch.stack([torch.randint(3, (nodes,), generator=rng), label + 3 * (place == 0)], 1)
            fields["y"] = fields["y"][None]
        else:
            fields["num_nodes"] = nodes
        found.append(pyg.Data(**fields))
    return found


def quick(name: str = "doscond", steps: int = 5) -> dict[str, Any]:
    """Options of a short run that trains no network for validation."""
    recipe = dataclasses.replace(recipes[name].on("graphs"), steps=steps, validate_every=0)
    return {"recipe": recipe, "progress": False}


def test_result_is_a_plain_list_and_the_same_for_one_seed() -> None:
    data = rings_and_stars()
    state = torch.get_rng_state()
    first, again = (condense_graphs(data, per_class=2, seed=3, **quick()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert type(first) is list
    assert [int(part.y) for part in first] == [0, 0, 1, 1]
    for part, same in zip(first, again):
        assert type(part) is pyg.Data
        assert part.validate()
        assert part.x.dtype == torch.float32
        assert not part.x.requires_grad
        assert part.y.shape == (1,)
        assert torch.equal(part.x, same.x)
        assert torch.equal(part.edge_index, same.edge_index)
    other = condense_graphs(data, per_class=2, seed=4, **quick())
    assert any(part.x.shape != same.x.shape or not torch.equal(part.x, same.x) for part, same in zip(first, other))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("features", ["numbers", "categories", "none"])
def test_recipes_run_on_all_kinds_of_features(recipe: str, features: str) -> None:
    data = rings_and_stars(40, features)
    small = condense_graphs(data, per_class=2, **quick(recipe, 2))
    assert len(small) == 4
    assert all(torch.isfinite(part.x.float()).all() for part in small)
    assert small[0].y.shape == data[0].y.shape
    if features == "categories":
        assert all(part.x.dtype == torch.int64 for part in small)
        assert set(torch.cat([part.x for part in small])[:, 1].tolist()) <= {0, 1, 3, 4}
    if features == "none":
        assert small[0].x.shape[1] == 8  # degrees from 0 to that of a star's centre


def test_pyg_datasets_go_in() -> None:
    module = pytest.importorskip("torch_geometric.datasets")
    data = module.FakeDataset(num_graphs=30, avg_num_nodes=5, avg_degree=2, num_channels=4, num_classes=3, task="graph")
    small = condense_graphs(data, per_class=1, **quick())
    assert [int(part.y) for part in small] == list(range(data.num_classes))
    assert small[0].x.shape[1] == 4


def pyg_network(name: str, width: int, hidden: int = 32) -> Any:
    """A graph classifier as PyG's tutorial has it, called with a mini-batch's own x, edge_index and batch."""
    nn = pytest.importorskip("torch_geometric.nn")

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if name == "GIN":
                self.body = nn.GIN(width, hidden, 2)
            elif name == "GraphSAGE":
                self.body = nn.GraphSAGE(width, hidden, 2)
            else:
                self.body = nn.GCN(width, hidden, 2)
            self.head = torch.nn.Linear(hidden, 2)

        def forward(self, batch: Any) -> Any:
            pool = nn.global_add_pool if name == "GIN" else nn.global_mean_pool
            return self.head(pool(self.body(batch.x.float(), batch.edge_index), batch.batch))

    return Network()


@pytest.mark.parametrize("adjacency", ["bernoulli", "none"])
@pytest.mark.parametrize("name", ["GIN", "GCN", "GraphSAGE"])
def test_pyg_networks_train_on_the_result(name: str, adjacency: Any) -> None:
    loader = pytest.importorskip("torch_geometric.loader").DataLoader
    data = rings_and_stars()
    small = condense_graphs(data, per_class=8, adjacency=adjacency, **quick(steps=20))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = pyg_network(name, 4)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        losses = []
        for _ in range(60):
            for batch in loader(small, batch_size=8, shuffle=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(batch), batch.y)
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach()))
        net.eval()
        everything = next(iter(loader(data, batch_size=len(data))))
        found = float((net(everything).argmax(1) == everything.y).float().mean())
    assert losses[-1] < losses[0]
    assert found > 0.75


def test_distillation_lowers_the_loss_and_keeps_the_best_moment() -> None:
    data = rings_and_stars()
    recipe = dataclasses.replace(recipes["doscond"].on("graphs"), validator="ntk", steps=60, validate_every=20)
    result = condense_graphs.job(data, per_class=1, recipe=recipe, progress=False).run()
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert min(losses[-10:]) < 0.7 * losses[0]
    scores = {entry["step"]: entry["score"] for entry in result.history if "score" in entry}
    assert list(scores) == [0, 20, 40, 60]
    assert scores[result.best_step] == result.best_score == max(scores.values())


def test_budgets_and_sizes() -> None:
    data = rings_and_stars()
    small = condense_graphs(data, per_class=3, nodes=5, **quick())
    assert len(small) == 6
    assert max(part.num_nodes for part in small) <= 5
    recipe = quick(steps=2)["recipe"]
    keeping = dataclasses.replace(recipe, summary={**recipe.summary, "padding": "keep"})
    padded = condense_graphs(data, per_class=2, nodes=5, recipe=keeping, progress=False)
    assert {part.num_nodes for part in padded} == {5}


def test_edges_have_both_directions_and_adjacency_can_be_chosen() -> None:
    data = rings_and_stars()
    for recipe in RECIPES:
        bare = condense_graphs(data, per_class=1, adjacency="none", **quick(recipe, 2))
        assert all(part.edge_index.shape == (2, 0) for part in bare)
        linked = condense_graphs(data, per_class=1, adjacency="bernoulli", **quick(recipe, 2))
        assert any(part.num_edges > 0 for part in linked)
        assert all(part.is_undirected() and not part.has_self_loops() for part in linked if part.num_edges)


@pytest.mark.parametrize("features", ["numbers", "categories", "none"])
@pytest.mark.parametrize("recipe", ["doscond", "herding"])
def test_a_run_folder_gives_the_same_list_back(tmp_path: Path, recipe: str, features: str) -> None:
    data = rings_and_stars(40, features)
    options = {"recipe": recipe, "progress": False} if recipe == "herding" else quick(recipe, 2)
    small = condense_graphs(data, per_class=2, out=tmp_path / "run", **options)
    again = load(tmp_path / "run" / "artifact").dataset
    assert type(again) is list
    assert len(again) == len(small) == 4
    for part, known in zip(again, small):
        assert type(part) is pyg.Data
        assert part.to_dict().keys() == known.to_dict().keys()
        assert part.num_nodes == known.num_nodes
        for name, value in known.to_dict().items():
            assert torch.equal(part[name], value) if isinstance(value, torch.Tensor) else part[name] == value


def test_test_graphs_are_never_used() -> None:
    """What the held-out graphs for testing are does not change the result."""
    data = rings_and_stars()
    place = torch.arange(80)
    split = {"train": place[:50], "valid": place[50:65], "test": place[65:]}
    first = condense_graphs(data, per_class=2, split=split, **quick())
    changed = [part.clone() for part in data]
    for part in changed[65:]:
        part.x = part.x * 100
        part.y = 1 - part.y
    again = condense_graphs(changed, per_class=2, split=split, **quick())
    assert all(torch.equal(one.x, other.x) for one, other in zip(first, again))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"per_class": 0}, "per_class"),
        ({"per_class": 2.0}, "per_class must be an integer"),
        ({"nodes": 0}, "nodes"),
        ({"adjacency": "learned"}, "adjacency"),
        ({"recipe": "doscon"}, "Did you mean 'doscond'"),
        ({"recipe": "gcond"}, "not for graphs"),
        ({"metric": "auc"}, "metric"),
        ({"integers": "word"}, "reading of integers"),
        ({"split": {"train": [0, 1]}}, "split lacks 'valid'"),
        ({"split": {"train": [0, 1], "valid": [1], "test": [2]}}, "graph 1 into two parts"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        condense_graphs(rings_and_stars(20), out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: [], "data has no graph"),
        (lambda data: [*data, data[0].clone().update({"x": torch.ones(4, 9)})], "as many columns in every graph"),
        (lambda data: [*data, data[0].clone().update({"y": None})], r"data\[20\] has no y"),
        (
            lambda data: [part.update({"y": torch.zeros(1, 3)}) for part in data],
            "3 labels, but a graph may have only one",
        ),
        (lambda data: [part.update({"y": torch.zeros(1)}) for part in data], "one class, so there is nothing"),
        (lambda data: [part.update({"x": part.x * torch.nan}) for part in data], r"data\[0\]\.x has a NaN"),
        (
            lambda data: [part.update({"edge_index": part.edge_index + 5}) for part in data],
            r"data\[0\]\.edge_index must hold",
        ),
    ],
)
def test_refused_data(change: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        condense_graphs(change(rings_and_stars(20)), progress=False)


def test_more_graphs_than_a_class_has() -> None:
    data = [*rings_and_stars(40), pyg.Data(**{**rings_and_stars(1)[0].to_dict(), "y": torch.tensor([2])})]
    small = condense_graphs(data, per_class=3, **quick())
    assert [int(part.y) for part in small] == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(InputError, match="group 2 has only 1 training points: lower the budget"):
        condense_graphs(data, per_class=3, recipe="herding", progress=False)


@pytest.mark.slow
def test_mutag_of_one_graph_a_class() -> None:
    """DosCond's split and budget; a random graph of each class gives 67 % there, DosCond 82 %."""
    folder = SHARED / "graphs/tu/MUTAG"
    if not folder.is_dir():
        pytest.skip("MUTAG is not there")
    data = read_graph_sets(str(folder))["data"]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    split = {"test": order[:18], "valid": order[18:36], "train": order[36:]}
    modality = GraphsModality(data, split=split)
    found = []
    for seed in range(3):
        small = condense_graphs(data, per_class=1, split=split, seed=seed, progress=False)
        found.append(
            evaluate(small, modality, seeds=1, seed=seed, baselines=False, progress=False).rows[0].mean("accuracy")
        )
    assert sum(found) / 3 > 0.75


def test_a_run_scored_otherwise_does_not_go_on_in_its_folder(tmp_path: Path) -> None:
    graphs = rings_and_stars()
    condense_graphs(graphs, per_class=1, **quick(steps=2), metric="accuracy", out=tmp_path)
    with pytest.raises(InputError, match="metric was 'accuracy' and is now 'roc_auc'"):
        condense_graphs(graphs, per_class=1, **quick(steps=2), metric="roc_auc", out=tmp_path)


def test_more_graphs_than_there_are_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"2,000 graphs are asked for, and [0-9]+ are there to be distilled: ask for fewer"
    ):
        condense_graphs(rings_and_stars(), per_class=1000, **quick(steps=2))
