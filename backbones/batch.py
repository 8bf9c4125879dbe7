"""`Batch`: the one shape of data that crosses every border of the library.

`inputs` is whatever a modality's learners read: a tensor whose first dimension counts points, or a nest of tuples, dicts and
dataclasses of tensors. A structure whose points are not its first dimension (a graph) brings its own `take`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Inputs: TypeAlias = Any


@dataclass(frozen=True)
class Batch:
    """Points of a dataset, real or synthetic.

    Attributes:
        inputs: what learners of this modality read, for `n` points.
        targets: what their outputs are compared with: class ids (n,), distributions (n, c), or the modality's own structure.
        groups: (n,) int64, the group of each point; zeros where data have no classes.
    """

    inputs: Inputs
    targets: Any
    groups: Tensor

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, index: Tensor) -> Batch:
        """The points at `index` (int64 positions), in that order."""
        return Batch(take(self.inputs, index), take(self.targets, index), self.groups[index])

    def of_group(self, group: int) -> Batch:
        """The points of one group."""
        return self.take((self.groups == group).nonzero().squeeze(1))

    def in_blocks(self, groups: Sequence[int]) -> tuple[Tensor | None, list[int]]:
        """The positions of the points of `groups`, group after group (None where these are all points as they stand), and how
        many each group has."""
        wanted = torch.tensor(list(groups), device=self.groups.device)
        counts = torch.bincount(self.groups, minlength=max(groups) + 1)
        sizes = counts[wanted]
        if torch.equal(torch.repeat_interleave(wanted, sizes), self.groups):
            return None, sizes.tolist()
        places = torch.full_like(counts, len(wanted))
        places[wanted] = torch.arange(len(wanted), device=places.device)
        return places[self.groups].argsort(stable=True)[: int(sizes.sum())], sizes.tolist()

    @property
    def plain(self) -> bool:
        """Whether inputs and targets are plain tensors, whose first dimension counts points."""
        nests = (self.inputs, self.targets)
        return all(isinstance(nest, Tensor) and nest.layout == torch.strided for nest in nests)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The batch on `device`, its floating tensors as `dtype`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return map_tensors(move, self)

    def detach(self) -> Batch:
        """The same values, cut off from autograd."""
        return map_tensors(Tensor.detach, self)


def joined(batches: Sequence[Batch]) -> Batch:
    """The points of all batches, which are `plain`, one batch after the other."""
    parts = zip(*((batch.inputs, batch.targets, batch.groups) for batch in batches))
    return Batch(*(torch.cat(each) for each in parts))


def take(nest: Any, index: Tensor) -> Any:
    """Select points from a nest of tensors along their first dimension, or by the nest's own `take`."""
    if isinstance(nest, Tensor):
        return nest[index]
    if hasattr(nest, "take"):
        return nest.take(index)
    return _rebuild(nest, lambda item: take(item, index))


def map_tensors(function: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """Apply `function` to every tensor of a nest; other leaves stay as they are."""
    if isinstance(nest, Tensor):
        return function(nest)
    return _rebuild(nest, lambda item: map_tensors(function, item))


def tensors_of(nest: Any) -> list[Tensor]:
    """All tensors of a nest, in the order in which `with_tensors` puts them back."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, nest)
    return found


def with_tensors(nest: Any, tensors: list[Tensor]) -> Any:
    """`nest` with its tensors replaced, in the order of `tensors_of`."""
    replacements = iter(tensors)
    return map_tensors(lambda _: next(replacements), nest)


def _rebuild(nest: Any, visit: Callable[[Any], Any]) -> Any:
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        values = {field.name: visit(getattr(nest, field.name)) for field in dataclasses.fields(nest) if field.init}
        return dataclasses.replace(nest, **values)
    if isinstance(nest, dict):
        return {key: visit(value) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(visit(value) for value in nest))
    if isinstance(nest, list | tuple):
        return type(nest)(visit(value) for value in nest)
    return nest
