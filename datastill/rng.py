"""Randomness: every draw comes from a generator keyed by the user's seed and what the draw is for.

A generator is a pure function of its key, for example `generator(seed, "step", 17)`. So no generator has a history, and a
run that is resumed at step 17 draws what the uninterrupted run drew, with no random state to be stored.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator keyed by `key`. Draw on the CPU and move the result, so that devices agree."""
    return torch.Generator().manual_seed(derive_seed(*key))


def fork(rng: torch.Generator) -> int:
    """A fresh seed drawn from `rng` (which advances), for a part that needs a seed of its own."""
    return int(torch.randint(2**62, (), generator=rng))


_GLOBAL = threading.RLock()


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a block with the global torch generators seeded by `seed`; the caller's states come back afterwards.

    For code that can only draw from the global generators: module constructors and dropout. As all threads share these, one
    thread at a time runs such a block: several runs belong into processes.
    """
    with _GLOBAL:
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        try:
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            torch.set_rng_state(cpu)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
