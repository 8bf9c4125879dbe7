"""Images with the bytes that they are decoded from: the export of a summary that is stored factorised or in few bits."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import TensorDataset

from datastill.errors import ArtifactError
from datastill.modalities.codec import NAMES, Codec
from datastill.modalities.image_scale import PixelScale
from datastill.modalities.image_storage import Storage
from datastill.modalities.image_storages import STORAGES, blank_storage

_MAGIC = b"STIL1"
_MOST = 2**31  # numbers of the decoded images, at most, that a file is believed to hold


class StoredImages(TensorDataset):
    """Images (n, c, h, w) in the input's scale with labels, like any `TensorDataset`, and the bytes that they come from.

    Attributes:
        coded: everything that decodes to the images and labels: stored numbers, weights of decoders, labels, the scale of pixels.
    """

    def __init__(self, images: Tensor, labels: Tensor, coded: bytes) -> None:
        super().__init__(images, labels)
        self.coded = coded

    def write(self, path: str | os.PathLike[str]) -> int:
        """Write `coded` as a file, which `read_stored` reads. Returns its size in bytes."""
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.new")
        beside.write_bytes(self.coded)
        os.replace(beside, place)
        return len(self.coded)


def read_stored(path: str | os.PathLike[str]) -> StoredImages:
    """The images that `StoredImages.write` wrote.

    Raises:
        ArtifactError: if the file is not one of these, or is damaged.
    """
    return decode_images(Path(path).read_bytes())


def native_images(pixels: Tensor, scale: PixelScale, *, clamp: bool, eight_bit: bool) -> Tensor:
    """Normalised pixels as images in the input's scale: in its valid range if `clamp`, as uint8 if `eight_bit`."""
    images = scale.restore(pixels.detach().cpu().float())
    if clamp:
        images = images.clamp(scale.low, scale.high)
    return images.round().to(torch.uint8) if eight_bit else images


def decoded(storage: Storage, codec: Codec | None) -> Tensor:
    """The images of `storage` as they are after its numbers were stored by `codec`, differentiable in these."""
    if codec is None:
        return storage()
    rounded = {name: codec.through(value) for name, value in storage.named_parameters()}
    images: Tensor = functional_call(storage, rounded, ())
    return images


def encode_images(
    name: str,
    storage: Storage,
    codec: Codec,
    counts: list[int],
    labels: Tensor | None,
    scale: PixelScale,
    *,
    shape: tuple[int, int, int],
    clamp: bool,
    eight_bit: bool,
) -> bytes:
    """Everything that is needed to have the images again, in as few bytes as `codec` makes of it.

    Args:
        name: of the storage.
        storage: of the pixels.
        codec: of its numbers.
        counts: images of each class, in order of class.
        labels: (n, classes) soft labels, or None where the classes say all.
        scale: of the pixels.
        shape: (channels, height, width) of the images.
        clamp: whether decoded pixels are kept in the valid range.
        eight_bit: whether they are rounded to uint8.
    """
    parts = [np.concatenate([[scale.low, scale.high], scale.mean, scale.std]).astype("<f4").tobytes()]
    if labels is not None:
        parts.append(label_codec(codec).encode(labels))
    parts += [codec.encode(value) for _, value in storage.named_parameters()]
    header = {
        "s": name,
        "o": storage.options,
        "c": codec.name,
        "n": counts,
        "i": list(shape),
        "l": labels is not None,
        "f": [clamp, eight_bit],
        "b": [len(part) for part in parts],
    }
    packed = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    body = b"".join([struct.pack("<I", len(packed)), packed, *parts])
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def label_codec(codec: Codec) -> Codec:
    """Soft labels are kept in float16 at least: their sums have to stay 1."""
    return codec if codec.bits == 32 else Codec("float16-entropy" if codec.entropy else "float16")


def decode_images(data: bytes) -> StoredImages:
    """The images and labels of what `encode_images` wrote.

    Raises:
        ArtifactError: for anything else.
    """
    try:
        return _decode(data)
    except ArtifactError:
        raise
    except Exception as error:  # forged bytes with a right checksum: anything may be wrong
        raise ArtifactError(f"These bytes are not images as datastill stores them: {error!r}.") from error


def _decode(data: bytes) -> StoredImages:
    _demand(data[: len(_MAGIC)] == _MAGIC and len(data) >= len(_MAGIC) + 8, "they begin otherwise")
    (checksum, size) = struct.unpack("<II", data[len(_MAGIC) : len(_MAGIC) + 8])
    body = data[len(_MAGIC) + 4 :]
    _demand(zlib.crc32(body) == checksum, "the checksum differs")
    header = json.loads(zlib.decompressobj().decompress(body[4 : 4 + size], 2**20))
    name, options, counts = header["s"], header["o"], header["n"]
    channels, height, width = header["i"]
    _demand(name in STORAGES and header["c"] in NAMES, "the storage or the codec is unknown")
    _demand(not STORAGES[name][0].folds, "nothing is stored so")
    points = sum(counts)
    _demand(0 < points * channels * height * width <= _MOST, "the images are too many")
    rest, parts = body[4 + size :], []
    _demand(sum(header["b"]) == len(rest), "they are cut off")
    for length in header["b"]:
        parts.append(rest[:length])
        rest = rest[length:]
    codec = Codec(header["c"])
    storage = blank_storage(name, (points, channels, height, width), options)
    scales = torch.from_numpy(np.frombuffer(parts.pop(0), "<f4").astype(np.float32))
    scale = PixelScale(float(scales[0]), float(scales[1]), scales[2 : 2 + channels], scales[2 + channels :])
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if header["l"]:
        labels = label_codec(codec).decode(parts.pop(0), (points, len(counts)))
    with torch.no_grad():
        for value, part in zip(storage.parameters(), parts, strict=True):
            value.copy_(codec.decode(part, value.shape))
        clamp, eight_bit = header["f"]
        images = native_images(storage(), scale, clamp=clamp, eight_bit=eight_bit)
    return StoredImages(images, labels, data)


def _demand(condition: bool, cause: str) -> None:
    if not condition:
        raise ArtifactError(f"These bytes are not images as datastill stores them: {cause}.")
