from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill.backbones import winograd
from datastill.backbones.precision import Conv2d
from datastill.backbones.winograd import convolve, pays, weight_slopes

SIZES = [(14, 14), (7, 7), (4, 9), (1, 30), (13, 3)]


def draw(points: int, channels: int, width: int, size: tuple[int, int]) -> list[Tensor]:
    """Inputs, weight, bias and slopes of the outputs, the first three to be differentiated."""
    torch.manual_seed(points)
    shapes = ((points, channels, *size), (width, channels, 3, 3), (width,), (points, width, *size))
    drawn = [torch.randn(shape) for shape in shapes]
    return [*(value.requires_grad_() for value in drawn[:3]), drawn[3]]


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_sum_over_windows_and_its_gradients(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS", 36 * 40 * 7)  # several points at a time, and the last few of them
    inputs, weight, bias, slopes = draw(11, 5, 7, size)
    outputs = convolve(inputs, weight, bias)
    exact = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
    assert outputs.is_contiguous()
    assert distance(outputs, exact) < 3e-6
    found = torch.autograd.grad(outputs, (inputs, weight, bias), slopes)
    expected = torch.autograd.grad(exact, (inputs, weight, bias), slopes.double())
    for mine, its in zip(found, expected):
        assert mine.shape == its.shape
        assert distance(mine, its.double()) < 3e-6
    assert torch.equal(weight_slopes(slopes, inputs.detach(), weight.detach()), found[1])


def test_its_points_round_less_than_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight, bias, _ = draw(8, 32, 32, (14, 14))
    exact = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
    caches = (winograd._toom_cook, winograd._filter_matrix, winograd._transforms)
    errors = [distance(convolve(inputs, weight, bias), exact)]
    monkeypatch.setattr(winograd, "_POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    try:
        for cache in caches:
            cache.cache_clear()
        errors.append(distance(convolve(inputs, weight, bias), exact))
    finally:
        for cache in caches:
            cache.cache_clear()
    assert errors[0] < 0.7 * errors[1] < 1e-5  # the usual ones do convolve


def test_how_many_points_go_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight, bias, slopes = draw(9, 6, 4, (8, 8))
    results = []
    for numbers in (1, 10**7):
        monkeypatch.setattr(winograd, "_NUMBERS", numbers)
        outputs = convolve(inputs, weight, bias)
        results.append([outputs, *torch.autograd.grad(outputs, (inputs, weight, bias), slopes)])
    for one, other in zip(*results):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,)])
def test_each_gradient_alone(wanted: tuple[int, ...]) -> None:
    drawn = draw(5, 6, 4, (8, 8))
    for number in range(3):
        drawn[number].requires_grad_(number in wanted)
    inputs, weight, bias, slopes = drawn
    (found,) = torch.autograd.grad(convolve(inputs, weight, bias), drawn[wanted[0]], slopes)
    (expected,) = torch.autograd.grad(F.conv2d(inputs, weight, bias, padding=1), drawn[wanted[0]], slopes)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients() -> None:
    inputs, weight, bias, _ = draw(4, 6, 5, (8, 8))
    derived = []
    for outputs in (convolve(inputs, weight, bias), F.conv2d(inputs, weight, bias, padding=1)):
        first = torch.autograd.grad(outputs.square().sum(), (inputs, weight, bias), create_graph=True)
        total = sum(value.square().sum() for value in first)
        assert isinstance(total, Tensor)
        derived.append(torch.autograd.grad(total, (inputs, weight, bias)))
    for mine, its in zip(*derived):
        assert torch.allclose(mine, its, rtol=1e-4, atol=1e-4 * float(its.abs().max()))


def test_inputs_of_any_layout_and_without_a_bias() -> None:
    inputs, weight, _, slopes = draw(6, 5, 4, (8, 12))
    striped = inputs.detach()[::2, :, ::2].requires_grad_()
    for given in (striped, inputs.detach().to(memory_format=torch.channels_last).requires_grad_()):
        mine = slopes[: len(given), :, : given.shape[2]]
        outputs = convolve(given, weight, None)
        expected = F.conv2d(given, weight, padding=1)
        assert torch.allclose(outputs, expected, rtol=1e-4, atol=1e-4)
        for one, other in zip(*(torch.autograd.grad(each, (given, weight), mine) for each in (outputs, expected))):
            assert torch.allclose(one, other, rtol=1e-4, atol=2e-4)


def test_works_after_inference_mode() -> None:
    """Memory and constants are kept from one call to the next."""
    inputs, weight, bias, slopes = draw(3, 4, 4, (40, 44))  # of a size that no other test has
    with torch.inference_mode():
        inside = convolve(inputs, weight, bias)
    outputs = convolve(inputs, weight, bias)
    assert torch.equal(outputs, inside)
    assert torch.autograd.grad(outputs, inputs, slopes)[0].isfinite().all()


def test_other_default_types_change_nothing() -> None:
    inputs, weight, bias, slopes = draw(3, 4, 4, (36, 48))  # of a size that no other test has
    torch.set_default_dtype(torch.float64)
    try:
        outputs = convolve(inputs, weight, bias)
        (found,) = torch.autograd.grad(outputs, inputs, slopes)
    finally:
        torch.set_default_dtype(torch.float32)
    assert outputs.dtype == found.dtype == torch.float32


def test_results_are_not_in_memory_that_is_used_again() -> None:
    inputs, weight, bias, _ = draw(3, 4, 4, (8, 8))
    first = convolve(inputs, weight, bias)
    kept = first.detach().clone()
    convolve(inputs + 1, weight, bias)
    assert torch.equal(first, kept)


def test_layers_use_it_where_it_pays() -> None:
    wide = Conv2d(128, 128, 3, padding=1)
    assert pays(wide, torch.zeros(8, 128, 14, 14))
    assert not pays(wide, torch.zeros(7, 128, 14, 14))  # 7 * 16 tiles
    assert not pays(wide.double(), torch.zeros(8, 128, 14, 14, dtype=torch.float64))
    for other in (
        Conv2d(127, 128, 3, padding=1),
        Conv2d(128, 128, 3),
        Conv2d(128, 128, 3, stride=2, padding=1),
        Conv2d(128, 128, 5, padding=1),
        Conv2d(128, 128, 3, padding=1, groups=2),
        Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    ):
        assert not pays(other, torch.zeros(8, other.in_channels, 14, 14))


def test_a_layer_gives_what_pytorch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, inputs = Conv2d(128, 130, 3, padding=1), torch.randn(8, 128, 16, 13)
    calls: list[int] = []
    monkeypatch.setattr(winograd, "convolve", lambda *given: calls.append(1) or convolve(*given))  # type: ignore[func-returns-value]
    outputs = layer(inputs)
    assert calls == [1]
    assert torch.allclose(outputs, F.conv2d(inputs, layer.weight, layer.bias, padding=1), atol=2e-5)
