"""How numbers are stored: in full, halved, or quantised to a few bits in blocks, and then entropy-coded.

The rounding is part of what is optimised: `through` gives the values as they will be read back, and lets gradients pass as
if they had not been rounded (straight-through, Bengio, Leonard & Courville 2013). What it gives is bit for bit what `decode`
gives of what `encode` writes. Quantising distilled images in blocks is due to post-training quantisation for condensation
(arXiv 2603.13346).
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datastill.errors import ArtifactError, require, unknown_name

_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
NAMES = tuple(name + end for name in _BITS for end in ("", "-entropy"))
_LEAST = 64  # numbers of a block, so that its two half floats weigh little
# One model for all symbols: these are pixels of small images, without the structure that LZMA's contexts look for.
_FILTER = {"id": lzma.FILTER_LZMA2, "dict_size": 2**16, "lc": 0, "lp": 0, "pb": 0, "nice_len": 273}
_RAW, _LZMA, _DEFLATE = b"\0", b"\1", b"\2"


@dataclass(frozen=True)
class Codec:
    """One way to store a tensor.

    "float32" and "float16" round to that type. "int8", "int4" and "int2" divide the range of each block into 256, 16 or 4
    levels; a block is an image's channel, or more numbers where those are few, and has its least value and its step in float16.
    "-entropy" behind a name shortens frequent symbols, by LZMA's range coder or Huffman's code, whichever is shorter.

    Attributes:
        name: one of `NAMES`.
    """

    name: str = "float32"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise unknown_name("codec", self.name, NAMES)

    @property
    def bits(self) -> int:
        """Of one number, before entropy coding and without the steps of blocks."""
        return _BITS[self.plain]

    @property
    def entropy(self) -> bool:
        """Whether symbols are entropy-coded."""
        return self.name.endswith("-entropy")

    @property
    def plain(self) -> str:
        """The name of the same codec without entropy coding, whose bytes depend on nothing but shapes."""
        return self.name.removesuffix("-entropy")

    def through(self, values: Tensor) -> Tensor:
        """`values` as they will be read back, with the gradient of `values`."""
        return self.round(values.detach()) + (values - values.detach())

    def round(self, values: Tensor) -> Tensor:
        """`values` as they will be read back."""
        if self._bits_of(values.shape) == 32:
            return values.float().to(values.dtype)
        if self._bits_of(values.shape) == 16:
            return values.half().to(values.dtype)
        low, step, symbols = self._quantised(values.float())
        return (low + step * symbols).view(values.shape).to(values.dtype)

    def encode(self, values: Tensor) -> bytes:
        """The bytes of `values`; their shape is not among them."""
        values = values.detach().cpu().float()
        require(
            bool(self.round(values).isfinite().all()), f"Numbers stored as {self.name} must be finite and fit in it."
        )
        bits = self._bits_of(values.shape)
        if bits >= 16:
            plain = values.numpy().astype("<f4" if bits == 32 else "<f2").tobytes()
            return self._shorter(plain, _planes(plain, bits // 8)) if self.entropy else plain
        low, step, symbols = self._quantised(values)
        head = torch.cat([low, step], 1).half().numpy().astype("<f2").tobytes()
        flat = symbols.to(torch.uint8).flatten().numpy()
        packed = _pack(flat, bits)
        return head + (self._shorter(packed, flat.tobytes()) if self.entropy else packed)

    def decode(self, data: bytes, shape: Sequence[int]) -> Tensor:
        """The values (float32, of `shape`) that `encode` wrote.

        Raises:
            ArtifactError: for bytes that it did not write.
        """
        count, bits = math.prod(shape), self._bits_of(shape)
        if bits >= 16:
            size = bits // 8 * count
            plain = (
                self._longer(data, size, lambda planes: _unplanes(planes, bits // 8), size) if self.entropy else data
            )
            _demand(len(plain) == size)
            return torch.from_numpy(np.frombuffer(plain, "<f4" if bits == 32 else "<f2").astype(np.float32)).view(
                *shape
            )
        blocks = _blocks(shape)
        head, body = data[: 4 * blocks], data[4 * blocks :]
        _demand(len(head) == 4 * blocks)
        low, step = torch.from_numpy(np.frombuffer(head, "<f2").astype(np.float32)).view(blocks, 2).split(1, 1)
        packed = -(-count * bits // 8)
        if self.entropy:
            body = self._longer(body, packed, lambda flat: _pack(np.frombuffer(flat, np.uint8), bits), count)
        _demand(len(body) == packed)
        symbols = torch.from_numpy(_unpack(body, bits, count)).view(blocks, -1).float()
        return (low + step * symbols).view(*shape)

    def _bits_of(self, shape: Sequence[int]) -> int:
        # A few numbers are not worth a block of their own.
        return max(self.bits, 16) if math.prod(shape) < _LEAST else self.bits

    def _quantised(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Least value and step of each block (blocks, 1), as float16 can hold them, and symbols (blocks, n)."""
        rows = values.reshape(_blocks(values.shape), -1)
        levels = 2**self.bits - 1
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        low = low.half().float()
        # By a tensor: GPUs multiply by the rounded inverse of a plain number, and steps would differ from those on a CPU.
        step = ((high - low).clamp(min=0) / torch.full_like(high, levels)).half().float()
        symbols = ((rows - low) / torch.where(step > 0, step, 1.0)).round().clamp(0, levels)
        return low, step, torch.where(step > 0, symbols, 0.0)

    @staticmethod
    def _shorter(plain: bytes, symbols: bytes) -> bytes:
        """The shortest of `plain`, `plain` in deflate's Huffman code, and `symbols` (one in each byte) in LZMA."""
        ways = [_RAW + plain, _LZMA + lzma.compress(symbols, format=lzma.FORMAT_RAW, filters=[_FILTER])]
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
            ways.append(_DEFLATE + deflate.compress(plain) + deflate.flush())
        return min(ways, key=len)

    @staticmethod
    def _longer(data: bytes, size: int, rebuild: Callable[[bytes], bytes], symbols: int) -> bytes:
        """`plain`, of `size` bytes, of what `_shorter` gave; `rebuild` makes it of that many `symbols`."""
        _demand(data[:1] in (_RAW, _LZMA, _DEFLATE))
        if data[:1] == _RAW:
            return data[1:]
        try:  # neither gets to write more than is wanted, whatever a forged stream says
            if data[:1] == _DEFLATE:
                return zlib.decompressobj(-15).decompress(data[1:], size + 1)
            reader = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=[_FILTER])
            found = reader.decompress(data[1:], symbols + 1)
        except (lzma.LZMAError, zlib.error) as error:
            raise ArtifactError(f"Stored numbers cannot be decoded: {error}.") from error
        _demand(len(found) == symbols)
        return rebuild(found)


def _blocks(shape: Sequence[int]) -> int:
    """How many blocks a tensor has: one for each index of its first dimensions, at most two, that leaves enough numbers."""
    count = math.prod(shape)
    for dimensions in (2, 1):
        blocks = math.prod(shape[:dimensions])
        if len(shape) > dimensions and blocks and count // blocks >= _LEAST:
            return blocks
    return 1


def _pack(symbols: np.ndarray, bits: int) -> bytes:
    """Symbols below 2**bits, several in a byte, the first in the lowest bits."""
    each = 8 // bits
    padded = np.zeros(-(-len(symbols) // each) * each, np.uint8)
    padded[: len(symbols)] = symbols
    shifts = (np.arange(each) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1).astype(np.uint8).tobytes()


def _unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    each = 8 // bits
    shifts = (np.arange(each) * bits).astype(np.uint8)
    found = (np.frombuffer(data, np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1)
    return found.reshape(-1)[:count].copy()


def _planes(data: bytes, width: int) -> bytes:
    """The first bytes of all numbers, then the second ones ...; exponents are frequent symbols, mantissas are not."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def _unplanes(data: bytes, width: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()


def _demand(condition: bool) -> None:
    if not condition:
        raise ArtifactError("Stored numbers are cut off, or are not as datastill writes them.")
