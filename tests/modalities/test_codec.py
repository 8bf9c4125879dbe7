"""Stored numbers: what is read back is what was optimised, in the bytes that arithmetic says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.errors import ArtifactError, InputError
from datastill.modalities.codec import NAMES, Codec
from datastill.rng import generator

SHAPES = [(6, 1, 9, 9), (5, 3, 8, 8), (3, 5), (16, 3, 3, 3), (7, 100), (0, 1, 8, 8), (1,)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_read_back_is_what_was_optimised(name: str, shape: tuple[int, ...]) -> None:
    codec, values = Codec(name), torch.randn(shape, generator=generator("values"))
    read = codec.decode(codec.encode(values), shape)
    assert torch.equal(read, codec.round(values))
    assert torch.equal(read, codec.through(values))
    assert torch.equal(codec.round(read), read) or codec.bits < 16


@pytest.mark.parametrize(("bits", "levels"), [(8, 256), (4, 16), (2, 4)])
def test_levels_of_a_block_by_hand(bits: int, levels: int) -> None:
    values = torch.rand(4, 1, 10, 10, generator=generator("levels"), dtype=torch.float64) * 3 - 1
    rounded = Codec(f"int{bits}").round(values)
    for block, found in zip(values.numpy().reshape(4, -1), rounded.numpy().reshape(4, -1)):
        low = float(np.float16(block.min()))
        step = float(np.float16((block.max() - low) / (levels - 1)))
        nearest = low + step * np.clip(np.round((block - low) / step), 0, levels - 1)
        assert np.allclose(found, nearest, atol=1e-5)
        assert np.abs(found - block).max() < 0.51 * step + 0.005
        assert len(np.unique(found)) <= levels


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("float32", (3, 1, 28, 28), 3 * 784 * 4),
        ("float16", (3, 1, 28, 28), 3 * 784 * 2),
        ("int8", (3, 1, 28, 28), 3 * (784 + 4)),
        ("int4", (3, 2, 10, 10), 6 * (50 + 4)),
        ("int2", (3, 1, 28, 28), 3 * (196 + 4)),
        ("int2", (16, 3, 3, 3), 108 + 4),  # nine numbers are too few for a block of their own
        ("int2", (5, 5), 25 * 2),  # and 25 for any
    ],
)
def test_sizes(name: str, shape: tuple[int, ...], size: int) -> None:
    assert len(Codec(name).encode(torch.randn(shape, generator=generator("size")))) == size


def test_entropy_coding_comes_near_the_entropy_and_never_costs_more_than_a_byte() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.choice(4, 60_000, p=[0.85, 0.05, 0.05, 0.05])
    values = torch.from_numpy(symbols.astype(np.float32)).view(1, 1, 200, 300)
    entropy = -(0.85 * math.log2(0.85) + 3 * 0.05 * math.log2(0.05)) * 60_000 / 8
    plain, coded = (len(Codec(name).encode(values)) for name in ("int2", "int2-entropy"))
    assert plain == 15_004
    assert entropy < coded < 1.05 * entropy
    noise = torch.rand(8, 1, 16, 16, generator=generator("noise"))
    for name in ("float32", "float16", "int8", "int4", "int2"):
        assert len(Codec(f"{name}-entropy").encode(noise)) <= len(Codec(name).encode(noise)) + 1


def test_gradients_pass_as_if_not_rounded() -> None:
    values = torch.randn(2, 1, 9, 9, generator=generator("values"), requires_grad=True)
    weights = torch.randn(2, 1, 9, 9, generator=generator("weights"))
    for name in NAMES:
        (grad,) = torch.autograd.grad((Codec(name).through(values) * weights).sum(), values)
        assert torch.equal(grad, weights)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_any_scale_and_shift(name: str, seed: int, scale: float, shift: float) -> None:
    codec = Codec(name)
    values = torch.randn(2, 1, 8, 9, generator=generator(seed)) * scale + shift
    read = codec.decode(codec.encode(values), values.shape)
    assert torch.equal(read, codec.round(values))
    spread = float(values.max() - values.min())
    allowed = {32: 0.0, 16: 1e-3 * float(values.abs().max())}.get(codec.bits, 0.6 * spread / (2**codec.bits - 1))
    assert float((read - values).abs().max()) <= allowed + 2e-3 * float(values.abs().max())


def test_constant_blocks() -> None:
    for name in NAMES:
        codec = Codec(name)
        assert torch.equal(codec.round(torch.full((2, 1, 9, 9), 0.5)), torch.full((2, 1, 9, 9), 0.5))


def test_refusals() -> None:
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        Codec("int9")
    with pytest.raises(InputError, match="must be finite"):
        Codec("float32").encode(torch.tensor([float("nan")]))
    with pytest.raises(InputError, match="fit in it"):
        Codec("float16").encode(torch.tensor([1e6]))
    values = torch.randn(4, 1, 9, 9, generator=generator("values"))
    for name in NAMES:
        data = Codec(name).encode(values)
        for wrong in (data[:-3], data + b"abc", b""):
            if "entropy" in name and wrong == data + b"abc":
                continue  # the coder knows its own end
            with pytest.raises(ArtifactError):
                Codec(name).decode(wrong, values.shape)
