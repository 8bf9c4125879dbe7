"""Propagated features in files: each A^k X of a large graph is computed once, in blocks of rows, and mapped into memory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datastill import memory
from datastill.errors import InputError

_ROWS = 65536  # computed and written at a time, at most


class Rows(Protocol):
    """A sparse matrix that gives blocks of its rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def block(self, first: int, last: int) -> Rows:
        """The rows from `first` up to `last`."""
        ...

    def __matmul__(self, other: Tensor) -> Tensor:
        """Product with a dense matrix."""
        ...


@dataclass(frozen=True)
class HopStore:
    """Files `NAME-K.npy` in a folder, one for each A^k X of one graph.

    A file that is there already, whole and of the same shape and type, is taken as it is: `name` has to tell graphs apart.
    One that is being written has another name until it is whole. Mapped pages are the operating system's to keep or drop, so
    that the features of a graph may be larger than memory.

    Attributes:
        folder: made if it is missing.
        name: of the graph, for example its fingerprint.
    """

    folder: Path
    name: str

    def product(self, matrix: Rows, values: Tensor, hops: int) -> Tensor:
        """matrix @ values, (rows, d), which is A^hops X, from its file or into it. Changing it does not change the file.

        Raises:
            InputError: if the folder cannot be written.
        """
        shape = (matrix.shape[0], values.shape[1])
        kind = torch.empty(0, dtype=values.dtype).numpy().dtype
        place = self.folder / f"{self.name}-{hops}.npy"
        if not _whole(place, shape, kind):
            try:
                self._write(place, matrix, values, shape, kind)
            except OSError as error:
                raise InputError(f"Propagated features cannot be kept in {self.folder}: {error}.") from error
        return torch.from_numpy(np.load(place, mmap_mode="c", allow_pickle=False))

    def _write(
        self, place: Path, matrix: Rows, values: Tensor, shape: tuple[int, int], kind: np.dtype[np.generic]
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number, path = tempfile.mkstemp(".part", f"{place.name}.", self.folder)
        unfinished = Path(path)
        try:
            with os.fdopen(number, "wb") as file:
                np.lib.format.write_array_header_2_0(
                    file, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
                )
                size = memory.chunk(shape[1] * values.element_size(), most=_ROWS)
                for first in range(0, shape[0], size):
                    block = matrix.block(first, min(shape[0], first + size)) @ values
                    file.write(block.contiguous().numpy().data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)


def _whole(place: Path, shape: tuple[int, int], kind: np.dtype[np.generic]) -> bool:
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # missing, cut off, or no array
        return False
    return array.shape == shape and array.dtype == kind
