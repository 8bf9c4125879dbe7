"""Checkpoints of a run: bundles `step-00000040` in a folder, the newest readable one of which a resumed run starts from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from datastill.bundle import flatten_state, has_bundle, read_bundle, unflatten_state, write_bundle
from datastill.errors import ArtifactError, InputError

_NAME = re.compile(r"\.?step-(\d{8})(\.previous)?")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created when needed.
        identity: what makes the run this run (JSON-able). A checkpoint of another run is refused, not overwritten.
        keep: how many are kept, newest first.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int = 2) -> None:
        self.folder = folder
        self.identity = identity
        self.keep = keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store `state` as that of the run after `step` steps, then drop the oldest ones."""
        tensors, plain = flatten_state(state)
        write_bundle(self._path(step), tensors, {"identity": self.identity, "state": plain})
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be read whole, or None if there is none.

        Raises:
            InputError: if the checkpoint belongs to a run with other settings; the message names them.
        """
        for step in reversed(self._steps()):
            try:
                tensors, meta = read_bundle(self._path(step))
                stored, plain = meta["identity"], meta["state"]
            except (ArtifactError, KeyError):
                continue  # cut off while it was written; an older one is whole
            if stored != self.identity:
                keys = sorted(set(stored) | set(self.identity))
                other = [
                    f"{key} was {stored.get(key)!r} and is now {self.identity.get(key)!r}"
                    for key in keys
                    if stored.get(key) != self.identity.get(key)
                ]
                raise InputError(
                    f"checkpoint_dir {str(self.folder)!r} holds a run with other settings: {'; '.join(other)}. "
                    "Choose another folder, or delete this one to start anew."
                )
            return unflatten_state(tensors, plain)
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        found = {int(match[1]) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name))}
        return sorted(step for step in found if has_bundle(self._path(step)))
