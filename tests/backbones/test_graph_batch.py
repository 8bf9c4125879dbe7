"""Batches of graphs, sparse and dense, and the learners on them, against PyG, networkx and dense algebra."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.backbones.batch import Batch, map_tensors
from datastill.backbones.graph_batch import Graphs, Pool, owners_of
from datastill.backbones.graphs import PooledGCN, ProfileMLP
from datastill.backbones.nodes import Csr, normalised, normalised_dense
from datastill.errors import InputError

WIDTH = 4
SIZES = [3, 1, 6, 4]


def adjacencies(sizes: list[int], seed: int = 0) -> list[Tensor]:
    """Symmetric 0/1 matrices; whoever has one node has no edge."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        upper = (torch.rand(size, size, generator=rng) < 0.5).double().triu(1)
        found.append(upper + upper.T)
    return found


def features_of(sizes: list[int], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(100 + seed)
    return [torch.randn(size, WIDTH, generator=rng, dtype=torch.float64) for size in sizes]


def sparse(links: list[Tensor], features: list[Tensor]) -> Graphs:
    sizes = torch.tensor([len(part) for part in features])
    starts = sizes.cumsum(0) - sizes
    edges = torch.cat([link.nonzero().T + start for link, start in zip(links, starts)], 1)
    adjacency = normalised(edges, None, int(sizes.sum()), torch.float64)
    return Graphs(torch.cat(features), owners_of(sizes), len(sizes), adjacency)


def dense(links: list[Tensor], features: list[Tensor], most: int | None = None, fill: float = 0.0) -> Graphs:
    """The same graphs, filled up to `most` nodes whose features are `fill`."""
    sizes = torch.tensor([len(part) for part in features])
    most = most or int(sizes.max())
    filled = torch.full((len(sizes), most, WIDTH), fill, dtype=torch.float64)
    weights = torch.zeros(len(sizes), most, most, dtype=torch.float64)
    for number, (link, part) in enumerate(zip(links, features)):
        filled[number, : len(part)] = part
        weights[number, : len(part), : len(part)] = link
    present = torch.arange(most) < sizes[:, None]
    owner = torch.arange(len(sizes)).repeat_interleave(most)
    return Graphs(filled.flatten(0, 1), owner, len(sizes), normalised_dense(weights), present.flatten())


def example(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    return adjacencies(SIZES, seed), features_of(SIZES, seed)


def gcn(pool: Pool = "mean", seed: int = 0) -> PooledGCN:
    torch.manual_seed(seed)
    net = PooledGCN(WIDTH, 3, hidden=5, pool=pool).double()
    with torch.no_grad():
        for layer in (net.first, *net.others):
            layer.bias.normal_()
    return net


# --- against PyG --------------------------------------------------------------------------------------------------------


def copy_into(conv: Any, layer: torch.nn.Linear) -> Any:
    """A convolution of PyG's with the weights of a layer of ours."""
    with torch.no_grad():
        conv.lin.weight.copy_(layer.weight)
        conv.bias.copy_(layer.bias)
    return conv


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gcn_on_real_graphs_is_that_of_pyg(pool: Pool, seed: int) -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    data = pytest.importorskip("torch_geometric.data")
    links, features = example(seed)
    net = gcn(pool, seed)
    parts = [data.Data(x=part, edge_index=link.nonzero().T) for link, part in zip(links, features)]
    batch = data.Batch.from_data_list(parts)
    units = batch.x
    for layer in (net.first, *net.others):
        conv = copy_into(nn.GCNConv(layer.in_features, layer.out_features).double(), layer)
        units = conv(units, batch.edge_index).relu()
    pooled = {"mean": nn.global_mean_pool, "sum": nn.global_add_pool}[pool](units, batch.batch)
    found = sparse(links, features)
    torch.testing.assert_close(net.embed(found), pooled)
    torch.testing.assert_close(net(found), net.head(pooled))


def test_gcn_on_synthetic_graphs_is_that_of_pyg_dense() -> None:
    """Weighted, differentiable edges."""
    nn = pytest.importorskip("torch_geometric.nn")
    rng = torch.Generator().manual_seed(3)
    weights = torch.rand(3, 5, 5, generator=rng, dtype=torch.float64).triu(1)
    weights = (weights + weights.mT).requires_grad_()
    features = torch.randn(3, 5, WIDTH, generator=rng, dtype=torch.float64)
    net = gcn()
    units = features
    for layer in (net.first, *net.others):
        units = copy_into(nn.DenseGCNConv(layer.in_features, layer.out_features).double(), layer)(units, weights).relu()
    expected = net.head(units.mean(1))
    owner = torch.arange(3).repeat_interleave(5)
    found = net(Graphs(features.flatten(0, 1), owner, 3, normalised_dense(weights)))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), weights)[0] for out in (found, expected))
    apart = ~torch.eye(5, dtype=torch.bool)  # PyG overwrites the diagonal, we add to it; a summary's is always empty
    torch.testing.assert_close(ours[:, apart], theirs[:, apart])


# --- sparse and dense are one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dense_and_sparse_graphs_give_the_same(seed: int) -> None:
    links, features = example(seed)
    one, other = sparse(links, features), dense(links, features)
    assert one.sizes.tolist() == other.sizes.tolist() == SIZES
    torch.testing.assert_close(one.profile(3), other.profile(3))
    for net in (gcn("mean"), gcn("sum"), ProfileMLP(WIDTH, 3, hops=2, hidden=5).double()):
        torch.testing.assert_close(net(one), net(other))
        for ours, theirs in zip(net.layers(one), net.layers(other)):
            torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(net(graphs).square().sum(), list(net.parameters())) for graphs in (one, other)]
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs)


@given(st.integers(0, 10**6), st.integers(0, 4), st.floats(-5, 5), st.sampled_from(["mean", "sum"]))
@settings(max_examples=15, deadline=None)
def test_fillers_are_never_seen(seed: int, more: int, fill: float, pool: Pool) -> None:
    links, features = example(seed)
    net = gcn(pool)
    plain = dense(links, features)
    padded = dense(links, features, max(SIZES) + more, fill)
    torch.testing.assert_close(net(padded), net(plain))
    torch.testing.assert_close(padded.profile(2), plain.profile(2))
    assert padded.sizes.tolist() == SIZES


@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_order_of_nodes_does_not_matter_and_that_of_graphs_is_kept(seed: int, sizes: list[int], as_dense: bool) -> None:
    links, features = adjacencies(sizes, seed), features_of(sizes, seed)
    rng = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(size, generator=rng) for size in sizes]
    turned = [link[order][:, order] for link, order in zip(links, orders)]
    moved = [part[order] for part, order in zip(features, orders)]
    lay = dense if as_dense else sparse
    net, profile = gcn(), ProfileMLP(WIDTH, 3).double()
    for learner in (net, profile):
        torch.testing.assert_close(learner(lay(turned, moved)), learner(lay(links, features)))
    graphs = torch.randperm(len(sizes), generator=rng)
    again = lay([links[i] for i in graphs], [features[i] for i in graphs])
    torch.testing.assert_close(net(again), net(lay(links, features))[graphs])


@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=7))
@settings(max_examples=15, deadline=None)
def test_take_is_batching_the_chosen_graphs(seed: int, chosen: list[int]) -> None:
    links, features = example(seed)
    index = torch.tensor(chosen)
    for lay in (sparse, lambda a, b: dense(a, b, max(SIZES))):
        expected = lay([links[i] for i in chosen], [features[i] for i in chosen])
        for whole in (lay(links, features), lay(links, features).constant(2)):
            found = whole.take(index)
            assert len(found) == len(chosen)
            assert torch.equal(found.sizes, expected.sizes)
            assert torch.equal(found.features, expected.features)
            assert torch.equal(found.owner, expected.owner)
            if isinstance(found.adjacency, Csr) and isinstance(expected.adjacency, Csr):
                assert torch.equal(found.adjacency.dense(), expected.adjacency.dense())
            torch.testing.assert_close(found.received(), expected.received())
            torch.testing.assert_close(found.profile(2), expected.profile(2))
            torch.testing.assert_close(found.profile(3), expected.profile(3))


# --- closed forms -------------------------------------------------------------------------------------------------------


def test_profile_of_a_known_graph() -> None:
    """networkx's path, star and triangle: means of powers of D^-1/2 (A + I) D^-1/2 on the features."""
    known = [nx.path_graph(4), nx.star_graph(3), nx.complete_graph(3)]
    links = [torch.from_numpy(nx.to_numpy_array(graph)) for graph in known]
    features = features_of([len(graph) for graph in known])
    found = sparse(links, features).profile(2)
    for number, (graph, part) in enumerate(zip(known, features)):
        looped = nx.to_numpy_array(graph) + np.eye(len(graph))
        scale = np.diag(looped.sum(1) ** -0.5)
        operator = scale @ looped @ scale
        for hop in range(3):
            expected = (np.linalg.matrix_power(operator, hop) @ part.numpy()).mean(0)
            np.testing.assert_allclose(found[number, hop].numpy(), expected, rtol=1e-12)
    # A triangle's operator is the mean of all three nodes, so its profile is the same at every hop.
    torch.testing.assert_close(found[2, 1], found[2, 0])


def test_pools_by_hand() -> None:
    graphs = Graphs(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
    assert graphs.pool(graphs.features).tolist() == [[2.0], [5.0]]
    assert graphs.pool(graphs.features, "sum").tolist() == [[4.0], [5.0]]
    missing = replace(graphs, present=torch.tensor([True, False, True]))
    assert missing.pool(graphs.features).tolist() == [[1.0], [5.0]]
    assert missing.sizes.tolist() == [1, 1]


def test_graphs_without_edges_propagate_nothing() -> None:
    features = torch.cat(features_of(SIZES))
    owner = owners_of(torch.tensor(SIZES))
    bare = Graphs(features, owner, 4)
    empty = sparse([torch.zeros(size, size) for size in SIZES], features_of(SIZES))
    torch.testing.assert_close(bare.propagate(features), empty.propagate(features))
    for net in (gcn(), ProfileMLP(WIDTH, 3).double()):
        torch.testing.assert_close(net(bare), net(empty))
    assert torch.equal(bare.take(torch.tensor([2, 1])).features, torch.cat([features[4:10], features[3:4]]))


def test_one_node_is_its_own_pool() -> None:
    node = torch.tensor([[1.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    net = gcn()
    units = node
    for layer in (net.first, *net.others):
        units = layer(units).relu()
    found = net(sparse([torch.zeros(1, 1)], [node]))
    torch.testing.assert_close(found, net.head(units))


def test_what_is_known_moves_with_the_nest() -> None:
    graphs = sparse(*example()).constant(2)
    batch = Batch(graphs, torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)).to(dtype=torch.float32)
    assert batch.inputs.known.profile.dtype == torch.float32
    torch.testing.assert_close(batch.inputs.profile(2).double(), graphs.profile(2), rtol=1e-5, atol=1e-6)
    doubled = map_tensors(lambda tensor: tensor * 2 if tensor.is_floating_point() else tensor, graphs)
    torch.testing.assert_close(doubled.received(), 2 * graphs.received())


@pytest.mark.parametrize("as_dense", [False, True])
def test_gradients_of_features(as_dense: bool) -> None:
    links, features = example()
    graphs = dense(links, features) if as_dense else sparse(links, features)
    for net in (gcn(), ProfileMLP(WIDTH, 3).double()):
        leaf = graphs.features.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, net=net: net(replace(graphs, features=x)), (leaf,))


def test_depth_and_widths() -> None:
    net = PooledGCN(WIDTH, 2, depth=1, hidden=7).double()
    graphs = sparse(*example())
    assert len(net.layers(graphs)) == 1
    assert net.embed(graphs).shape == (4, 7)
    torch.testing.assert_close(net.layers(graphs)[-1], net.embed(graphs))
    with pytest.raises(InputError, match="depth"):
        PooledGCN(WIDTH, 2, depth=0)
    with pytest.raises(InputError, match="hidden"):
        PooledGCN(WIDTH, 2, hidden=0)
