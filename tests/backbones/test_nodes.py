"""The propagation operator, sparse algebra and graph learners, against PyG, dense algebra and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datastill.backbones import graph as graph_learners
from datastill.backbones import nodes as nodes_module
from datastill.backbones.batch import Batch, map_tensors, tensors_of, with_tensors
from datastill.backbones.graph import GCN, SGC, NodeMLP
from datastill.backbones.graph_layers import LAYERED, LayeredGNN
from datastill.backbones.nodes import Csr, Hops, Links, Nodes, normalised, normalised_dense

N = 12


def random_edges(seed: int, count: int = 30, nodes: int = N) -> tuple[Tensor, Tensor]:
    """Directed weighted edges without repetition, two loops among them; the last node has none."""
    rng = torch.Generator().manual_seed(seed)
    places = torch.randperm((nodes - 1) ** 2, generator=rng)[:count]
    edges = torch.stack([places // (nodes - 1), places % (nodes - 1)])
    edges = edges[:, edges[0] != edges[1]]
    edges = torch.cat([edges, torch.tensor([[2, 5], [2, 5]])], 1)
    return edges, torch.rand(edges.shape[1], generator=rng) + 0.1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_operator_is_that_of_pyg(seed: int, weighted: bool) -> None:
    conv = pytest.importorskip("torch_geometric.nn.conv.gcn_conv")
    edges, weights = random_edges(seed)
    index, values = conv.gcn_norm(edges, weights if weighted else None, N, add_self_loops=True)
    expected = torch.zeros(N, N).index_put_((index[1], index[0]), values, accumulate=True)
    found = normalised(edges, weights if weighted else None, N).dense()
    torch.testing.assert_close(found, expected)


def test_repeated_edges_are_added() -> None:
    twice = normalised(torch.tensor([[0, 0], [1, 1]]), torch.tensor([0.5, 1.5]), 2)
    once = normalised(torch.tensor([[0], [1]]), torch.tensor([2.0]), 2)
    torch.testing.assert_close(twice.dense(), once.dense())


def test_dense_operator_agrees_with_the_sparse_one() -> None:
    rng = torch.Generator().manual_seed(3)
    weights = torch.rand(N, N, generator=rng).triu(1)
    weights = weights + weights.T
    target, source = weights.nonzero(as_tuple=True)
    sparse = normalised(torch.stack([source, target]), weights[target, source], N)
    torch.testing.assert_close(normalised_dense(weights), sparse.dense())


def test_csr_algebra_is_that_of_dense_matrices() -> None:
    rng = torch.Generator().manual_seed(0)
    dense = torch.where(torch.rand(7, 5, generator=rng) < 0.4, torch.randn(7, 5, generator=rng), 0.0)
    row, column = dense.nonzero(as_tuple=True)
    matrix = Csr.from_entries(row, column, dense[row, column], (7, 5))
    other = torch.randn(5, 3, generator=rng)
    index = torch.tensor([6, 0, 0, 3])
    torch.testing.assert_close(matrix @ other, dense @ other)
    torch.testing.assert_close(matrix.dense(), dense)
    torch.testing.assert_close(matrix.transposed.dense(), dense.T)
    torch.testing.assert_close(matrix.rows(index).dense(), dense[index])
    small, used = matrix.rows(index).compact()
    torch.testing.assert_close(small @ other[used], dense[index] @ other)
    assert matrix.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 5)


def test_entries_at_one_place_are_added_and_blocks_are_rows() -> None:
    row, column = torch.tensor([2, 0, 2, 2]), torch.tensor([1, 2, 0, 1])
    matrix = Csr.from_entries(row, column, torch.tensor([1.0, 2.0, 3.0, 4.0]), (4, 3))
    expected = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [3.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(matrix.dense(), expected)
    assert matrix.columns.dtype == matrix.starts.dtype == torch.int32
    for first, last in ((0, 4), (1, 3), (2, 2), (3, 4)):
        assert torch.equal(matrix.block(first, last).dense(), expected[first:last])


def test_propagation_of_stretches_of_columns_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features, operator = graph()
    rows = torch.tensor([4, 0, 11, 4])
    monkeypatch.setattr(nodes_module, "_NUMBERS", 1)
    monkeypatch.setattr(nodes_module, "_NARROWEST", 3)
    hops = Hops(features, operator)
    found = hops.at(rows, (3, 0, 1))
    for count, values in found.items():
        expected = torch.linalg.matrix_power(operator.dense(), count) @ features
        torch.testing.assert_close(values, expected[rows])
        torch.testing.assert_close(hops.once(count), expected)
    assert sorted(found) == [0, 1, 3]


def test_csr_product_has_first_and_second_derivatives() -> None:
    edges, weights = random_edges(4)
    matrix = normalised(edges, weights, N, torch.float64)
    values = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: (matrix @ v).sin(), values)
    assert torch.autograd.gradgradcheck(lambda v: (matrix @ v).sin(), values)
    by_func = torch.func.grad(lambda v: (matrix @ v).sin().sum())(values.detach())
    torch.testing.assert_close(by_func, matrix.dense().T @ (matrix.dense() @ values.detach()).cos())


def graph(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Csr]:
    edges, weights = random_edges(5)
    features = torch.randn(N, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    return features, normalised(edges, weights, N, dtype)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_propagation_is_a_matrix_power(hops: int) -> None:
    features, operator = graph()
    rows = torch.tensor([4, 0, 11, 4])
    expected = (torch.linalg.matrix_power(operator.dense(), hops) @ features)[rows]
    for nodes in (
        Nodes.constant(features, operator).at(rows),
        Nodes(features, operator, rows),
        Nodes(features, operator.dense(), rows),
    ):
        torch.testing.assert_close(nodes.propagated(hops), expected)
    torch.testing.assert_close(Nodes(features, None, rows).propagated(hops), features[rows])


def test_cache_serves_takes_and_is_dropped_when_tensors_change() -> None:
    features, operator = graph()
    nodes = Nodes.constant(features, operator)
    assert nodes.hops is not None
    part = nodes.take(torch.tensor([1, 3])).take(torch.tensor([1]))
    assert part.hops is nodes.hops
    assert part.features is features
    assert part.rows.tolist() == [3]
    assert map_tensors(Tensor.detach, nodes).hops is nodes.hops
    moved = Batch(nodes, nodes.rows, nodes.rows).to(dtype=torch.float64).inputs
    assert moved.hops is None
    doubled = with_tensors(
        nodes, [tensor * 2 if tensor.is_floating_point() else tensor for tensor in tensors_of(nodes)]
    )
    torch.testing.assert_close(doubled.propagated(2), 8 * nodes.propagated(2))


def test_gcn_and_sgc_are_those_of_pyg() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    edges, weights = random_edges(6)
    features = torch.randn(N, 4, generator=torch.Generator().manual_seed(7))
    rows = torch.tensor([3, 11, 0])
    nodes = Nodes.constant(features, normalised(edges, weights, N)).at(rows)

    gcn = GCN(4, 3, hidden=8).eval()
    torch.nn.init.normal_(gcn.first.bias)
    first, second = nn.GCNConv(4, 8), nn.GCNConv(8, 3)
    sgc = SGC(4, 3, hops=2).eval()
    theirs = nn.SGConv(4, 3, K=2)
    with torch.no_grad():
        first.lin.weight.copy_(gcn.first.weight)
        first.bias.copy_(gcn.first.bias)
        second.lin.weight.copy_(gcn.head.weight)  # type: ignore[operator]
        second.bias.copy_(gcn.head.bias)  # type: ignore[operator]
        theirs.lin.weight.copy_(sgc.head.weight)
        theirs.lin.bias.copy_(sgc.head.bias)
    expected = second(torch.relu(first(features, edges, weights)), edges, weights)[rows]
    torch.testing.assert_close(gcn(nodes), expected)
    torch.testing.assert_close(sgc(nodes), theirs(features, edges, weights)[rows])


def test_learners_agree_on_sparse_dense_and_absent_edges() -> None:
    features, operator = graph()
    rows = torch.tensor([5, 2])
    everything = torch.arange(N)
    lonely = normalised(torch.empty(2, 0, dtype=torch.int64), None, N)
    for learner in (GCN(4, 3, hidden=8), SGC(4, 3), NodeMLP(4, 3, hidden=8)):
        learner.eval()
        sparse = learner(Nodes.constant(features, operator).at(rows))
        torch.testing.assert_close(learner(Nodes(features, operator.dense(), rows)), sparse)
        torch.testing.assert_close(learner(Nodes(features, operator, everything))[rows], sparse)
        without = learner(Nodes(features, None, rows))
        torch.testing.assert_close(learner(Nodes(features, lonely, rows)), without)
        layers = learner.layers(Nodes(features, operator, rows))
        assert all(len(layer) == 2 for layer in layers)
        torch.testing.assert_close(layers[-1], learner.embed(Nodes(features, operator, rows)))


@pytest.mark.parametrize("kind", [GCN, SGC])
def test_gradients_in_features_and_dense_edges(kind: type[GCN] | type[SGC]) -> None:
    features, operator = graph(torch.float64)
    learner = kind(4, 3).double().eval()
    rows = torch.tensor([1, 7])

    def outputs(x: Tensor, a: Tensor) -> Tensor:
        return learner(Nodes(x, a, rows))

    assert torch.autograd.gradcheck(outputs, (features.requires_grad_(), operator.dense().requires_grad_()))


def test_dropout_only_in_training() -> None:
    features, operator = graph()
    nodes = Nodes.constant(features, operator)
    gcn = GCN(4, 3).eval()
    assert torch.equal(gcn(nodes), gcn(nodes))
    gcn.train()
    assert not torch.equal(gcn(nodes), gcn(nodes))


def plain_stack(learner: LayeredGNN, kind: str, x: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """What a user of PyG writes with these layers."""
    if kind == "appnp":
        hidden = learner.head(torch.relu(learner.first(x)))
        assert learner.spread is not None
        return learner.spread(hidden, edges, weights)
    arguments = (edges, weights) if kind == "cheb" else (edges,)
    return learner.head(torch.relu(learner.first(x, *arguments)), *arguments)


@pytest.mark.parametrize("kind", LAYERED)
def test_layered_networks_are_those_of_pyg(kind: str) -> None:
    pytest.importorskip("torch_geometric")
    edges, weights = random_edges(4)
    x = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = LayeredGNN(kind, 5, 3, hidden=16).eval()
    nodes = Nodes.constant(x, normalised(edges, weights, N), Links(edges, weights))
    rows = torch.tensor([11, 2, 2, 0])
    expected = plain_stack(learner, kind, x, edges, weights)
    torch.testing.assert_close(learner(nodes.at(rows)), expected[rows])
    assert learner.embed(nodes.at(rows)).shape == (4, 16)


def test_edges_are_recovered_from_the_operator() -> None:
    edges, weights = random_edges(5)
    apart = edges[0] != edges[1]
    edges, weights = edges[:, apart], weights[apart]
    expected = torch.zeros(N, N).index_put_((edges[1], edges[0]), weights)
    sparse = Nodes.constant(torch.zeros(N, 1), normalised(edges, weights, N)).edges()
    assert sparse.edge_weight is not None
    found = torch.zeros(N, N).index_put_((sparse.edge_index[1], sparse.edge_index[0]), sparse.edge_weight)
    torch.testing.assert_close(found, expected)
    symmetric = (expected + expected.T).requires_grad_()
    dense = Nodes(torch.zeros(N, 1), normalised_dense(symmetric), torch.arange(N)).edges()
    assert dense.edge_weight is not None
    found = torch.zeros(N, N).index_put((dense.edge_index[1], dense.edge_index[0]), dense.edge_weight)
    torch.testing.assert_close(found, symmetric)
    assert Nodes(torch.zeros(3, 1), None, torch.arange(2)).edges().edge_index.tolist() == [[0, 1, 2]] * 2


def test_learners_differentiate_through_recovered_edges() -> None:
    """A summary's learned weights reach the layers that take weights."""
    pytest.importorskip("torch_geometric")
    weights = (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) + 0.1).triu(1).double()
    weights = (weights + weights.T).requires_grad_()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
    for kind in ("appnp", "cheb"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            learner = LayeredGNN(kind, 4, 2, hidden=8).double().eval()

        def outputs(values: Tensor, net: LayeredGNN = learner) -> Tensor:
            hollow = values * (1 - torch.eye(6).double())
            return net(Nodes(x, normalised_dense((hollow + hollow.T) / 2), torch.arange(6))).square().sum()

        assert torch.autograd.gradcheck(outputs, weights)


def test_a_gcn_scores_in_blocks_of_rows_what_it_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, operator = graph()
    nodes = Nodes.constant(features, operator).at(torch.tensor([3, 11, 0, 5]))
    gcn = GCN(4, 3, hidden=8).eval()
    whole = gcn(nodes)
    monkeypatch.setattr(graph_learners, "_ROWS", 2)
    with torch.no_grad():
        torch.testing.assert_close(gcn(nodes), whole)
