"""One run in many processes: what `torchrun` starts computes shares of every batch, and sums go over `torch.distributed`.

Every process makes the same draws from the same keys and holds the same summary. An objective takes this process's `share` of
a real batch and either gives its `portion` of a loss that is a mean over real points, or computes statistics of the real
points which `total` and `average` make those of all. The loop then averages the gradients, and every process takes the same
step. An objective that does neither computes the same on all of them, which is right and only not faster. So the result does
not depend on the number of processes, up to the rounding of sums.

No wrapper of modules is involved: DistributedDataParallel gives wrong gradients, silently, where a loss has been
differentiated once already, as in gradient matching and unrolled training.

With one process all of this does nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from datastill.errors import require
from datastill.nested import META_MARK, decode, encode

PATIENCE = timedelta(days=7)
"""How long a process waits for the others, which may be preparing data or experts. `torchrun` ends all when one dies."""


def launched() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start() -> None:
    """Join the other processes that `torchrun` started; once, before anything else here. Nothing to join is fine."""
    if launched() and not dist.is_initialized():
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        enough = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if enough:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if enough else "gloo", timeout=PATIENCE)


def stop() -> None:
    """Leave the others."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


_apart = False


def size() -> int:
    """How many processes there are; 1 inside of `main_first`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _apart else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def local_device(device: Any) -> Any:
    """The device that `device` means for this process: "cuda" is a GPU of its own.

    Raises:
        InputError: for a GPU by number, which several processes cannot share.
    """
    if size() == 1 or device is None or torch.device(device).type != "cuda":
        return device
    require(
        torch.device(device).index is None,
        f"device must be 'cuda' for several processes, each of which takes a GPU of its own, got {str(device)!r}.",
    )
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def main_first() -> Iterator[None]:
    """A block that the main process runs before the others, who may find what it made. In it each is on its own."""
    global _apart
    if size() == 1:
        yield
        return
    main = is_main()
    if not main:
        dist.barrier()
    _apart = True
    try:
        yield
    finally:
        _apart = False
        if main:
            dist.barrier()
        dist.barrier()


# --- shares -----------------------------------------------------------------------------------------------------------


def _turn() -> int:
    """Which share is this process's: the only one inside of `main_first`."""
    return rank() if size() > 1 else 0


def share(count: int) -> Tensor:
    """Positions of this process's share of `count` points: every n-th, so that ordered groups are shared out evenly."""
    require(
        count >= size(),
        f"{count} points cannot be shared out among {size()} processes; use fewer processes, or a larger real batch.",
    )
    return torch.arange(_turn(), count, size())


def mine(chunks: Sequence[Any]) -> Sequence[Any]:
    """This process's share of chunks of work, which may be none of them."""
    return chunks[_turn() :: size()]


# --- sums -------------------------------------------------------------------------------------------------------------


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, taken in float64; no gradient passes."""
    if size() == 1:
        return values
    summed = values.detach().double()
    if summed.data_ptr() == values.data_ptr():
        summed = summed.clone()
    dist.all_reduce(summed)
    return summed.to(values.dtype)


def average(tensors: Sequence[Tensor], weight: float = 1.0) -> list[Tensor]:
    """The mean of each tensor over all processes, weighted by each one's `weight`; no gradient passes.

    Where a process has weight 0 its values do not count, whatever they are.
    """
    if size() == 1:
        return list(tensors)
    parts = [tensor.detach().double().flatten() * weight if weight else _zeros(tensor) for tensor in tensors]
    place = parts[0]
    summed = torch.cat([*parts, place.new_tensor([weight])])
    dist.all_reduce(summed)
    means = (summed[:-1] / summed[-1]).split([tensor.numel() for tensor in tensors])
    return [mean.view(tensor.shape).to(tensor.dtype) for mean, tensor in zip(means, tensors)]


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.numel(), dtype=torch.float64, device=tensor.device)


def portion(loss: Tensor, weight: float) -> Tensor:
    """This process's part of a loss that is a mean over real points: its mean over all processes is the whole loss.

    Args:
        loss: the mean over this process's points.
        weight: what that mean is over, as `Modality.weight` says: how many points, interactions ...
    """
    if size() == 1:
        return loss
    whole = total(torch.tensor(weight, dtype=torch.float64, device=loss.device))
    return loss * float(weight * size() / whole)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Put the mean over all processes in place of every gradient."""
    if size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(average([parameter.grad])[0])


def copy_main(tensors: Sequence[Tensor]) -> None:
    """Overwrite `tensors` with the main process's, in place; they have the same shapes everywhere."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def agree(value: Any) -> Any:
    """The main process's `value`, a number, a string or None, on all of them."""
    if size() == 1:
        return value
    content = json.dumps(encode(value, META_MARK)).encode()  # PyTorch would send an object as a pickle
    length = torch.tensor([len(content)])
    dist.broadcast(length, 0)
    sent = torch.zeros(int(length), dtype=torch.uint8)
    if is_main():
        sent = torch.frombuffer(bytearray(content), dtype=torch.uint8).clone()
    dist.broadcast(sent, 0)
    return decode(json.loads(sent.numpy().tobytes()), META_MARK, {})
