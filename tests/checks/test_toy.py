"""The toy modality passes the kit, check by check."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from datastill.checks import MODALITY_CHECKS, ToyModality


@pytest.mark.parametrize("check", MODALITY_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("init", ["real", "noise"])
def test_toy(check: Callable[..., None], init: str) -> None:
    check(ToyModality(), init=init)
