"""Gradients of all groups from one pass against autograd, a group at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones import convnet, winograd
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.by_group import passes
from datastill.backbones.convnet import NORMS, ConvNet
from datastill.backbones.fast import CHUNK
from datastill.backbones.losses import cross_entropy_slopes, sloped
from datastill.backbones.precision import convolved_in
from datastill.rng import generator, isolated

KINDS = (ConvNet.group_gradients, Learner.group_gradients)


@sloped(cross_entropy_slopes)
def with_slopes(outputs: Tensor, targets: Any) -> Tensor:
    return F.cross_entropy(outputs, targets)


def network(shape: tuple[int, int, int], width: int, **options: Any) -> ConvNet:
    with isolated(0):
        net = ConvNet(shape, 3, width=width, **options).double()
        for value in net.parameters():  # biases, scales and shifts too
            nn.init.normal_(value, std=0.5)
        net.train()(torch.randn(8, *shape, dtype=torch.float64))  # statistics of batch norm
    return net.eval()


def points(labels: list[int], shape: tuple[int, int, int]) -> Batch:
    classes = torch.tensor(labels)
    images = torch.randn(len(labels), *shape, generator=generator("images"), dtype=torch.float64)
    return Batch(images, classes, classes)


@pytest.mark.parametrize("loss", [F.cross_entropy, with_slopes], ids=["any loss", "known slopes"])
@pytest.mark.parametrize(("shape", "width"), [((1, 8, 8), 12), ((1, 8, 8), 4), ((2, 7, 10), 4)], ids=str)
@pytest.mark.parametrize(
    "options",
    [*({"norm": norm} for norm in NORMS), {"pool": "max", "activation": "swish"}, {"frepo": True, "norm": "batch"}],
    ids=str,
)
def test_gradients_and_their_derivatives_are_those_of_autograd(
    options: dict[str, Any],
    shape: tuple[int, int, int],
    width: int,
    loss: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convnet, "_MAPS", 0)  # so that no more than CHUNK go together
    net = network(shape, width, **options)
    # One point, five, and more than go through together; and a group that is not asked for.
    batch, groups = points([1, 3, 0, 2, 1, 1, 2, 0, 1, 1] + [0] * (CHUNK + 3), shape), [2, 0, 1]
    batch = Batch(batch.inputs, batch.targets.clamp(max=2), batch.groups)
    results = []
    for find in KINDS:
        images = batch.inputs.clone().requires_grad_()
        found = find(net, Batch(images, batch.targets, batch.groups), groups, loss, create_graph=True)
        value = torch.stack([((1 + number) * part.pow(3) + part).sum() for number, part in enumerate(found)]).sum()
        results.append([*found, *torch.autograd.grad(value, images)])
    chunked = net.group_gradients(batch, groups, loss, create_graph=False)
    assert not any(part.requires_grad for part in chunked)
    for mine, expected in [*zip(*results), *zip(chunked, results[1])]:
        assert mine.shape == expected.shape
        scale = float(expected.detach().abs().max())
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-9 * scale + 1e-9)
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.parametrize("width", [4, 128])
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 7, 10)], ids=str)
def test_so_they_are_of_groups_of_a_single_point(shape: tuple[int, int, int], width: int) -> None:
    net, batch, results = network(shape, width), points([1, 3, 0, 2], shape), []
    batch = Batch(batch.inputs, batch.targets.clamp(max=2), batch.groups)
    for find in KINDS:
        images = batch.inputs.clone().requires_grad_()
        single = Batch(images, batch.targets, batch.groups)
        found = find(net, single, [2, 0, 3, 1], F.cross_entropy, create_graph=True)
        value = torch.stack([((1 + number) * part.pow(3) + part).sum() for number, part in enumerate(found)]).sum()
        plain = find(net, single, [2, 0, 3, 1], F.cross_entropy, create_graph=False)
        results.append([*found, *plain, *torch.autograd.grad(value, images)])
    for mine, expected in zip(*results):
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()) + 1e-12)


def test_all_points_in_one_pass_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that is not asked to spare its caches."""
    net, batch, results = network((1, 8, 8), 12), points([0, 1, 2] * CHUNK, (1, 8, 8)), []
    for most in (CHUNK, None):
        monkeypatch.setattr(ConvNet, "points_at_a_time", lambda _, most=most: most)
        images = batch.inputs.clone().requires_grad_()
        found = net.group_gradients(Batch(images, batch.targets, batch.groups), [1, 2], with_slopes, create_graph=True)
        plain = net.group_gradients(batch, [1, 2], with_slopes, create_graph=False)
        second = torch.autograd.grad(torch.stack([part.pow(2).sum() for part in found]).sum(), images)
        results.append([*found, *plain, *second])
    for mine, other in zip(*results):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max()))


def test_a_second_derivative_leaves_no_gradient_at_the_parameters() -> None:
    net, batch = network((1, 8, 8), 4), points([0, 1, 2], (1, 8, 8))
    batch.inputs.requires_grad_()
    found = net.group_gradients(batch, [0, 1, 2], with_slopes, create_graph=True)
    torch.stack([part.square().sum() for part in found]).sum().backward()
    assert batch.inputs.grad is not None
    assert batch.inputs.grad.abs().sum() > 0
    assert all(value.grad is None for value in net.parameters())


def test_while_training_the_points_of_a_group_go_alone() -> None:
    """Batch norm then takes its moments from a batch, so that groups must not meet in one."""
    net, batch = network((1, 8, 8), 4, norm="batch").train(), points([0, 0, 1, 1, 1], (1, 8, 8))
    found = net.group_gradients(batch, [0, 1], F.cross_entropy, create_graph=True)
    expected = Learner.group_gradients(net, batch, [0, 1], F.cross_entropy, create_graph=True)
    assert all(torch.allclose(mine, other, atol=1e-12) for mine, other in zip(found, expected))


def test_reduced_precision_rounds_what_it_rounds_for_one_group() -> None:
    net, batch = (
        network((1, 16, 16), 32, depth=3).float(),
        points([0, 1, 1, 2, 2, 2] * 2, (1, 16, 16)).to(None, torch.float32),
    )
    groups = [0, 1, 2]
    each = [Learner.group_gradients(net, batch, groups, F.cross_entropy, create_graph=False)]
    with convolved_in("bfloat16"):
        each += [find(net, batch, groups, F.cross_entropy, create_graph=False) for find in KINDS]
    full, mine, expected = (torch.cat([part.flatten(1) for part in parts], 1) for parts in each)
    off, rounding = (mine - expected).norm(dim=1), (full - expected).norm(dim=1)
    assert (rounding > 1e-4 * full.norm(dim=1)).all()
    assert (off < rounding).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 40))
def test_passes_hold_every_point_once(sizes: list[int], most: int) -> None:
    counts = [0] * len(sizes)
    for positions, number in passes(sizes, most):
        assert 0 < number <= most
        mine = range(len(sizes))[positions]
        if len(mine) > 1:
            assert number == sum(sizes[position] for position in mine)
        for position in mine:
            counts[position] += number if len(mine) == 1 else sizes[position]
        assert not any(counts[mine[-1] + 1 :])
    assert counts == sizes


def test_wide_layers_take_winograd_products_with_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch, results, calls = network((1, 32, 32), 128).float(), points([0] * 9 + [1] * 9, (1, 32, 32)), [], []
    usual = winograd.weight_slopes

    def noted(*given: Tensor) -> Tensor:
        calls.append(len(given[0]))
        return usual(*given)

    monkeypatch.setattr(winograd, "weight_slopes", noted)
    for find in KINDS:
        images = batch.inputs.float().requires_grad_()
        given = Batch(images, batch.targets, batch.groups)
        found = find(net, given, [0, 1], F.cross_entropy, create_graph=True)
        value = torch.stack([part.square().sum() for part in found]).sum()
        results.append([*(part.detach() for part in found), *torch.autograd.grad(value, images)])
    assert set(calls) == {9}
    for mine, expected in zip(*results):
        scale = float(expected.abs().max())
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4 * scale + 1e-7)
