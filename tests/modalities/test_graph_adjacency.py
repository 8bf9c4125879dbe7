"""Synthetic structures against the plain computation they shorten, and the statistics they promise."""

from __future__ import annotations

import torch
from torch import nn

from datastill.modalities.graph_adjacency import BernoulliEdges, PairMLP
from datastill.rng import generator


def test_pair_perceptron_is_that_of_all_pairs_laid_out() -> None:
    torch.manual_seed(0)
    edges = PairMLP(6, hidden=5).double()
    with torch.no_grad():
        for parameter in [*edges.gains, *edges.shifts]:
            parameter.add_(torch.randn_like(parameter) / 3)
    features = torch.randn(7, 6, dtype=torch.float64)
    first, second = nn.BatchNorm1d(5).double(), nn.BatchNorm1d(5).double()
    for norm, gain, shift in zip((first, second), edges.gains, edges.shifts):
        norm.weight, norm.bias = gain, shift
    pairs = torch.cat([features.repeat_interleave(7, 0), features.repeat(7, 1)], 1)
    hidden = torch.relu(first(edges.pair(pairs)))
    scores = edges.last(torch.relu(second(edges.second(hidden)))).reshape(7, 7)
    expected = torch.sigmoid((scores + scores.T) / 2)
    expected.fill_diagonal_(0)
    torch.testing.assert_close(edges(features), expected)


def test_pair_perceptron_has_right_derivatives() -> None:
    torch.manual_seed(1)
    edges = PairMLP(3, hidden=4).double()
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(edges, features)


def test_pair_perceptron_never_lays_the_pairs_out() -> None:
    """What is kept for the backward pass grows with n * n * hidden, and not with the width of the features."""

    def kept(width: int, count: int = 40, hidden: int = 16) -> int:
        edges = PairMLP(width, hidden)
        features = torch.randn(count, width, requires_grad=True)
        given = {tensor.untyped_storage().data_ptr() for tensor in (*edges.parameters(), features)}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                found[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = edges(features)
        assert result.shape == (count, count)
        return sum(found.values())

    pairs = 40 * 40
    assert pairs * 16 < kept(8) < 5 * pairs * 16
    # 2,000 features a node would be 6.4 million numbers if the pairs were laid out.
    assert kept(2000) < kept(8) + pairs
    assert kept(2000) < pairs * 2 * 2000 / 40


def test_threshold_cuts_weights() -> None:
    torch.manual_seed(2)
    edges = PairMLP(3, hidden=4)
    features = torch.randn(9, 3)
    weights = edges(features).detach()
    edges.threshold = float(weights[weights > 0].median())
    cut = edges.discrete(features)
    assert torch.equal(cut, weights * (weights > edges.threshold))
    assert 0 < int((cut > 0).sum()) < 72


def test_bernoulli_samples_have_the_right_mean_and_sharpen() -> None:
    edges = BernoulliEdges(torch.zeros(5, 5), temperature=(1.0, 0.01), anneal=10)
    with torch.no_grad():
        edges.logits.copy_(torch.linspace(-2, 2, 10))
    features = torch.zeros(5, 2)
    for _ in range(10):
        edges.stepped()
    assert abs(edges.current_temperature() - 0.01) < 1e-9
    rng = generator(0)
    samples = torch.stack([edges(features, rng) for _ in range(4000)]).detach()
    # At a low temperature a sample is all but Bernoulli, whose mean is the probability.
    torch.testing.assert_close(samples.mean(0), edges(features).detach(), atol=0.03, rtol=0)
    assert float(((samples < 0.05) | (samples > 0.95)).float().mean()) > 0.97
    assert torch.equal(samples[0], samples[0].T)
    assert not samples.diagonal(dim1=1, dim2=2).any()


def test_temperature_falls_geometrically_with_steps_and_is_restored() -> None:
    edges = BernoulliEdges(torch.zeros(3, 3), temperature=(1.0, 0.01), anneal=4)
    seen = []
    for _ in range(6):
        seen.append(edges.current_temperature())
        edges.stepped()
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([1, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01]))
    other = BernoulliEdges(torch.zeros(3, 3), temperature=(1.0, 0.01), anneal=4)
    other.load_state_dict(edges.state_dict())
    assert other.current_temperature() == edges.current_temperature()


def test_bernoulli_starts_from_the_given_edges() -> None:
    initial = torch.zeros(4, 4)
    initial[0, 2] = initial[2, 0] = 1
    edges = BernoulliEdges(initial)
    assert torch.equal(edges.discrete(torch.zeros(4, 1)), initial)


def test_sparsity_penalty_is_the_excess_over_the_start() -> None:
    edges = BernoulliEdges(torch.zeros(4, 4), sparsity_weight=0.5)
    start = edges.penalty()
    assert start is not None
    assert start.item() == 0
    with torch.no_grad():
        edges.logits.zero_()
    expected = 0.5 * (0.5 - torch.sigmoid(torch.tensor(-2.0)))
    torch.testing.assert_close(edges.penalty(), expected)
    assert BernoulliEdges(torch.zeros(4, 4), sparsity_weight=0).penalty() is None
