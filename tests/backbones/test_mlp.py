from __future__ import annotations

import pytest
import torch

from datastill.backbones.base import parameters_of
from datastill.backbones.mlp import MLP
from datastill.errors import InputError
from datastill.rng import isolated


def test_forward_equals_matrix_products() -> None:
    with isolated(0):
        net = MLP(12, 3, depth=2, width=7)
    inputs = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    values = parameters_of(net)
    first = (inputs.flatten(1) @ values["hidden.0.weight"].T + values["hidden.0.bias"]).clamp(min=0)
    second = (first @ values["hidden.1.weight"].T + values["hidden.1.bias"]).clamp(min=0)
    assert [torch.allclose(a, b, atol=1e-6) for a, b in zip(net.layers(inputs), (first, second), strict=True)] == [
        True
    ] * 2
    assert torch.allclose(net(inputs), second @ values["head.weight"].T + values["head.bias"], atol=1e-6)


def test_depth_zero_is_linear() -> None:
    with isolated(0):
        net = MLP(4, 2, depth=0)
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(a + b) + net(torch.zeros(3, 4)), net(a) + net(b), atol=1e-6)
    assert torch.equal(net.embed(a), a)


@pytest.mark.parametrize(("features", "options"), [(0, {}), (3, {"depth": -1}), (3, {"width": 0})])
def test_bad_arguments(features: int, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be an integer"):
        MLP(features, 2, **options)
