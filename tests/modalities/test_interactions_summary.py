"""The Gumbel sampler of Distill-CF."""

from __future__ import annotations

import torch

from datastill.modalities.interactions_summary import multi_draw
from datastill.rng import generator


def test_cold_draws_pick_items_with_the_probabilities_of_the_softmax() -> None:
    # At temperature 0+ a Gumbel-softmax draw is the one-hot argmax of logits + Gumbel noise (Gumbel-max).
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    drawn = multi_draw(logits, 1, 1e-3, generator(0))
    assert float((drawn.max(1).values > 0.99).double().mean()) > 0.99
    assert torch.allclose(drawn.mean(0), logits[0].softmax(0), atol=0.01)


def test_draws_are_with_replacement_and_cut_off_at_one() -> None:
    logits = torch.zeros(5_000, 10)
    drawn = multi_draw(logits, 5, 1e-3, generator(0))
    assert float(drawn.max()) <= 1
    # An item is missed by all 5 draws with probability 0.9^5.
    assert abs(float((drawn > 0.5).double().mean()) - (1 - 0.9**5)) < 0.01


def test_the_mean_of_soft_draws_is_their_expectation() -> None:
    logits = torch.randn(4, 12, generator=generator(1))
    noise = -torch.empty(20_000, 4, 12, dtype=torch.float64).exponential_(generator=generator(2)).log()
    expected = ((logits + noise) / 5).softmax(2).mean(0)
    drawn = torch.stack([multi_draw(logits, 2, 5.0, generator("draw", n)) for n in range(1_000)]).double()
    assert float(drawn.max()) < 1  # else the cut would show in the mean
    assert torch.allclose(drawn.mean(0) / 2, expected, atol=4e-3)


def test_gradients_are_those_of_finite_differences() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: multi_draw(values, 3, 2.0, generator(4)).square(), logits)


def test_equal_generators_give_equal_draws() -> None:
    logits = torch.zeros(2, 6)
    first, second, other = (multi_draw(logits, 3, 1.0, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
