"""The Gumbel sampler of Distill-CF."""

from __future__ import annotations

import pytest
import torch

from datastill.modalities.interactions_draws import multi_draw
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


@pytest.mark.parametrize("temperature", [0.1, 0.5, 10.0])
def test_draws_have_the_mean_and_the_spread_of_ordinary_gumbel_softmax(temperature: float) -> None:
    logits = torch.randn(40, 50, generator=generator(0))
    rng = generator(1)
    with torch.no_grad():
        ours = torch.stack([multi_draw(logits, 1, temperature, generator("draw", n)) for n in range(400)])
        uniform = torch.rand(400, 40, 50, dtype=torch.float64, generator=rng)
        plain = ((logits - (-uniform.log()).log()) / temperature).softmax(2)
    error = (ours.double().var(0) / 400 + plain.var(0) / 400).sqrt()
    assert float(((ours.double().mean(0) - plain.mean(0)) / error).abs().max()) < 5
    spread = ours.double().var(0).mean() / plain.var(0).mean()
    assert abs(float(spread) - 1) < 0.1


def test_draws_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastill.modalities.interactions_draws.BLOCK", 64)
    logits = torch.randn(30, 20, generator=generator(0))
    found = []
    threads = torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        values = logits.clone().requires_grad_()
        drawn = multi_draw(values, 3, 2.0, generator(3))
        (gradient,) = torch.autograd.grad(drawn.square().sum(), values)
        found.append((drawn.detach(), gradient))
    torch.set_num_threads(threads)
    assert all(torch.equal(one[0], found[0][0]) and torch.equal(one[1], found[0][1]) for one in found)


def test_noise_that_is_kept_gives_the_gradient_of_noise_that_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(30, 20, generator=generator(0), dtype=torch.float64)
    found = []
    for kept in (0, 2**20):
        monkeypatch.setattr("datastill.modalities.interactions_draws.KEPT", kept)
        values = logits.clone().requires_grad_()
        drawn = multi_draw(values, 5, 2.0, generator(3))
        found.append((drawn.detach(), *torch.autograd.grad(drawn.square().sum(), values)))
        few = logits[:3, :4].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda values: multi_draw(values, 3, 2.0, generator(4)).square(), few)
    for made, stored in zip(*found):
        assert torch.allclose(made, stored, rtol=5e-3, atol=1e-4)  # half precision of log E
