"""Learners of token sequences against loops over windows and tokens, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datastill.backbones.base import call_with, parameters_of
from datastill.backbones.batch import map_tensors, take, tensors_of
from datastill.backbones.text import MeanPool, TextCNN, Tokens, mean_pool
from datastill.errors import InputError


def sentences(lengths: list[int], width: int, seed: int = 0) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(lengths), max(lengths), width, generator=rng, dtype=torch.float64)
    return Tokens(vectors, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def seeded(kind: type, *sizes: int, **options: object) -> TextCNN | MeanPool:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(*sizes, **options).double().eval()


def convolve_by_loop(net: TextCNN, sentence: Tensor) -> Tensor:
    """Features of one sentence (length, d): every window from every token, read token by token."""
    features = []
    for layer in net.convolutions:
        assert isinstance(layer, torch.nn.Conv1d)
        assert layer.bias is not None
        answers = []
        for start in range(len(sentence)):
            answer = layer.bias.detach().clone()
            for offset in range(layer.kernel_size[0]):
                if start + offset < len(sentence):
                    answer += layer.weight.detach()[:, :, offset] @ sentence[start + offset]
            answers.append(answer)
        features.append(torch.stack(answers).max(0).values.clamp(min=0))
    return torch.cat(features)


def test_text_cnn_is_the_loop_over_windows() -> None:
    tokens = sentences([7, 1, 3], 4)
    net = seeded(TextCNN, 4, 2, windows=(2, 3, 5), channels=6)
    assert isinstance(net, TextCNN)
    assert isinstance(net.head, torch.nn.Linear)
    expected = torch.stack([convolve_by_loop(net, row[mask]) for row, mask in zip(tokens.vectors, tokens.mask)])
    torch.testing.assert_close(net.embed(tokens).detach(), expected)
    torch.testing.assert_close(net(tokens).detach(), (expected @ net.head.weight.T + net.head.bias).detach())
    assert [features.shape[1] for features in net.layers(tokens)] == [6, 6, 6, 18]


def test_mean_pool_is_the_loop_over_tokens() -> None:
    tokens = sentences([5, 2, 1], 3)
    means = torch.stack([row[mask].mean(0) for row, mask in zip(tokens.vectors, tokens.mask)])
    torch.testing.assert_close(mean_pool(tokens), means)
    net = seeded(MeanPool, 3, 2, hidden=(8, 5))
    assert isinstance(net, MeanPool)
    features = means
    for layer in net.body:
        assert isinstance(layer, torch.nn.Linear)
        features = (features @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(net.embed(tokens), features)
    assert [part.shape for part in net.layers(tokens)] == [(3, 8), (3, 5)]


@pytest.mark.parametrize("kind", [TextCNN, MeanPool])
def test_padding_never_matters(kind: type) -> None:
    tokens = sentences([3, 1], 4)
    net = seeded(kind, 4, 3)
    longer = torch.cat([tokens.vectors, torch.full((2, 6, 4), torch.inf, dtype=torch.float64)], dim=1)
    longer.requires_grad_()
    padded = Tokens(longer, torch.cat([tokens.mask, torch.zeros(2, 6, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(net(padded), net(tokens))
    (slope,) = torch.autograd.grad(net(padded).square().sum(), longer)
    assert slope.isfinite().all()
    assert not slope[~padded.mask].any()


@pytest.mark.parametrize("kind", [TextCNN, MeanPool])
def test_second_derivatives_match_finite_differences(kind: type) -> None:
    tokens = sentences([4, 2], 3)
    options = {"windows": (1, 2), "channels": 3} if kind is TextCNN else {"hidden": (4,)}
    net = seeded(kind, 3, 2, **options)
    start = parameters_of(net)
    names = list(start)

    def outputs(vectors: Tensor, *values: Tensor) -> Tensor:
        # tanh, so that second derivatives exist although both networks are piecewise linear in each argument
        return call_with(net, dict(zip(names, values)), Tokens(vectors, tokens.mask)).tanh()

    values = [start[name].requires_grad_() for name in names]
    assert torch.autograd.gradgradcheck(outputs, (tokens.vectors.clone().requires_grad_(), *values))


def test_dropout_acts_in_training_only() -> None:
    tokens = sentences([6, 6], 4)
    net = seeded(TextCNN, 4, 2, dropout=0.5)
    torch.testing.assert_close(net(tokens), net(tokens), rtol=0, atol=0)
    net.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(net(tokens), net(tokens))


def test_tokens_go_through_the_batch_helpers() -> None:
    tokens = sentences([3, 2, 1], 2)
    picked = take(tokens, torch.tensor([2, 0]))
    assert torch.equal(picked.vectors, tokens.vectors[[2, 0]])
    assert torch.equal(picked.mask, tokens.mask[[2, 0]])
    assert len(picked) == 2
    assert len(tensors_of(tokens)) == 2
    assert map_tensors(torch.clone, tokens).mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TextCNN(0, 2), "width"),
        (lambda: TextCNN(4, 2, windows=()), "windows"),
        (lambda: TextCNN(4, 2, windows=(0,)), "windows"),
        (lambda: TextCNN(4, 2, dropout=1.0), "dropout"),
        (lambda: MeanPool(4, 2, hidden=()), "hidden"),
        (lambda: MeanPool(4, 0), "outputs"),
    ],
)
def test_bad_sizes_are_refused(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=words):
        make()
