"""Kinds of nodes against networkx's colour refinement, and networks on kinds against networks on nodes."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from datastill.backbones import graph_kinds
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.graph_batch import Graphs, owners_of
from datastill.backbones.graph_kinds import find_kinds
from datastill.backbones.graphs import PooledGCN
from datastill.backbones.nodes import Csr, normalised, normalised_dense

COLOURS = 2


def coloured(seed: int, count: int = 6) -> tuple[list[nx.Graph], Graphs]:
    """Small graphs whose nodes have one of two colours, as one-hot features, so that many nodes are alike."""
    rng = np.random.default_rng(seed)
    graphs = []
    for _ in range(count):
        graph = nx.random_labeled_tree(int(rng.integers(2, 7)), seed=int(rng.integers(2**31)))
        nx.set_node_attributes(graph, {node: str(rng.integers(COLOURS)) for node in graph}, "colour")
        graphs.append(graph)
    whole = nx.disjoint_union_all(graphs)
    colours = torch.tensor([int(colour) for _, colour in whole.nodes("colour")])
    edges = torch.tensor([*whole.edges, *((b, a) for a, b in whole.edges)]).reshape(-1, 2).T
    adjacency = normalised(edges, None, len(colours), torch.float64)
    features = F.one_hot(colours, COLOURS).double()
    owner = owners_of(torch.tensor([len(graph) for graph in graphs]))
    return graphs, Graphs(features, owner, len(graphs), adjacency)


def same_partition(a: list[object], b: list[object]) -> bool:
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("seed", range(8))
def test_kinds_are_the_colours_of_refinement(seed: int) -> None:
    """A weighs by degrees, so a first round of ours knows the neighbours' degrees too: networkx's begins with them."""
    graphs, whole = coloured(seed, count=40)
    assert isinstance(whole.adjacency, Csr)
    kinds = find_kinds(whole.features, whole.adjacency, whole.received(), 3)
    assert kinds is not None
    union = nx.disjoint_union_all(graphs)
    for node in union:
        union.nodes[node]["seen"] = f"{union.nodes[node]['colour']} {union.degree[node]}"
    hashes = nx.weisfeiler_lehman_subgraph_hashes(union, node_attr="seen", iterations=3, digest_size=16)
    for level in range(3):
        expected = [hashes[node][level] for node in union]
        ours = kinds.members[level].tolist()
        # Equal colours are one kind. The reverse need not hold: A rounds 1 / sqrt(d_i d_j), so kinds may be coarser.
        assert len(set(zip(expected, ours))) == len(set(expected)) >= len(set(ours))
        assert level < 2 or len(set(ours)) > len(set(kinds.members[0].tolist()))


@given(st.integers(0, 10**6), st.sampled_from(["mean", "sum"]), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_networks_on_kinds_are_networks_on_nodes(seed: int, pool: str, depth: int) -> None:
    _, bare = coloured(seed, count=30)
    known = bare.constant(2, rounds=3)
    assert known.known is not None
    assert known.known.kinds is not None
    torch.manual_seed(seed)
    net = PooledGCN(COLOURS, 2, depth=depth, hidden=5, pool=pool).double()  # type: ignore[arg-type]
    index = torch.randint(30, (12,))
    for ours, theirs in ((known, bare), (known.take(index), bare.take(index))):
        torch.testing.assert_close(ours.received(), theirs.received())
        torch.testing.assert_close(ours.profile(2), theirs.profile(2))
        for a, b in zip(net.layers(ours), net.layers(theirs)):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(net(ours), net(theirs))
        gradients = [
            torch.autograd.grad(net(graphs).square().sum(), list(net.parameters())) for graphs in (ours, theirs)
        ]
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lay", ["kinds", "sparse", "dense"])
@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_group_gradients_are_those_of_autograd(lay: str, pool: str) -> None:
    """Groups of different sizes, asked for in another order than they stand in, and one that is not asked for."""
    graphs, bare = coloured(1, count=12)
    net = PooledGCN(COLOURS, 4, hidden=5, pool=pool).double()  # type: ignore[arg-type]
    labels = torch.tensor([2, 0, 0, 1, 3, 2, 2, 0, 3, 1, 2, 0])
    inputs = {"kinds": bare.constant(2), "sparse": bare, "dense": dense(graphs)}[lay]
    batch = Batch(inputs, labels, labels)
    for groups in ([3, 0, 2], [0, 1, 2, 3]):
        found = net.group_gradients(batch, groups, F.cross_entropy, create_graph=False)
        expected = Learner.group_gradients(net, batch, groups, F.cross_entropy, create_graph=False)
        assert not any(part.requires_grad for part in found)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_group_gradients_can_be_differentiated() -> None:
    graphs, _ = coloured(2, count=6)
    net = PooledGCN(COLOURS, 2, hidden=4).double()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    start = dense(graphs)

    def gradients(own: type[Learner], features: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
        inputs = replace(start, features=features, adjacency=normalised_dense(weights))
        batch = Batch(inputs, labels, labels)
        return own.group_gradients(net, batch, [0, 1], F.cross_entropy, create_graph=True)

    features = start.features.clone().requires_grad_()
    assert isinstance(start.adjacency, torch.Tensor)
    weights = (torch.rand_like(start.adjacency) * (1 - torch.eye(start.adjacency.shape[1]))).requires_grad_()
    found, expected = (
        torch.autograd.grad(sum((part.sin().sum() for part in parts), torch.zeros(())), [features, weights])
        for parts in (gradients(kind, features, weights) for kind in (PooledGCN, Learner))
    )
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def dense(graphs: list[nx.Graph]) -> Graphs:
    most = max(map(len, graphs))
    features = torch.zeros(len(graphs), most, COLOURS, dtype=torch.float64)
    weights = torch.zeros(len(graphs), most, most, dtype=torch.float64)
    for number, graph in enumerate(graphs):
        colours = torch.tensor([int(colour) for _, colour in graph.nodes("colour")])
        features[number, : len(graph)] = F.one_hot(colours, COLOURS).double()
        weights[number, : len(graph), : len(graph)] = torch.from_numpy(nx.to_numpy_array(graph))
    sizes = torch.tensor([len(graph) for graph in graphs])
    present = (torch.arange(most) < sizes[:, None]).flatten()
    owner = torch.arange(len(graphs)).repeat_interleave(most)
    return Graphs(features.flatten(0, 1), owner, len(graphs), normalised_dense(weights), present)


def test_nodes_that_all_differ_have_no_kinds() -> None:
    _, graphs = coloured(0, count=20)
    apart = replace(graphs, features=torch.randn_like(graphs.features))
    assert apart.constant(1).known is not None
    assert apart.constant(1).known.kinds is None  # type: ignore[union-attr]


def test_a_collision_of_hashes_makes_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hashes of one bit nearly all collide: whoever is not like the first of its hash is a kind of its own, and nothing
    else is lost."""
    _, bare = coloured(3, count=30)
    mix = graph_kinds._mix
    monkeypatch.setattr(graph_kinds, "_mix", lambda words: mix(words) & np.uint64(1))
    monkeypatch.setattr(graph_kinds, "_WORTHWHILE", 1.0)
    known = bare.constant(2)
    assert known.known is not None
    assert known.known.kinds is not None
    net = PooledGCN(COLOURS, 2, hidden=5).double()
    torch.testing.assert_close(net(known), net(bare))
