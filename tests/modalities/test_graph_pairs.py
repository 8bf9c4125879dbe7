"""The perceptron on pairs against PyTorch's own layers on all pairs laid out, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datastill.modalities import graph_pairs
from datastill.modalities.graph_adjacency import PairMLP
from datastill.modalities.graph_pairs import pair_scores

WIDTH, HIDDEN = 4, 6


def made(seed: int = 0) -> PairMLP:
    torch.manual_seed(seed)
    edges = PairMLP(WIDTH, HIDDEN, start=-1.0).double()
    with torch.no_grad():
        for values in (*edges.gains, *edges.shifts):
            values.add_(0.3 * torch.randn_like(values))
    return edges


def laid_out(edges: PairMLP, features: Tensor) -> Tensor:
    """The same weights by `nn.BatchNorm1d` on [x_i; x_j] of all pairs."""
    count = len(features)
    units = torch.cat([features.repeat_interleave(count, 0), features.repeat(count, 1)], 1)
    for layer, gain, shift in zip((edges.pair, edges.second), edges.gains, edges.shifts):
        units = nn.functional.batch_norm(layer(units), None, None, gain, shift, training=True).relu()
    scores = edges.last(units).reshape(count, count)
    return torch.sigmoid((scores + scores.T) / 2) * (1 - torch.eye(count, dtype=features.dtype))


@pytest.mark.parametrize(
    "numbers", [1, 3 * 7 * HIDDEN, 2**24]
)  # blocks of one node, of three (the last smaller), of all
@pytest.mark.parametrize("moving", ["features", "everything"])
def test_blocks_give_what_all_pairs_laid_out_give(monkeypatch: pytest.MonkeyPatch, numbers: int, moving: str) -> None:
    monkeypatch.setitem(graph_pairs._NUMBERS, "cpu", numbers)
    edges = made()
    edges.requires_grad_(moving == "everything")
    features = torch.randn(7, WIDTH, dtype=torch.float64, requires_grad=True)
    found, expected = edges(features), laid_out(edges, features)
    torch.testing.assert_close(found, expected)
    wanted = [features, *(value for value in edges.parameters() if value.requires_grad)]
    into = torch.randn_like(found)
    ours, theirs = (
        torch.autograd.grad((into * values).sum(), wanted, allow_unused=True, materialize_grads=True)
        for values in (found, expected)
    )
    for a, b in zip(
        ours, theirs, strict=True
    ):  # batch norm takes the biases before it out again: theirs are about zero
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-7)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph_pairs._NUMBERS, "cpu", 2 * 4 * HIDDEN)
    torch.manual_seed(1)
    shapes = [(4, HIDDEN), (4, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN,), (HIDDEN,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(pair_scores, inputs)


def test_statistics_are_exact_far_from_zero() -> None:
    """Units whose mean is ten thousand times their spread, in float32."""
    torch.manual_seed(2)
    left, right = (torch.rand(9, HIDDEN, dtype=torch.float64) + 5000 for _ in range(2))
    weight, ones = torch.eye(HIDDEN, dtype=torch.float64), torch.ones(HIDDEN, dtype=torch.float64)
    exact = pair_scores(left, right, weight, ones, ones, ones)
    rounded = pair_scores(*(value.float() for value in (left, right, weight, ones, ones, ones)))
    torch.testing.assert_close(rounded.double(), exact, atol=0.05, rtol=0.01)


def test_memory_is_one_float_for_each_unit_of_each_pair() -> None:
    """Kept for the backward pass: n * n * h numbers, and less than as many again."""
    count, edges = 40, made()
    features = torch.randn(count, WIDTH, dtype=torch.float64, requires_grad=True)
    mine = {value.untyped_storage().data_ptr() for value in edges.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in mine:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        edges(features)
    assert count**2 * HIDDEN <= sum(kept.values()) < 2 * count**2 * HIDDEN + 20 * count * HIDDEN
