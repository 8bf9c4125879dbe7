"""The graph modality on small graphs, against its contract, closed forms and brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.nodes import Nodes, normalised
from datastill.checks import check_modality
from datastill.errors import InputError
from datastill.evaluation import evaluate
from datastill.modalities import graph_target
from datastill.modalities.graph import GraphModality
from datastill.rng import generator

pyg = pytest.importorskip("torch_geometric.data")


def small_graph(seed: int = 0, nodes: int = 60, classes: int = 3, width: int = 8, **changes: Any) -> Any:
    """Nodes of a class are alike and mostly linked among themselves; two nodes have no edges, one has a loop."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(nodes) % classes
    x = torch.randn(nodes, width, generator=rng) + 2 * torch.nn.functional.one_hot(labels, width)
    pairs = torch.randint(0, nodes - 2, (2, 8 * nodes), generator=rng)
    kept = (labels[pairs[0]] == labels[pairs[1]]) | (torch.rand(8 * nodes, generator=rng) < 0.05)
    pairs = pairs[:, kept & (pairs[0] != pairs[1])][:, : 3 * nodes].unique(dim=1)
    edges = torch.cat([pairs, pairs.flip(0), torch.tensor([[4], [4]])], 1).unique(dim=1)
    place = torch.arange(nodes)
    fields = {
        "x": x,
        "edge_index": edges,
        "y": labels,
        "train_mask": place < 0.4 * nodes,
        "val_mask": (place >= 0.4 * nodes) & (place < 0.7 * nodes),
        "test_mask": place >= 0.7 * nodes,
    }
    return pyg.Data(**{name: value for name, value in {**fields, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"unlabelled": "teach"}, {"init": "kmeans"}),
        ({"setting": "inductive"}, {"init": "propagated"}),
        ({}, {"adjacency": "learned", "init": "noise"}),
        ({}, {"adjacency": "bernoulli"}),
        ({}, {"labels": "learned"}),
    ],
)
def test_contract(settings: dict[str, Any], options: dict[str, Any]) -> None:
    check_modality(GraphModality(small_graph(nodes=36, width=5), **settings), **options)


def test_data_is_left_as_it_is() -> None:
    data = small_graph()
    before = {name: value.clone() for name, value in data.to_dict().items()}
    modality = GraphModality(data, unlabelled="teach")
    modality.summary([2, 2, 2], rng=generator(0), init="kmeans").export()
    modality.fit(modality.real(), "sgc", rng=generator(0))
    assert data.to_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in data.to_dict().items())


def test_real_batches_share_the_graph() -> None:
    modality = GraphModality(small_graph())
    first, second = modality.real(2, rng=generator(0)), modality.real(2, rng=generator(1))
    assert first.inputs.features is second.inputs.features
    assert first.inputs.hops is second.inputs.hops
    assert modality.real().inputs.rows.tolist() == sorted(range(24), key=lambda node: (node % 3, node))


def test_kernel_reads_propagated_features_of_unit_size() -> None:
    data = small_graph()
    modality = GraphModality(data)
    batch = modality.real()
    operator = normalised(data.edge_index, None, 60).dense()
    reached = (operator @ operator @ data.x)[batch.inputs.rows]
    scaled = reached / reached.square().mean().sqrt()
    expected = InfiniteReLU(1)(scaled, scaled)
    torch.testing.assert_close(modality.kernel("ntk")(batch.inputs, batch.inputs), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled.square().sum(1).mean() / 8, torch.tensor(1.0))


def test_kernel_cache_follows_rows_and_device_dtype() -> None:
    modality = GraphModality(small_graph())
    kernel = modality.kernel()
    some, others = modality.real(2, rng=generator(0)), modality.real(2, rng=generator(5))
    apart = kernel(some.inputs, some.inputs).diagonal(), kernel(others.inputs, others.inputs).diagonal()
    assert not torch.equal(*apart)
    torch.testing.assert_close(kernel(some.inputs, some.inputs).diagonal(), apart[0])
    wide = modality.to(dtype=torch.float64).real(2, rng=generator(0))
    torch.testing.assert_close(kernel(wide.inputs, wide.inputs).diagonal(), apart[0].double(), rtol=1e-3, atol=0)


def test_allocation_follows_training_classes() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
    train = torch.arange(100)
    data = pyg.Data(
        x=torch.randn(120, 2, generator=torch.Generator().manual_seed(0)),
        edge_index=torch.empty(2, 0, dtype=torch.int64),
        y=torch.cat([labels, torch.arange(20) % 4]),
        train_mask=train,
        val_mask=torch.arange(100, 110),
        test_mask=torch.arange(110, 120),
    )
    modality = GraphModality(data)
    assert modality.group_sizes == [60, 30, 9, 1]
    for points in range(4, 60):
        counts = modality.allocate(points)
        assert sum(counts) == points
        assert min(counts) >= 1
        assert counts == sorted(counts, reverse=True)
    assert modality.allocate(100) == [60, 30, 9, 1]
    assert modality.allocate(10)[0] in (5, 6)
    with pytest.raises(InputError, match="below one point"):
        modality.allocate(3)


def test_initial_features() -> None:
    data = small_graph()
    modality = GraphModality(data)
    operator = normalised(data.edge_index, None, 60).dense()
    reached = operator @ operator @ data.x
    for init, pool in (("real", data.x), ("propagated", reached)):
        batch = modality.summary([3, 2, 4], rng=generator(1), init=init)()
        assert batch.groups.tolist() == [0] * 3 + [1] * 2 + [2] * 4
        for point, label in zip(batch.inputs.features, batch.groups):
            members = pool[:24][data.y[:24] == label]
            assert (members - point).abs().amax(1).min() < 1e-5
    centres = modality.summary([1, 1, 1], rng=generator(1), init="kmeans")().inputs.features
    means = torch.stack([reached[:24][data.y[:24] == label].mean(0) for label in range(3)])
    torch.testing.assert_close(centres, means)


def test_more_points_than_training_nodes_are_told_apart() -> None:
    modality = GraphModality(small_graph())
    for init in ("real", "propagated", "kmeans"):
        features = modality.summary([20, 20, 20], rng=generator(0), init=init)().inputs.features
        assert len(features.unique(dim=0)) == 60
    with pytest.raises(InputError, match="only 8 training points"):
        modality.subset([9, 1, 1], rng=generator(0))


def test_subset_is_the_induced_graph() -> None:
    data = small_graph(edge_weight=None)
    modality = GraphModality(data)
    subset = modality.subset([8, 8, 8], rng=generator(0))
    where = [int((data.x == row).all(1).nonzero()) for row in subset.x]
    assert [int(data.y[node]) for node in where] == subset.y.tolist()
    linked = set(zip(*data.edge_index.tolist()))
    found = {(where[a], where[b]) for a, b in zip(*subset.edge_index.tolist())}
    assert found == {(a, b) for a, b in linked if a in where and b in where}
    assert subset.edge_index.shape[1] == len(found)


def test_sizes_count_the_smaller_storage() -> None:
    x = torch.zeros(10, 100)
    x[:, 0] = 1.0
    graph = pyg.Data(x=x, edge_index=torch.zeros(2, 3, dtype=torch.int64), y=torch.zeros(10, dtype=torch.int64))
    modality = GraphModality(small_graph())
    sparse = 10 * (4 + 4) + 11 * 8
    assert modality.size(graph).nbytes == sparse + 3 * 16 + 10 * 8
    assert modality.size(pyg.Data(x=x + 1, edge_index=graph.edge_index, y=graph.y)).nbytes == 4000 + 48 + 80
    assert modality.full_size().points == 24


def test_export_round_trip_and_pack() -> None:
    modality = GraphModality(small_graph())
    choices: list[dict[str, Any]] = [{}, {"labels": "learned"}, {"adjacency": "learned"}, {"adjacency": "bernoulli"}]
    for options in choices:
        data = modality.summary([2, 1, 2], rng=generator(0), **options).export()
        assert data.validate()
        tensors, meta = modality.pack(data)
        again = modality.unpack(tensors, meta)
        assert again.to_dict().keys() == data.to_dict().keys()
        assert all(torch.equal(value, again[name]) for name, value in data.to_dict().items())
        assert bool(data.train_mask.all())


def test_exported_edges_give_the_operator_of_the_summary() -> None:
    modality = GraphModality(small_graph())
    summary = modality.summary([3, 3, 3], rng=generator(0), adjacency="learned", threshold=0.0)
    exported = modality.read(summary.export())
    torch.testing.assert_close(exported.inputs.adjacency.dense(), summary().inputs.adjacency)
    typical = float(summary.get_submodule("edges")(summary.features).detach().median())
    strict = modality.summary([3, 3, 3], rng=generator(0), adjacency="learned", threshold=typical).export()
    assert 0 < strict.edge_index.shape[1] < 72
    assert float(strict.edge_weight.min()) > typical


def test_nodes_that_no_edge_reaches_have_a_loop() -> None:
    summary = GraphModality(small_graph()).summary([3, 3, 3], rng=generator(0), adjacency="bernoulli")
    logits = summary.get_parameter("edges.logits")
    with torch.no_grad():
        logits.fill_(-1.0)
        logits[0] = 1.0  # the pair of nodes 0 and 1
    edges = sorted(zip(*summary.export().edge_index.tolist()))
    assert edges == sorted([(0, 1), (1, 0), *((node, node) for node in range(2, 9))])


def test_inductive_parts_do_not_see_each_other() -> None:
    data = small_graph()
    changed = data.clone()
    changed.x = data.x.clone()
    changed.x[~data.train_mask] += 100
    modality, other = GraphModality(data, setting="inductive"), GraphModality(changed, setting="inductive")
    torch.testing.assert_close(modality.real().inputs.propagated(2), other.real().inputs.propagated(2))
    validation = next(iter(modality.held_out("validation")))
    nodes = data.val_mask.nonzero().squeeze(1)
    inside = torch.isin(data.edge_index, nodes).all(0)
    renumbered = torch.searchsorted(nodes, data.edge_index[:, inside])
    operator = normalised(renumbered, None, len(nodes)).dense()
    torch.testing.assert_close(validation.inputs.propagated(1), operator @ data.x[nodes])
    with pytest.raises(InputError, match="transductive"):
        GraphModality(data, setting="inductive", unlabelled="teach")


def test_teaching_labels_unlabelled_nodes_without_their_labels() -> None:
    data = small_graph(nodes=150)
    modality = GraphModality(data, unlabelled="teach")
    batch = modality.real()
    assert sorted(batch.inputs.rows.tolist()) == list(range(150))
    taught = torch.empty(150, dtype=torch.int64)
    taught[batch.inputs.rows] = batch.targets
    assert torch.equal(taught[data.train_mask], data.y[data.train_mask])
    assert float((taught == data.y)[data.test_mask].float().mean()) > 0.9
    hidden = data.clone()
    hidden.y = torch.where(data.test_mask, (data.y + 1) % 3, data.y)
    assert torch.equal(GraphModality(hidden, unlabelled="teach").real().targets, batch.targets)
    assert torch.equal(modality.full().inputs.rows.sort().values, data.train_mask.nonzero().squeeze(1))


def test_features_propagated_into_files_are_the_same(tmp_path: Path) -> None:
    data = small_graph(nodes=150)
    plain = GraphModality(data, unlabelled="teach")
    for _ in range(2):  # written, then found
        filed = GraphModality(data, unlabelled="teach", cache=tmp_path)
        assert filed.scale == pytest.approx(plain.scale)
        assert torch.equal(filed.real().targets, plain.real().targets)
        torch.testing.assert_close(filed.vectors(filed.full().inputs), plain.vectors(plain.full().inputs))
        first, second = (
            one.summary([4, 4, 4], rng=generator(0), init="kmeans")().inputs.features for one in (plain, filed)
        )
        torch.testing.assert_close(first, second)
    other = data.clone()
    other.x = data.x + 1
    assert GraphModality(other, cache=tmp_path).scale != pytest.approx(plain.scale)


def test_scores_do_not_depend_on_what_is_kept_or_in_how_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_graph(nodes=150)
    kept = GraphModality(data)
    predictor = kept.fit(kept.full(), "gcn", rng=generator(0))
    assert next(iter(kept.held_out("test"))) is next(iter(kept.held_out("test")))
    expected = kept.score(predictor, "test")
    monkeypatch.setattr(graph_target, "_KEPT", 0)
    monkeypatch.setattr(graph_target, "_CHUNK", 7)
    parts = GraphModality(data)
    assert len(list(parts.held_out("test"))) > 1
    assert parts.score(predictor, "test") == expected


def test_score_counts_right_answers() -> None:
    data = small_graph()
    modality = GraphModality(data)

    def always_one(nodes: Nodes) -> Tensor:
        return torch.nn.functional.one_hot(torch.ones(len(nodes), dtype=torch.int64), 3).float()

    assert modality.score(always_one, "test")["accuracy"] == pytest.approx(
        float((data.y[data.test_mask] == 1).float().mean())
    )


def test_training_on_the_graph_learns_it() -> None:
    modality = GraphModality(small_graph(nodes=150))
    for learner in ("gcn", "sgc", "ntk"):
        predictor = modality.fit(modality.real(), learner, rng=generator(0))
        assert modality.score(predictor, "test")["accuracy"] > 0.9


def test_the_published_protocol_by_name() -> None:
    modality = GraphModality(small_graph(nodes=150))
    subset = modality.subset([3, 3, 3], rng=generator(0))
    found = evaluate(subset, modality, protocol="gcond", seeds=1, progress=False)
    assert [row.learner for row in found.rows] == ["gcn"] * 3
    assert found.rules["gcond"]["training"]["steps"] == 600
    assert found.row("full data").mean("accuracy") > 0.9


def test_graph_without_edges() -> None:
    modality = GraphModality(small_graph(edge_index=torch.empty(2, 0, dtype=torch.int64)), unlabelled="teach")
    assert modality.real().inputs.adjacency is None
    assert modality.score(modality.fit(modality.real(), "gcn", rng=generator(0)), "test")["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init": "reel"}, "Did you mean 'real'"),
        ({"adjacency": "lerned"}, "Did you mean 'learned'"),
        ({"labels": "soft"}, "kind of labels"),
        ({"adjacensy": "none"}, "Did you mean 'adjacency'"),
        ({"adjacency": "learned", "threshold": 1.5}, "threshold"),
        ({"adjacency": "bernoulli", "temperature": (1.0, 0.0)}, "temperature"),
    ],
)
def test_bad_summary_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        GraphModality(small_graph()).summary([1, 1, 1], rng=generator(0), **options)


def test_bad_counts() -> None:
    modality = GraphModality(small_graph())
    with pytest.raises(InputError, match="3 classes"):
        modality.summary([1, 1], rng=generator(0))
    with pytest.raises(InputError, match=r"counts\[1\]"):
        modality.summary([1, 0, 1], rng=generator(0))
