"""The modality of sets of graphs, against its contract, closed forms, networkx, scikit-learn and brute force."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.training import Protocol
from datastill.checks import check_modality
from datastill.errors import InputError
from datastill.evaluation import evaluate
from datastill.modalities.graphs import GraphsModality
from datastill.modalities.graphs_data import read_graphs
from datastill.modalities.graphs_features import Categories, Degrees, Numbers, features_for
from datastill.modalities.graphs_initial import central_graphs, cut, fitting
from datastill.modalities.graphs_metrics import roc_auc
from datastill.modalities.graphs_summary import GraphsSummary
from datastill.objectives.coresets import METHODS, coreset
from datastill.rng import generator

pyg = pytest.importorskip("torch_geometric.data")
PARTS = {"train": torch.arange(40), "valid": torch.arange(40, 50), "test": torch.arange(50, 60)}


def small_sets(count: int = 60, features: str = "numbers", classes: int = 2, smallest: int = 2) -> list[Any]:
    """Denser graphs have the higher class, and so do larger features; sizes differ."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        label, nodes = number % classes, smallest + number % 5
        linked = (torch.rand(nodes, nodes, generator=rng) < 0.25 + 0.5 * label / classes).triu(1)
        edges = torch.cat([linked.nonzero(), linked.nonzero().flip(1)]).T.contiguous()
        fields: dict[str, Any] = {"edge_index": edges, "y": torch.tensor([label])}
        if features == "numbers":
            fields["x"] = torch.randn(nodes, 3, generator=rng) + label
        elif features == "categories":
            fields["x"] = torch.stack([torch.randint(5, 8, (nodes,), generator=rng), torch.full((nodes,), label)], 1)
        else:
            fields["num_nodes"] = nodes
        found.append(pyg.Data(**fields))
    return found


def small(features: str = "numbers", **options: Any) -> GraphsModality:
    return GraphsModality(small_sets(features=features), split=PARTS, hidden=8, **options)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({}, {"adjacency": "none", "init": "central"}),
        ({"pool": "sum"}, {"padding": "keep"}),
        ({}, {"init": "noise", "nodes": 4}),
        ({"features": "categories"}, {}),
        ({"features": "categories", "integers": "number"}, {"adjacency": "none"}),
        ({"features": "none", "hops": 1}, {}),
    ],
)
def test_contract(settings: dict[str, Any], options: dict[str, Any]) -> None:
    check_modality(small(**settings), **options)


def test_data_are_left_as_they_are() -> None:
    data = small_sets()
    before = [part.clone() for part in data]
    modality = GraphsModality(data, split=PARTS, hidden=8)
    summary = modality.summary([2, 2], rng=generator(0))
    evaluate(summary, modality, seeds=1, progress=False, protocol=Protocol(steps=2), learners=["gcn", "profile"])
    for part, known in zip(data, before):
        assert part.keys() == known.keys()
        assert all(torch.equal(part[name], known[name]) for name in part.keys())  # noqa: SIM118  # Data iterates over pairs


# --- metric -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_roc_auc_is_the_share_of_pairs_in_order(points: list[tuple[int, bool]]) -> None:
    scores, positive = torch.tensor([float(score) for score, _ in points]), torch.tensor([flag for _, flag in points])
    if bool(positive.all()) or not bool(positive.any()):
        with pytest.raises(InputError, match="graphs of both classes"):
            roc_auc(scores, positive)
        return
    gaps = scores[positive][:, None] - scores[~positive]
    expected = ((gaps > 0).double() + 0.5 * (gaps == 0).double()).mean()
    assert roc_auc(scores, positive) == pytest.approx(float(expected), abs=1e-12)


def test_roc_auc_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, generator=rng).round(decimals=1)
    positive = torch.rand(2000, generator=rng) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(
        metrics.roc_auc_score(positive.numpy(), scores.numpy()), abs=1e-12
    )


def test_scores_by_hand() -> None:
    modality = small(metric="roc_auc")
    labels = modality.graphs.labels[50:]

    def right(inputs: Any) -> Tensor:
        return torch.nn.functional.one_hot(labels, 2).float()

    assert modality.score(right, "test") == {"accuracy": 1.0, "roc_auc": 1.0}
    assert modality.score(lambda inputs: -right(inputs), "test") == {"accuracy": 0.0, "roc_auc": 0.0}
    constant = modality.score(lambda inputs: torch.tensor([[1.0, 0.0]]).expand(len(inputs), 2), "test")
    assert constant == {"accuracy": 0.5, "roc_auc": 0.5}
    assert small().score(right, "test") == {"accuracy": 1.0}


def test_metric_of_an_ogb_dataset_is_its_own() -> None:
    class Dataset(list):  # type: ignore[type-arg]
        eval_metric = "rocauc"

    assert GraphsModality(Dataset(small_sets()), split=PARTS).metric == "roc_auc"
    assert GraphsModality(Dataset(small_sets()), split=PARTS, metric="accuracy").metric == "accuracy"
    assert small().metric == "accuracy"


def test_published_protocol_is_five_hundred_steps_that_slow_down() -> None:
    modality = small()
    rules = modality.published_protocol("doscond")
    assert rules.training is not None
    assert (rules.learner, rules.training.steps, rules.training.lr, rules.training.schedule) == (
        "gcn",
        500,
        1e-3,
        "drop",
    )
    found = evaluate(
        modality.pick(torch.tensor([0, 20])), modality, protocol="doscond", seeds=1, baselines=False, progress=False
    )
    assert found.rows[0].protocol == "doscond"
    with pytest.raises(InputError, match="doscond"):
        evaluate(modality.pick(torch.tensor([0, 20])), modality, protocol="doscon", seeds=1, progress=False)


# --- features -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 2)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_categories_come_back(rows: list[tuple[int, int]]) -> None:
    x = torch.tensor(rows)
    codec = Categories.of(x)
    encoded = codec.encode(x, torch.empty(0))
    assert encoded.shape == (len(rows), len({a for a, _ in rows}) + len({b for _, b in rows}))
    assert torch.equal(encoded.sum(1), torch.full((len(rows),), 2.0))
    assert torch.equal(codec.decode(encoded), x)
    assert torch.equal(codec.decode(0.3 * encoded - 0.1), x)


@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 2)), min_size=1, max_size=20), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_free_logits_of_categories_are_softmax_and_sharpen(rows: list[tuple[int, int]], progress: float) -> None:
    x = torch.tensor(rows)
    codec = Categories.of(x)
    encoded = codec.encode(x, torch.empty(0)).double()
    logits = codec.free(encoded)
    start, now = codec.relax(logits), codec.relax(logits, progress)
    widths = [len(known) for known in codec.columns]
    for part, mine in zip(start.split(widths, 1), encoded.split(widths, 1)):
        torch.testing.assert_close(part, 0.9 * mine + 0.1 / mine.shape[1])  # a softmax of log p is p
    for part, mine in zip(now.split(widths, 1), logits.split(widths, 1)):
        torch.testing.assert_close(part, (mine * 10**progress).softmax(1))
    assert torch.equal(codec.decode(now), x)
    torch.testing.assert_close(codec.relax(logits, 1.0), encoded, atol=1e-8, rtol=0)


def test_categories_are_nearly_those_of_the_export_after_annealing() -> None:
    modality = small("categories")
    summary = modality.summary([2, 2], rng=generator(0), adjacency="none", anneal=3)
    net = modality.learner("gcn", rng=generator(0))
    exported = net(modality.read(summary.export()).inputs)
    gaps = []
    for _ in range(5):
        gaps.append(float((net(summary().inputs) - exported).detach().abs().max()))
        summary.project_()
    assert gaps[0] > 1e-3
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[3] == gaps[4] < 1e-6
    assert torch.equal(summary.state_dict()["steps"], torch.tensor(5))


def test_unknown_categories_are_zeros() -> None:
    codec = Categories.of(torch.tensor([[1, 7], [2, 7]]))
    assert codec.encode(torch.tensor([[5, 7]]), torch.empty(0)).tolist() == [[0, 0, 1]]


def test_degrees_in_place_of_features() -> None:
    """Degrees of networkx; those above the largest in training count as that."""
    known = [nx.star_graph(3), nx.path_graph(3), nx.star_graph(5)]
    degrees = torch.tensor([degree for graph in known for _, degree in graph.degree])
    codec = Degrees(3)
    found = codec.encode(None, degrees)
    assert found.argmax(1).tolist() == degrees.clamp(max=3).tolist()
    assert torch.equal(codec.encode(found, degrees), found)


def test_choice_of_features() -> None:
    assert isinstance(features_for(torch.ones(2, 3), torch.ones(2), "onehot"), Numbers)
    assert isinstance(features_for(torch.ones(2, 3, dtype=torch.int64), torch.ones(2), "number"), Numbers)
    assert isinstance(features_for(torch.ones(2, 3, dtype=torch.int64), torch.ones(2), "onehot"), Categories)
    assert isinstance(features_for(None, torch.tensor([1, 2]), "onehot"), Degrees)
    with pytest.raises(InputError, match="too many to be categories"):
        features_for(torch.arange(5000)[:, None], torch.ones(5000), "onehot")
    with pytest.raises(InputError, match="reading of integers"):
        features_for(None, torch.ones(2), "words")  # type: ignore[arg-type]


def test_vectors_are_centred_profiles_of_unit_size() -> None:
    modality = small()
    vectors = modality.vectors(modality.real().inputs)
    assert vectors.shape == (40, 9)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.reshape(40, 3, 3).square().mean((0, 2)), torch.ones(3), rtol=1e-4, atol=0)
    expected = InfiniteReLU(1)(vectors, vectors)
    inputs = modality.real().inputs
    torch.testing.assert_close(modality.kernel("ntk")(inputs, inputs), expected)


def test_profile_of_real_graphs_by_networkx() -> None:
    modality = small()
    for number in (0, 7, 13):
        data = small_sets()[number]
        graph = nx.Graph()
        graph.add_nodes_from(range(data.num_nodes))
        graph.add_edges_from(data.edge_index.T.tolist())
        looped = torch.from_numpy(nx.to_numpy_array(graph)).float() + torch.eye(data.num_nodes)
        operator = looped / (looped.sum(1)[:, None] * looped.sum(1)).sqrt()
        expected = torch.stack([(torch.linalg.matrix_power(operator, hop) @ data.x).mean(0) for hop in range(3)])
        place = torch.cat(modality._members).tolist().index(number)
        torch.testing.assert_close(modality.real().inputs.profile(2)[place], expected)


# --- real batches -------------------------------------------------------------------------------------------------------


def test_real_batches_come_in_order_of_groups() -> None:
    modality = small()
    assert modality.group_sizes == [20, 20]
    assert modality.real().targets.tolist() == [0] * 20 + [1] * 20
    assert modality.real(3, groups=[1, 0], rng=generator(0)).groups.tolist() == [1, 1, 1, 0, 0, 0]
    assert len(modality.real(100, rng=generator(0))) == 40
    again = [modality.real(3, rng=generator(5)).inputs.features for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_coresets_are_training_graphs_as_they_were_given(method: str) -> None:
    modality = small()
    data = small_sets()
    chosen = coreset(modality, [3, 2], method=method, seed=0)
    assert [int(part.y) for part in chosen] == [0, 0, 0, 1, 1]
    for part in chosen:
        same = [
            known
            for known in data[:40]
            if known.x.shape == part.x.shape
            and torch.equal(known.x, part.x)
            and torch.equal(known.edge_index, part.edge_index)
        ]
        assert len(same) == 1


def test_evaluation_in_chunks_is_that_of_all_graphs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small()
    predictor = whole.fit(whole.real(), "gcn", rng=generator(0), protocol=Protocol(steps=20))
    expected = whole.score(predictor, "test")
    monkeypatch.setattr("datastill.modalities.graphs._CHUNK", 3)
    assert len(list(small().held_out("test"))) == 4
    assert small().score(predictor, "test") == expected


# --- summaries ----------------------------------------------------------------------------------------------------------


def matches(part: Any, known: Any) -> bool:
    links = nx.utils.graphs_equal(*(nx.Graph(graph.edge_index.T.tolist()) for graph in (part, known)))
    return part.x.shape == known.x.shape and bool((part.x - known.x).abs().max() < 1e-5) and links


def test_real_graphs_begin_a_summary_and_come_out_of_it_again() -> None:
    modality, data = small(), small_sets()
    summary = modality.summary([3, 2], rng=generator(0), nodes=9)
    found = summary.export()
    assert [int(part.y) for part in found] == [0, 0, 0, 1, 1]
    for part in found:
        assert any(matches(part, known) for known in data[:40] if int(known.y) == int(part.y))
        assert part.is_undirected() or part.num_edges == 0
        assert not part.has_self_loops()
        assert part.validate()


def test_chosen_graphs_begin_a_summary() -> None:
    modality, data = small(), small_sets()
    found = modality.summary([1, 1], rng=generator(0), init=torch.tensor([2, 21]), nodes=9).export()
    assert matches(found[0], data[4])  # even numbers have class 0
    assert matches(found[1], data[3])
    short = modality.summary([1, 1], rng=generator(0), init=torch.tensor([2, 21]), nodes=2).export()
    assert [part.num_nodes for part in short] == [2, 2]
    torch.testing.assert_close(short[0].x, data[4].x[:2])


def test_sizes_of_synthetic_graphs() -> None:
    modality = small()
    assert modality.mean_nodes == 4
    dropped = modality.summary([4, 4], rng=generator(0)).export()
    assert max(part.num_nodes for part in dropped) <= 4
    assert len({part.num_nodes for part in dropped}) > 1
    kept = modality.summary([4, 4], rng=generator(0), padding="keep", nodes=5).export()
    assert {part.num_nodes for part in kept} == {5}
    one = modality.summary([1, 1], rng=generator(0), nodes=1).export()
    assert [(part.num_nodes, part.num_edges) for part in one] == [(1, 0)] * 2


def test_padding_is_empty_nodes_that_count_in_the_mean() -> None:
    """DosCond fills up to N' nodes; those have no features and no edges at first, and take part in pools."""
    modality = small()
    index = torch.tensor([0, 20])
    plain, padded = (
        modality.summary([1, 1], rng=generator(0), init=index, nodes=6, padding=padding) for padding in ("drop", "keep")
    )
    for one, other in zip(plain.export(), padded.export()):
        assert torch.equal(other.x[: one.num_nodes], one.x)
        assert not other.x[one.num_nodes :].any()
        assert torch.equal(other.edge_index, one.edge_index)
    expected = torch.stack([part.x.sum(0) / 6 for part in plain.export()])
    torch.testing.assert_close(padded().inputs.profile(0)[:, 0], expected)


def test_more_graphs_than_the_class_has_are_told_apart() -> None:
    modality = small()
    for init in ("real", "central"):
        found = modality.summary([30, 30], rng=generator(0), init=init)().inputs.profile(0)[:, 0]
        assert len(found.unique(dim=0)) == 60


def test_sample_of_edges_is_soft_and_its_export_is_not() -> None:
    modality = small()
    summary = modality.summary([2, 2], rng=generator(0), start=1.0)
    samples = [summary(generator(seed)).inputs.adjacency for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    mean = summary().inputs
    sigmoid = torch.sigmoid(torch.tensor(1.0))
    # Two present nodes a and b: A_ab = p / sqrt(d_a d_b), so the operator's rows tell the probabilities.
    blocks = mean.adjacency
    recovered = blocks / (blocks.diagonal(dim1=1, dim2=2)[:, :, None] * blocks.diagonal(dim1=1, dim2=2)[:, None]).sqrt()
    assert isinstance(summary, GraphsSummary)
    present = summary.present
    inside = present[:, :, None] & present[:, None] & ~torch.eye(present.shape[1], dtype=torch.bool)
    off = recovered[inside]
    assert ((off - sigmoid).abs().minimum((off - (1 - sigmoid)).abs()) < 1e-5).all()
    outside = ~(present[:, :, None] & present[:, None]) & ~torch.eye(present.shape[1], dtype=torch.bool)
    assert not recovered[outside].any()


def test_export_and_read_agree() -> None:
    modality = small()
    summary = modality.summary([2, 3], rng=generator(0), adjacency="none")
    assert summary.exact_export
    batch = modality.read(summary.export())
    net = modality.learner("gcn", rng=generator(1))
    torch.testing.assert_close(net(batch.inputs), net(summary().inputs))
    rounded = modality.summary([2, 3], rng=generator(0), start=40.0)
    assert not rounded.exact_export
    torch.testing.assert_close(net(modality.read(rounded.export()).inputs), net(rounded().inputs))


@pytest.mark.parametrize("features", ["numbers", "categories", "none"])
@pytest.mark.parametrize("adjacency", ["none", "bernoulli"])
def test_packed_lists_come_back(features: str, adjacency: str) -> None:
    modality = small(features)
    dataset = modality.summary([2, 2], rng=generator(0), adjacency=adjacency).export()
    again = modality.unpack(*modality.pack(dataset))
    assert len(again) == 4
    for part, known in zip(again, dataset):
        assert part.keys() == known.keys()
        assert all(torch.equal(part[name], known[name]) for name in part.keys())  # noqa: SIM118
    kinds = {"numbers": torch.float32, "categories": torch.int64, "none": torch.float32}
    assert again[0].x.dtype == kinds[features]


def test_synthetic_categories_are_among_the_real_ones() -> None:
    modality = small("categories")
    x = torch.cat([part.x for part in modality.summary([3, 3], rng=generator(0), init="noise").export()])
    assert set(x[:, 0].tolist()) <= {5, 6, 7}
    assert set(x[:, 1].tolist()) <= {0, 1}


def test_labels_keep_their_shape() -> None:
    data = small_sets()
    for part in data:
        part.y = part.y.reshape(1, 1)
    modality = GraphsModality(data, split=PARTS)
    assert modality.summary([1, 1], rng=generator(0)).export()[1].y.tolist() == [[1]]


# --- strange sets -------------------------------------------------------------------------------------------------------


def test_graphs_without_any_edge() -> None:
    data = [
        pyg.Data(x=part.x, edge_index=torch.empty(2, 0, dtype=torch.int64), y=part.y) for part in small_sets(smallest=1)
    ]
    modality = GraphsModality(data, split=PARTS, hidden=8)
    assert all(part.num_edges == 0 for part in modality.summary([2, 2], rng=generator(0)).export())
    small = modality.read(modality.summary([2, 2], rng=generator(0)).export())
    for learner in ("gcn", "profile", "ntk"):
        predictor = modality.fit(small, learner, rng=generator(0), protocol=Protocol(steps=5))
        assert 0 <= modality.score(predictor, "test")["accuracy"] <= 1


def test_graphs_of_one_node() -> None:
    data = [pyg.Data(x=part.x[:1], edge_index=torch.empty(2, 0, dtype=torch.int64), y=part.y) for part in small_sets()]
    modality = GraphsModality(data, split=PARTS, hidden=8)
    assert modality.mean_nodes == 1
    for adjacency in ("none", "bernoulli"):
        summary = modality.summary([2, 2], rng=generator(0), adjacency=adjacency)
        assert summary.penalty() is None
        assert [part.num_nodes for part in summary.export()] == [1] * 4


def test_one_huge_graph_among_small_ones() -> None:
    data = small_sets()
    ring = torch.arange(3000)
    edges = torch.stack([ring, (ring + 1) % 3000])
    data[0] = pyg.Data(x=torch.ones(3000, 3), edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.tensor([0]))
    modality = GraphsModality(data, split=PARTS, hidden=8)
    assert modality.mean_nodes == round(sum(part.num_nodes for part in data[:40]) / 40)
    found = modality.summary([2, 2], rng=generator(0)).export()
    assert max(part.num_nodes for part in found) <= modality.mean_nodes
    # As many graphs as the class has that fit: the huge one is not among them, and nothing dense of its size is made.
    assert max(part.num_nodes for part in modality.summary([19, 1], rng=generator(0), nodes=6).export()) <= 6


def test_loops_and_one_way_edges_are_taken_as_given() -> None:
    data = small_sets()
    data[0] = pyg.Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0, 1, 1], [0, 1, 0]]), y=torch.tensor([0]))
    modality = GraphsModality(data, split=PARTS)
    batch = modality.read([data[0]])
    # Node 0 receives itself and node 1, node 1 itself; in-degrees 2 and 1.
    root = 0.5**0.5
    torch.testing.assert_close(batch.inputs.adjacency.dense(), torch.tensor([[0.5, root], [0.0, 1.0]]))


def test_several_classes() -> None:
    modality = GraphsModality(small_sets(classes=4), split=PARTS, hidden=8)
    assert modality.group_sizes == [10] * 4
    assert modality.summary([1, 2, 1, 1], rng=generator(0))().groups.tolist() == [0, 1, 1, 2, 3]
    with pytest.raises(InputError, match="needs two classes, the data have 4"):
        GraphsModality(small_sets(classes=4), split=PARTS, metric="roc_auc")


def test_a_class_with_a_single_training_graph() -> None:
    data = small_sets(61)
    data[60].y = torch.tensor([2])
    modality = GraphsModality(data, hidden=8)
    assert modality.group_sizes[2] == 1
    found = modality.summary([3, 3, 3], rng=generator(0), init="central").export()
    assert [int(part.y) for part in found] == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(InputError, match="group 2 has only 1 training points"):
        modality.subset([3, 3, 3], rng=generator(0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hops": -1}, "hops"),
        ({"hidden": 0}, "hidden"),
        ({"pool": "max"}, "pool"),
        ({"metric": "rocauc"}, "metric"),
        ({"integers": "words"}, "reading of integers"),
    ],
)
def test_refused_settings(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        GraphsModality(small_sets(), split=PARTS, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init": "central-ish"}, "init"),
        ({"adjacency": "learned"}, "adjacency"),
        ({"padding": "zero"}, "padding"),
        ({"nodes": 0}, "nodes"),
        ({"sparsity": 1}, "summary option"),
        ({"temperature": (1.0, 0.0)}, "temperature"),
        ({"init": torch.tensor([0, 1])}, "in order of groups"),
        ({"init": torch.tensor([0, 99])}, "from 0 to 39"),
    ],
)
def test_refused_options_of_a_summary(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        small().summary([1, 1], rng=generator(0), **options)


def test_refused_counts() -> None:
    for counts, match in (([1], "2 classes, got 1"), ([1, 0], r"counts\[1\]")):
        with pytest.raises(InputError, match=match):
            small().summary(counts, rng=generator(0))


def test_read_refuses_other_features() -> None:
    with pytest.raises(InputError, match=r"x of shape \(nodes, 3\)"):
        small().read(
            [pyg.Data(x=torch.ones(2, 4), edge_index=torch.empty(2, 0, dtype=torch.int64), y=torch.tensor([0]))]
        )
    with pytest.raises(InputError, match=r"integer x of shape \(nodes, 2\)"):
        small("categories").read(small_sets())


# --- initial graphs -----------------------------------------------------------------------------------------------------


def test_fitting_graphs() -> None:
    sizes = torch.tensor([3, 9, 5, 4])
    assert fitting(torch.arange(4), sizes, 4).tolist() == [0, 3]
    assert fitting(torch.tensor([1, 2]), sizes, 4).tolist() == [2]


def test_cut_graph_by_hand() -> None:
    features, links = cut(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0, 1, 1], [1, 2, 1]]), 2)
    assert features.tolist() == [[1.0], [2.0]]
    assert links.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    features, links = cut(torch.tensor([[1.0]]), torch.empty(2, 0, dtype=torch.int64), 2)
    assert features.tolist() == [[1.0], [0.0]]
    assert not links.any()


def test_central_graphs_are_near_the_clusters() -> None:
    points = torch.tensor([[0.0], [0.1], [10.0], [10.1], [10.2]])
    found = central_graphs(torch.tensor([5, 6, 7, 8, 9]), points, 2, generator(0))
    assert sorted(found.tolist())[0] in (5, 6)
    assert sorted(found.tolist())[1] == 8
    many = central_graphs(torch.tensor([5, 6]), points[:2], 5, generator(0))
    assert torch.bincount(many)[5:].tolist() in ([3, 2], [2, 3])


def test_read_graphs_gives_what_the_modality_holds() -> None:
    modality = small()
    again = read_graphs(modality.pick(torch.arange(40)))
    assert torch.equal(again.labels, modality.real().targets)
    assert modality.full_size() == modality.size(modality.pick(torch.arange(40)))
