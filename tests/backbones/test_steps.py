"""Quick steps of an optimiser are its own steps, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.graph import SGC
from datastill.backbones.nodes import Nodes
from datastill.backbones.steps import aligned, stepper

SETTINGS: list[tuple[type[Any], dict[str, Any]]] = [
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.Adam, {"fused": True, "weight_decay": 0.1, "betas": (0.5, 0.9), "lr": 0.3}),
    (torch.optim.Adam, {"fused": True, "amsgrad": True}),
    (torch.optim.Adam, {}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_quick_steps_are_the_optimisers_own(kind: type[Any], settings: dict[str, Any]) -> None:
    found = []
    for quick in (False, True):
        torch.manual_seed(0)
        values = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]
        optimizer = kind(values, **settings)
        for number in range(6):
            for value in values:
                value.grad = torch.randn_like(value)
            (
                stepper(optimizer) if quick and number != 3 else optimizer.step
            )()  # the fourth shows that the state is shared
        found.append([*values, *(part for state in optimizer.state.values() for part in state.values())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("adam", [True, False])
def test_a_linear_learner_descends_as_every_learner(adam: bool) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rng = torch.Generator().manual_seed(1)
    features, adjacency = (torch.randn(6, width, generator=rng, dtype=torch.float64) for width in (5, 6))
    batch = Batch(Nodes(features, adjacency, torch.arange(6)), labels, labels)
    found = []
    for own in (SGC, Learner):
        torch.manual_seed(2)
        net = SGC(5, 3).double()
        optimizer = (
            torch.optim.Adam(net.parameters(), 0.1, fused=True) if adam else torch.optim.SGD(net.parameters(), 0.1)
        )
        for steps in (1, 4):
            own.descend(net, batch, F.cross_entropy, optimizer, steps)  # type: ignore[attr-defined]
        found.append([value.detach() for value in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("fused", [torch.optim.Adam, torch.optim.SGD])
def test_a_fused_step_heeds_the_layout_of_parameters(fused: type[Any], quick: bool) -> None:
    """A transposed parameter, whose moments come from a file that has no strides, against a step that is not fused."""
    settings = {"lr": 0.1, "momentum": 0.9} if fused is torch.optim.SGD else {"lr": 0.1}
    found = []
    for options in ({"fused": True}, {"foreach": False}):
        torch.manual_seed(0)
        value = nn.Parameter(torch.randn(4, 6).t())
        optimizer = aligned(fused([value], **settings, **options))
        for number in range(4):
            value.grad = torch.randn(6, 4)
            (stepper(optimizer) if quick and number == 3 else optimizer.step)()
            if number == 1:
                kept = optimizer.state_dict()
                kept["state"][0] = {
                    name: part.contiguous() if isinstance(part, torch.Tensor) else part
                    for name, part in kept["state"][0].items()
                }
                optimizer.load_state_dict(kept)
        found.append(value.detach())
    torch.testing.assert_close(found[0], found[1])
