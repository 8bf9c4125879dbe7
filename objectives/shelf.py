"""Tensors that take long to make, such as trained networks, kept on disk so that a resumed run finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from datastill.bundle import read_bundle, write_bundle
from datastill.errors import ArtifactError


def digest_of(identity: Mapping[str, Any]) -> str:
    """The name of a folder for what has this identity, JSON-able values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def shelved(
    place: Path, identity: Mapping[str, Any], make: Callable[[], dict[str, Tensor]], *, read: bool = True
) -> dict[str, Tensor]:
    """The tensors at `place`; what `make` gives, written there, if there are none of this identity or a crash damaged them.

    Args:
        place: folder of the bundle.
        identity: JSON-able values on which the tensors depend.
        make: the tensors by name, a function of the identity alone.
        read: whether they are wanted now, or only to be there; every byte is checked in either case.
    """
    if place.exists():
        try:
            tensors, meta = read_bundle(place)
            if meta.get("identity") == identity:
                return tensors if read else {}
        except ArtifactError:
            pass
    made = make()
    write_bundle(place, made, {"identity": identity})
    return made if read else {}
