"""The examples run from a shell, without a download."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "modules", "said"),
    [
        ("images.py", ["sklearn"], "100 synthetic images: "),
        ("graph.py", ["sklearn", "torch_geometric"], "GAT trained on 35 synthetic nodes: "),
        ("sentences.py", ["transformers"], "torch: "),
        ("recommender.py", ["sklearn", "duckdb", "pyarrow"], "recommend ["),
    ],
)
def test_example(script: str, modules: list[str], said: str, tmp_path: Path) -> None:
    for module in modules:
        pytest.importorskip(module)
    command = [sys.executable, str(EXAMPLES / script), "--steps", "3"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    assert said in run.stdout


def test_every_example_is_run() -> None:
    (cases,) = (mark.args[1] for mark in test_example.pytestmark)  # type: ignore[attr-defined]
    assert {path.name for path in EXAMPLES.glob("*.py")} == {case[0] for case in cases}
