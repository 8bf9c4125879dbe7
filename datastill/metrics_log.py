"""A callback that writes what happens in a run to `metrics.jsonl`, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from datastill.loop import Event


class MetricsLog:
    """Append each step's and validation's record to a file, flushed line by line.

    A run that goes on from a checkpoint writes its steps again; lines of those steps, and a line cut off by a crash, are dropped.

    Args:
        path: the file; its folder is created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._resumed = False

    def __call__(self, event: Event) -> None:
        if event.kind == "end":
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._resumed:
            self._forget_from(event.step)
            self._resumed = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": event.kind, **event.record}) + "\n")

    def _forget_from(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        self.path.write_text("".join(kept), encoding="utf-8")
