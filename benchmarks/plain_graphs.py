"""Gradient matching on graphs written out plainly, in the manner of the published loops: what `graphs.py` compares with.

Each loop is a generator of losses, one a step. It starts from a copy of a summary's parameters and makes the same draws, so
that its losses must be the library's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.nodes import normalised
from datastill.modalities.graph_adjacency import BernoulliEdges, PairMLP
from datastill.rng import generator


class PlainPairs(nn.Module):
    """GCond's adjacency: a perceptron with batch norm on [x_i; x_j], laid out for all n * n pairs."""

    def __init__(self, like: PairMLP) -> None:
        super().__init__()
        hidden, width = like.pair.weight.shape
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        ).to(like.pair.weight.dtype)
        first, first_norm, _, second, second_norm, _, last = self.layers
        pairs = [(first, like.pair), (second, like.second), (last, like.last)]
        with torch.no_grad():
            for mine, theirs in pairs:
                mine.weight.copy_(theirs.weight)
                mine.bias.zero_() if theirs.bias is None else mine.bias.copy_(
                    theirs.bias
                )  # without one before batch norm
            for norm, gain, shift in zip((first_norm, second_norm), like.gains, like.shifts):
                norm.weight.copy_(gain)
                norm.bias.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Weights (n, n)."""
        count = len(x)
        pairs = torch.cat([x.repeat_interleave(count, 0), x.repeat(count, 1)], 1)
        scores = self.layers(pairs).reshape(count, count)
        return torch.sigmoid((scores + scores.T) / 2) * (1 - torch.eye(count, dtype=x.dtype))


def normalise(weights: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2."""
    looped = weights + torch.eye(weights.shape[-1], dtype=weights.dtype)
    scale = looped.sum(-1).rsqrt()
    return scale[..., :, None] * looped * scale[..., None, :]


def columns_apart(ours: list[Tensor], real: list[Tensor]) -> Tensor:
    """1 - cosine of every output's weights, summed; biases are skipped."""
    total = torch.zeros((), dtype=ours[0].dtype)
    for a, b in zip(ours, real):
        if a.dim() == 2:
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def receptive_field(adjacency: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two sparse blocks that take features two hops to `rows`, and the nodes that the features are of."""
    first = adjacency.index_select(0, rows).coalesce()
    middle, column = first.indices()[1].unique(return_inverse=True)
    first = torch.sparse_coo_tensor(torch.stack([first.indices()[0], column]), first.values(), (len(rows), len(middle)))
    second = adjacency.index_select(0, middle).coalesce()
    far, column = second.indices()[1].unique(return_inverse=True)
    second = torch.sparse_coo_tensor(
        torch.stack([second.indices()[0], column]), second.values(), (len(middle), len(far))
    )
    return first.coalesce(), second.coalesce(), far


def gcond(
    modality: Any, summary: Any, *, seed: int, outer: int, inner: int, lr: float, turns: tuple[int, int]
) -> Iterator[float]:
    """GCond (arXiv 2110.07580): for every class a forward pass of two hops on each side and its gradients by autograd.

    The real side takes the exact receptive field of the training nodes of a class, found beforehand, where the published
    code samples neighbours at every step: that is cheaper, and has no noise.
    """
    graph, dtype = modality.graph, modality.dtype
    # Like the library's, A is rounded to float32 before it is widened.
    operator = normalised(graph.edge_index, graph.edge_weight, len(graph.features))
    entries = torch.stack([operator.owners(), operator.columns])
    adjacency = torch.sparse_coo_tensor(entries, operator.values.to(dtype), operator.shape).coalesce()
    features, train = graph.features.to(dtype), graph.parts["train"]
    fields = [receptive_field(adjacency, train[graph.labels[train] == c]) for c in range(graph.num_classes)]
    x, labels = nn.Parameter(summary.features.detach().clone()), summary.labels
    pairs = PlainPairs(summary.edges)
    move_x, move_pairs = torch.optim.Adam([x], lr), torch.optim.Adam(pairs.parameters(), lr)
    counts = torch.bincount(labels)
    for step in range(1_000_000):
        if step % outer == 0:
            net = modality.learner("sgc", rng=generator(seed, "loss", step))
            weight, bias = (parameter.detach().clone().requires_grad_() for parameter in net.parameters())
            train_net = torch.optim.Adam([weight, bias], 0.01)
        s = normalise(pairs(x))
        total = torch.zeros((), dtype=dtype)
        for c, (first, second, far) in enumerate(fields):
            out = torch.sparse.mm(first, torch.sparse.mm(second, features[far] @ weight.T)) + bias
            loss = F.cross_entropy(out, torch.full((len(out),), c))
            real = [part.detach() for part in torch.autograd.grad(loss, [weight, bias])]
            out = s @ (s @ (x * summary.scale @ weight.T)) + bias
            loss = F.cross_entropy(out[labels == c], labels[labels == c])
            ours = list(torch.autograd.grad(loss, [weight, bias], create_graph=True))
            total = total + counts[c] / counts.max() * columns_apart(ours, real)
        move_x.zero_grad()
        move_pairs.zero_grad()
        total.backward()
        (move_pairs if step % sum(turns) < turns[0] else move_x).step()
        if (step + 1) % outer:
            with torch.no_grad():
                s, fixed = normalise(pairs(x)), x.detach() * summary.scale
            for _ in range(inner):
                train_net.zero_grad()
                F.cross_entropy(s @ (s @ (fixed @ weight.T)) + bias, labels).backward()
                train_net.step()
        yield float(total.detach())


def doscond(
    modality: Any, summary: Any, graphs: list[Any], *, seed: int, size: int, lr: dict[str, float]
) -> Iterator[float]:
    """DosCond on small graphs (arXiv 2206.07746): PyG's layers, a collated real batch and a dense one for every class."""
    from torch_geometric.data import Batch
    from torch_geometric.nn import DenseGCNConv, GCNConv, global_mean_pool

    edges: BernoulliEdges = summary.edges
    labels, count = summary.labels, edges.count
    x = nn.Parameter(summary.features.detach().reshape(len(labels), count, -1).clone())
    logits = nn.Parameter(edges.logits.detach().clone())
    upper = torch.triu_indices(count, count, 1)
    optimizer = torch.optim.Adam([{"params": [x], "lr": lr["features"]}, {"params": [logits], "lr": lr["adjacency"]}])
    train = modality.parts["train"]
    members = [train[modality.graphs.labels[train] == c] for c in range(modality.num_groups)]

    def square(values: Tensor) -> Tensor:
        full = values.new_zeros(len(labels), count, count)
        full[:, upper[0], upper[1]] = values
        return full + full.mT

    for step in range(1_000_000):
        rng = generator(seed, "loss", step)
        net = modality.learner("gcn", rng=rng)
        layers = [net.first, *net.others]
        parameters = list(net.parameters())
        sparse, dense = (
            [kind(layer.in_features, layer.out_features) for layer in layers] for kind in (GCNConv, DenseGCNConv)
        )
        for mine in (*zip(sparse, layers), *zip(dense, layers)):
            mine[0].lin.weight, mine[0].bias = mine[1].weight, mine[1].bias
        picks = [
            mine[torch.randperm(len(mine), generator=rng)[:size]] if size < len(mine) else mine for mine in members
        ]
        uniform = torch.rand(logits.shape, generator=rng, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        temperature = edges.first * (edges.final / edges.first) ** min(1.0, step / edges.anneal)
        adjacency = square(torch.sigmoid((logits + uniform.logit().to(logits.dtype)) / temperature))
        total = torch.zeros((), dtype=x.dtype)
        for c, pick in enumerate(picks):
            batch = Batch.from_data_list([graphs[i] for i in pick.tolist()])
            hidden = batch.x.to(x.dtype)
            for layer in sparse:
                hidden = layer(hidden, batch.edge_index).relu()
            loss = F.cross_entropy(net.head(global_mean_pool(hidden, batch.batch)), torch.full((len(pick),), c))
            real = torch.autograd.grad(loss, parameters)
            mine = labels == c
            hidden = x[mine] * summary.scale
            for layer in dense:
                hidden = layer(hidden, adjacency[mine]).relu()
            loss = F.cross_entropy(net.head(hidden.mean(1)), labels[mine])
            ours = torch.autograd.grad(loss, parameters, create_graph=True)
            apart = sum((a - b).square().sum() for a, b in zip(ours, real))
            total = total + apart / sum(b.square().sum() for b in real)
        penalty = edges.sparsity_weight * F.relu(torch.sigmoid(logits).mean() - edges.density)
        optimizer.zero_grad()
        (total + penalty).backward()
        optimizer.step()
        yield float((total + penalty).detach())
