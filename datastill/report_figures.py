"""Figures of a report, drawn with matplotlib and embedded as data URIs, so that a report is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datastill.errors import load_extra
from datastill.modalities.interactions_table import popularity_curve

MAX_CLASSES, MAX_COLUMNS, MAX_NODES, MAX_EDGES, MAX_ROWS, MAX_CURVE = 40, 30, 600, 4000, 200, 2000
INK, MUTED, RULE, ACCENT, SECOND = "#1f2933", "#66727f", "#d9dee3", "#2f6db3", "#d0702f"
_COLOURS = (
    "#2f6db3", "#d0702f", "#3a8f63", "#c0475a", "#7a5ba8", "#8a6a34", "#c86fa8", "#5f6b76", "#a3972a", "#2797a8",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A drawn figure: a data URI, what it shows in words, and a caption."""

    source: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table of strings, shown under a caption."""

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    caption: str = ""


def draw_dataset(kind: str, dataset: Any, target: Mapping[str, Any] | None = None) -> list[Picture | Table]:
    """How a native dataset looks; nothing for a kind of data that no figure is known for.

    Args:
        kind: of the data.
        dataset: what a summary exports.
        target: what the modality's `describe` says of the target dataset.
    """
    draw = _DRAWN.get(kind)
    return [] if draw is None else draw(dataset, target or {})


# --- images -----------------------------------------------------------------------------------------------------------


def _draw_images(dataset: Any) -> list[Picture | Table]:
    images, labels = (tensor.detach().cpu() for tensor in dataset.tensors)
    classes = labels.argmax(1) if labels.ndim == 2 else labels
    rows = [(classes == label).nonzero().squeeze(1)[:MAX_COLUMNS] for label in classes.unique()[:MAX_CLASSES]]
    pixels = images.double().numpy()
    low, high = (0.0, 255.0) if "uint8" in str(images.dtype) else (float(pixels.min()), float(pixels.max()))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    pixels = ((pixels - low) / max(high - low, 1e-12)).clip(0, 1)
    channels, height, width = pixels.shape[1:]
    gap = max(1, height // 14)
    columns = max(len(row) for row in rows)
    grid = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for line, row in enumerate(rows):
        for column, index in enumerate(row):
            image = pixels[index].transpose(1, 2, 0)
            image = image[..., :3] if channels >= 3 else image[..., :1].repeat(3, axis=2)
            top, left = line * (height + gap), column * (width + gap)
            grid[top : top + height, left : left + width] = image
    cell = 0.38
    figure, axes = _figure(columns * cell + 0.6, len(rows) * cell * height / width)
    axes.imshow(grid, interpolation="nearest", aspect="equal")
    axes.set_yticks([line * (height + gap) + height / 2 for line in range(len(rows))])
    axes.set_yticklabels([str(int(classes[row[0]])) for row in rows])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=7, colors=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
    what = f"{len(images)} synthetic images, a class a row"
    shown = sum(len(row) for row in rows)
    return [_png(figure, what, what + (f"; {shown} of them shown" if shown < len(images) else "") + ".")]


# --- graphs -----------------------------------------------------------------------------------------------------------


def _draw_graph(data: Any) -> list[Picture | Table]:
    features = data.x.detach().cpu().double().numpy()[:MAX_NODES]
    labels = data.y.detach().cpu()
    classes = (labels.argmax(1) if labels.ndim == 2 else labels).numpy()[:MAX_NODES]
    edges = data.edge_index.detach().cpu().numpy()
    weights = getattr(data, "edge_weight", None)
    strength = np.ones(edges.shape[1]) if weights is None else weights.detach().cpu().double().numpy()
    keep = (edges[0] != edges[1]) & (edges.max(0, initial=0) < len(features))
    edges, strength = edges[:, keep], strength[keep]
    if edges.shape[1] > MAX_EDGES:
        strongest = np.sort(np.argsort(-strength, kind="stable")[:MAX_EDGES])
        edges, strength = edges[:, strongest], strength[strongest]
    linked = edges.shape[1] > 0
    places = _spring_layout(len(features), edges, strength) if linked else _principal_plane(features)
    figure, axes = _figure(6.6, 4.2)
    if linked:
        from matplotlib.collections import LineCollection

        shade = 0.12 + 0.5 * strength / max(strength.max(), 1e-12)
        lines = LineCollection(places[edges.T], colors=[(0.35, 0.4, 0.45, alpha) for alpha in shade], linewidths=0.8)
        axes.add_collection(lines)
    for position, label in enumerate(np.unique(classes)):
        chosen = classes == label
        axes.scatter(
            *places[chosen].T,
            s=46,
            color=_colour(position),
            edgecolors="white",
            linewidths=0.9,
            label=str(label),
            zorder=3,
        )
    axes.legend(
        title="class", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title_fontsize=8
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.axis("off")
    nodes, count = data.x.shape[0], data.edge_index.shape[1]
    shown = f", the first {MAX_NODES} shown" if nodes > MAX_NODES else ""
    if linked:
        what = f"{nodes} synthetic nodes and {count} directed edges{shown}"
        return [_png(figure, what, f"{what}, placed by a spring layout of the edges.")]
    what = f"{nodes} synthetic nodes without edges{shown}"
    return [_png(figure, what, f"{what}, placed by the two principal components of their features.")]


def _principal_plane(features: np.ndarray) -> np.ndarray:
    """(n, 2): rows projected on their first two principal components."""
    centred = features - features.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(features), 2))
    usable = min(2, left.shape[1])
    plane[:, :usable] = left[:, :usable] * scale[:usable]
    return plane


def _spring_layout(nodes: int, edges: np.ndarray, weights: np.ndarray, rounds: int = 120) -> np.ndarray:
    """(n, 2) by forces: all nodes push each other away with 1/d, edges pull with d^2 (Fruchterman & Reingold, 1991)."""
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (nodes, 2))
    ideal = 2 / np.sqrt(max(nodes, 1))
    pull = weights / max(weights.max(), 1e-12)
    for step in range(rounds):
        away = places[:, None] - places[None]
        distance = np.maximum(np.linalg.norm(away, axis=2), 1e-3)
        move = (away * (ideal**2 / distance**2)[..., None]).sum(1)
        along = places[edges[0]] - places[edges[1]]
        force = along * (pull * np.linalg.norm(along, axis=1) / ideal)[:, None]
        np.add.at(move, edges[0], -force)
        np.add.at(move, edges[1], force)
        move -= 0.6 * places  # a weak pull to the middle keeps loose parts on the page
        length = np.maximum(np.linalg.norm(move, axis=1, keepdims=True), 1e-9)
        places = places + move / length * np.minimum(length, 0.2 * (1 - step / rounds) + 0.005)
    return places


# --- texts ------------------------------------------------------------------------------------------------------------


def _draw_texts(dataset: Any) -> list[Picture | Table]:
    rows = [[str(label), str(text)] for text, label in zip(dataset.texts[:MAX_ROWS], dataset.labels)]
    head = ["label", "text"]
    if dataset.soft_labels is not None:
        head.insert(1, "soft label")
        for row, weights in zip(rows, dataset.soft_labels.tolist()):
            order = sorted(range(len(weights)), key=lambda column: -weights[column])[:2]
            row.insert(1, ", ".join(f"{dataset.classes[column]}: {weights[column]:.2f}" for column in order))
    count = len(dataset.texts)
    shown = f", the first {len(rows)} of them" if len(rows) < count else ""
    return [Table(head, rows, f"{count} synthetic texts{shown}, decoded to the nearest words.")]


# --- interactions -----------------------------------------------------------------------------------------------------


def _draw_interactions(dataset: Any, target: Mapping[str, Any]) -> list[Picture | Table]:
    items, codes = np.unique(dataset.items, return_inverse=True)
    weights = np.bincount(codes, dataset.weights)
    lengths = np.sort(np.unique(dataset.users, return_counts=True)[1])[::-1]
    figure, (left, right) = _figure(8.4, 3.0, columns=2)
    curves = [("synthetic", ACCENT, popularity_curve(weights))]
    if target.get("popularity"):
        curves.insert(0, ("real", MUTED, target["popularity"]))
    for label, colour, points in curves:
        left.plot(*zip(*points), color=colour, linewidth=1.8, label=label)
    left.set_xscale("log")
    left.set_yscale("log")
    left.legend(fontsize=8, frameon=False)
    _dress(left, "item, by rank", "share of all interactions, by weight", "Popularity")
    right.bar(np.arange(1, len(lengths) + 1), lengths, color=ACCENT, width=0.9)
    _dress(right, "synthetic user, by rank", "items", "Items a user")
    what = f"{len(dataset.items)} interactions of {len(lengths)} synthetic users with {len(items)} items"
    return [_svg(figure, what, what + ".")]


_DRAWN: Mapping[str, Callable[[Any, Mapping[str, Any]], list[Picture | Table]]] = {
    "image": lambda dataset, _: _draw_images(dataset),
    "graph": lambda dataset, _: _draw_graph(dataset),
    "text": lambda dataset, _: _draw_texts(dataset),
    "interactions": _draw_interactions,
}


# --- runs and evaluations ---------------------------------------------------------------------------------------------


def draw_curves(
    steps: Sequence[tuple[int, float]], scores: Sequence[tuple[int, float]], best_step: int | None
) -> Picture:
    """Loss and validation score over the steps of a run; (step, value) pairs."""
    panels = [(name, points) for name, points in (("loss", steps), ("validation score", scores)) if points]
    figure, axes = _figure(4.2 * len(panels), 2.7, columns=len(panels))
    for panel, (name, points) in zip(np.atleast_1d(axes), panels):
        points = list(points)[:: max(1, len(points) // MAX_CURVE)]
        at, values = np.array([step for step, _ in points]), np.array([value for _, value in points])
        scored = name != "loss"
        panel.plot(at, values, color=ACCENT, linewidth=1.6, marker="o" if scored else None, markersize=3.5)
        if not scored and values.min() > 0 and values.max() > 20 * values.min():
            panel.set_yscale("log")
        if scored and best_step is not None and best_step in at:
            panel.plot([best_step], [values[list(at).index(best_step)]], "o", color=SECOND, markersize=7, zorder=3)
            name += f" (kept: step {best_step:,})"
        panel.xaxis.get_major_locator().set_params(integer=True)
        _dress(panel, "outer step", "", name[0].upper() + name[1:])
    return _svg(figure, "Curves of " + " and ".join(name for name, _ in panels))


def draw_scores(rows: Sequence[Mapping[str, Any]], metric: str) -> Picture:
    """Mean and standard deviation of each row of an evaluation, as dots on one scale."""
    names = [f"{row['data']} · {row['learner']}" for row in rows]
    means = [100 * row["summary"][metric]["mean"] for row in rows]
    spreads = [100 * row["summary"][metric]["std"] for row in rows]
    figure, axes = _figure(6.2, 0.34 * len(rows) + 0.8)
    for place, (row, mean, spread) in enumerate(zip(rows, means, spreads)):
        own = row["data"] not in ("random subset", "full data")
        axes.errorbar(
            [mean],
            [place],
            xerr=[spread],
            fmt="o",
            markersize=7,
            color=ACCENT if own else MUTED,
            capsize=0,
            elinewidth=2,
        )
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _dress(axes, f"{metric}, % (mean ± std)", "", "")
    axes.grid(axis="y", visible=False)
    return _svg(figure, f"{metric} of each training set")


def draw_budgets(kind: str, runs: Sequence[Sequence[Mapping[str, Any]]]) -> Picture:
    """Every metric against the number of points, over several scored runs of one kind: the summary, random points, full data.

    Args:
        kind: of the data.
        runs: the rows of each run's evaluation; of several learners the first counts.
    """
    metrics = list(runs[0][0]["summary"])[:4]
    figure, axes = _figure(3.6 * len(metrics), 2.8, columns=len(metrics))
    learner = runs[0][0]["learner"]
    for panel, metric in zip(np.atleast_1d(axes), metrics):
        for data, colour in (("summary", ACCENT), ("exported", SECOND), ("random subset", MUTED)):
            points = sorted(
                (row["points"], 100 * row["summary"][metric]["mean"])
                for rows in runs
                for row in rows
                if row["data"] == data and row["learner"] == learner and metric in row["summary"]
            )
            if points:
                panel.plot(*zip(*points), "o-", color=colour, linewidth=1.6, markersize=3.5, label=data)
        whole = [r for rows in runs for r in rows if r["data"] == "full data" and r["learner"] == learner]
        if whole and metric in whole[0]["summary"]:
            panel.axhline(
                100 * whole[0]["summary"][metric]["mean"], color=INK, linewidth=1, linestyle=":", label="full data"
            )
        _dress(panel, "points", f"{metric}, %", metric)
    np.atleast_1d(axes)[0].legend(fontsize=8, frameon=False)
    return _svg(figure, f"Scores of {kind} against the number of points", f"{kind}, {learner}: score against points.")


# --- drawing ----------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    # A Figure of its own, without pyplot: no global state, no window system, nothing to close.
    load_extra("matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, 1.5), max(height, 1.0)), layout="constrained")
    return figure, figure.subplots(1, columns)


def _dress(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x, fontsize=8, color=MUTED)
    axes.set_ylabel(y, fontsize=8, color=MUTED)
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colour(position: int) -> Any:
    if position < len(_COLOURS):
        return _COLOURS[position]
    from matplotlib.colors import hsv_to_rgb

    return hsv_to_rgb(((position * 0.618) % 1, 0.55, 0.75))


def _png(figure: Any, alt: str, caption: str = "") -> Picture:
    return _embed(figure, "png", "image/png", alt, caption)


def _svg(figure: Any, alt: str, caption: str = "") -> Picture:
    return _embed(figure, "svg", "image/svg+xml", alt, caption)


def _embed(figure: Any, form: str, media: str, alt: str, caption: str) -> Picture:
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "datastill"}):  # equal data give equal files
        figure.savefig(content, format=form, dpi=170, metadata={"Date": None} if form == "svg" else None)
    return Picture(f"data:{media};base64,{base64.b64encode(content.getvalue()).decode()}", alt, caption)
