"""The worked examples of the documentation run, block by block, in one namespace each."""

from __future__ import annotations

import linecache
import re
import sys
import types
from pathlib import Path

import pytest

from datastill import recipes

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "page",
    [
        "docs/add-an-objective.md",
        "docs/add-a-modality.md",
        "docs/interactions.md",
        "docs/graphs.md",
        "docs/storages.md",
    ],
)
def test_page(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("sklearn", "pyarrow", "duckdb", "torch_geometric.nn"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # for the files that a page writes
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    source = "\n".join(blocks)
    name = f"<{page}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module = types.ModuleType("worked_example")
    monkeypatch.setitem(sys.modules, "worked_example", module)  # where dataclasses look their module up
    exec(compile(source, name, "exec"), module.__dict__)


def test_the_readme_lists_every_recipe() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    most = len(recipes.defaults)
    known = [
        (name, "all" if len(recipe.modalities) == most else ", ".join(recipe.modalities), recipe.objective or "-")
        for name, recipe in recipes.items()
    ]
    assert sorted(row for row in listed if row[0] in recipes) == sorted(known)
