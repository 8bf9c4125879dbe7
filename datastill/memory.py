"""How much memory there is, and how many of something fit into it.

What is computed point by point is computed for as many points at a time as fit: the numbers are the same, up to rounding. How
much may be used in place of what is free is said by the argument `memory` of a run, such as "4GiB", or else by the environment
variable DATASTILL_MEMORY. Constants that bound a chunk whose memory grows with the data go through `chunk`; those that count
numbers, to stay in a processor's cache, need not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from datastill.errors import InputError

VARIABLE = "DATASTILL_MEMORY"
_SHARE = 0.25  # of what is available, for one thing
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_limit: ContextVar[int | None] = ContextVar("datastill_memory", default=None)


@contextmanager
def limit(given: int | str | None) -> Iterator[None]:
    """A block, in this thread alone, in which so many bytes may be used, as `parse_bytes` reads them; None changes nothing.

    Raises:
        InputError: if it, or DATASTILL_MEMORY where it is None, is no number of bytes.
    """
    before = _limit.set(_limit.get() if given is None else parse_bytes(given, "memory"))
    try:
        available()
        yield
    finally:
        _limit.reset(before)


def available(device: torch.device | str = "cpu") -> int:
    """Bytes that may be used on a device: what `limit` says, else what DATASTILL_MEMORY says, else what is free.

    Raises:
        InputError: if the variable is no number of bytes.
    """
    limited = _limit.get()
    if limited is not None:
        return limited
    given = os.environ.get(VARIABLE)
    if given:
        return parse_bytes(given, VARIABLE)
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_free(), _left_in_group())


def parse_bytes(given: int | str, name: str) -> int:
    """The number of bytes that a number, or a text such as "4GiB", "800 MB" or "1e9", names.

    Args:
        given: what is to be read.
        name: of where it came from, for the error.

    Raises:
        InputError: for any other text, or less than one byte.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(given), re.IGNORECASE)
    try:
        count = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    except (ValueError, KeyError, OverflowError):
        count = 0
    if count < 1:
        raise InputError(f"{name} must be bytes such as 4GiB, 800MB or 1e9, got {given!r}.")
    return count


def chunk(bytes_each: int, device: torch.device | str = "cpu", *, most: int) -> int:
    """How many things of so many bytes are handled at a time: as many as a quarter of the memory holds, from 1 to `most`."""
    return max(1, min(most, int(_SHARE * available(device)) // max(1, bytes_each)))


def fits(count: int, device: torch.device | str = "cpu", *, most: int) -> bool:
    """Whether so many bytes may be kept for later: they are at most `most`, and at most a quarter of the memory."""
    return count <= most and count <= int(_SHARE * available(device))


def readable(count: float) -> str:
    """Bytes in words: "1.5 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # on Windows
        return 4 * 2**30


def _left_in_group() -> int:
    """Bytes left to the control group that the process may be confined to, as in a container."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return max(1, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return 2**62
