"""`report`: a run folder as one HTML page, without scripts and without anything from elsewhere."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datastill.artifact import RUN_SUBFOLDER, Artifact, load
from datastill.bundle import has_bundle
from datastill.errors import InputError, load_extra
from datastill.report_figures import Picture, Table, draw_budgets, draw_curves, draw_dataset, draw_scores

METRICS = "metrics.jsonl"
REPORT = "report.html"


@dataclass(frozen=True)
class _Section:
    """What the template shows of one run."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    scores: list[Picture | Table] = field(default_factory=list)
    dataset: list[Picture | Table] = field(default_factory=list)
    curves: list[Picture | Table] = field(default_factory=list)
    origin: list[tuple[str, str]] = field(default_factory=list)


def report(run_folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder: scores beside the baselines, curves, and a look at the summary.

    The page holds no script and refers to nothing outside of itself; all text from data is escaped.

    Args:
        run_folder: a folder with `artifact/` or `metrics.jsonl` (the run may still be going on), or a folder of such
            folders, which become the parts of one page.

    Returns:
        The page's path.

    Raises:
        InputError: if there is nothing to report.
        ArtifactError: if an artifact is damaged.
        MissingExtraError: without matplotlib or jinja2.
    """
    folder = Path(run_folder)
    load_extra("matplotlib", "report")
    jinja2 = load_extra("jinja2", "report")
    runs = _runs(folder)
    if not runs:
        raise InputError(
            f"{folder} is not a run folder: neither it nor a folder in it holds {RUN_SUBFOLDER}/ or {METRICS}."
        )
    sections = [_section(run, named=len(runs) > 1) for run in runs]
    overview = _overview(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        name=folder.resolve().name, overview=overview, sections=sections
    )
    path = folder / REPORT
    unfinished = folder / f".{REPORT}.new"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def _runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name != RUN_SUBFOLDER)
    return [run for run in [folder, *inside] if has_bundle(run / RUN_SUBFOLDER) or (run / METRICS).is_file()]


def _overview(runs: list[Path]) -> list[Picture | Table]:
    """Scores against the number of points, for each kind of data of which several runs have been scored."""
    found: dict[str, list[Artifact]] = {}
    for run in runs:
        artifact = load(run / RUN_SUBFOLDER) if has_bundle(run / RUN_SUBFOLDER) else None
        if artifact is not None and (artifact.evaluation or {}).get("rows"):
            found.setdefault(artifact.kind, []).append(artifact)
    return [
        draw_budgets(kind, [artifact.evaluation["rows"] for artifact in same if artifact.evaluation])
        for kind, same in found.items()
        if len({artifact.points for artifact in same}) > 1
    ]


def _section(run: Path, named: bool) -> _Section:
    artifact = load(run / RUN_SUBFOLDER) if has_bundle(run / RUN_SUBFOLDER) else None
    steps, scores = _read_metrics(run / METRICS)
    curves: list[Picture | Table] = []
    if steps or scores:
        curves.append(draw_curves(steps, scores, None if artifact is None else artifact.best_step))
    if artifact is None:
        last = f"{steps[-1][0]:,}" if steps else "0"
        return _Section(run.resolve().name, [("state", "no summary stored yet"), ("steps so far", last)], curves=curves)
    what = run.name if named else artifact.kind
    return _Section(
        f"{what} · {artifact.recipe or artifact.objective}",
        _facts(artifact),
        _scores(artifact.evaluation),
        draw_dataset(artifact.kind, artifact.dataset, artifact.target),
        curves,
        _origin(artifact),
    )


def _facts(artifact: Artifact) -> list[tuple[str, str]]:
    facts = [("points", f"{artifact.points:,}"), ("bytes", f"{artifact.nbytes:,}")]
    if artifact.validation_score is not None:
        facts.append((f"validation {artifact.metric}", f"{100 * artifact.validation_score:.1f} %"))
    facts.append(("distilled in", f"{artifact.seconds:,.1f} s"))
    return facts


def _origin(artifact: Artifact) -> list[tuple[str, str]]:
    known = [
        ("recipe", artifact.recipe or "none"),
        ("objective", artifact.objective),
        ("settings", _listed(artifact.settings)),
        ("learned", _listed(artifact.learned)),
        ("seed", str(artifact.seed)),
        ("steps", f"{artifact.steps:,}, of which the summary after step {artifact.best_step:,} was kept"),
        ("target data", f"sha256 {artifact.fingerprint}"),
        ("versions", _listed(artifact.versions)),
    ]
    return [(name, value) for name, value in known if value]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value if isinstance(value, str) else repr(value)}" for name, value in values.items())


def _scores(evaluation: dict[str, Any] | None) -> list[Picture | Table]:
    rows = (evaluation or {}).get("rows")
    if evaluation is None or not rows:
        return []
    metrics = list(rows[0]["summary"])
    table = Table(["trained on", "learner", *(f"{name}, %" for name in metrics), "points", "bytes", "seconds"])
    for row in rows:
        shown = [
            f"{100 * row['summary'][name]['mean']:.2f} ± {100 * row['summary'][name]['std']:.2f}" for name in metrics
        ]
        cells = [
            row["data"],
            f"{row['learner']} ({row['protocol']})" if row.get("protocol") else row["learner"],
            *shown,
            f"{row['points']:,}",
            f"{row['nbytes']:,}",
            f"{row['seconds']:.1f}",
        ]
        table.rows.append(cells)
    return [table, draw_scores(rows, evaluation["metric"])]


def _read_metrics(path: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) and (step, validation score) pairs; lines cut off by a crash are passed over."""
    steps: list[tuple[int, float]] = []
    scores: list[tuple[int, float]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                kept, key = (scores, "score") if record["kind"] == "validation" else (steps, "loss")
                step, value = int(record["step"]), float(record[key])
            except (ValueError, KeyError, TypeError):
                continue
            if math.isfinite(value):
                kept.append((step, value))
    return steps, scores
