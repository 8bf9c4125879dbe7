"""Reports: one self-contained page, everything from data escaped, and pictures of the right things."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import datastill
from datastill import registry
from datastill.artifact import Artifact
from datastill.errors import ArtifactError, InputError
from datastill.modalities.interactions_table import Interactions, popularity_curve
from datastill.modalities.text_data import TextDataset
from datastill.report import report
from datastill.report_figures import Picture, Table, draw_curves, draw_dataset

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class Stored:
    """Unpacks what the test put here, so that the report meets datasets of any kind."""

    dataset: Any = None

    @staticmethod
    def pack(dataset: Any) -> Any:
        Stored.dataset = dataset
        return {}, {}

    @staticmethod
    def unpack(tensors: Any, meta: Any) -> Any:
        return Stored.dataset


@pytest.fixture(autouse=True)
def _stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find", lambda kind, name: Stored)


def artifact(kind: str, dataset: Any, **changes: Any) -> Artifact:
    rows = [
        {
            "data": name,
            "learner": "convnet",
            "scores": {"accuracy": [mean]},
            "points": 3,
            "nbytes": 1234,
            "seconds": 0.5,
            "summary": {"accuracy": {"mean": mean, "std": 0.0125}},
        }
        for name, mean in (("summary", 0.875), ("random subset", 0.5), ("full data", 0.9375))
    ]
    made = Artifact(
        kind=kind,
        dataset=dataset,
        points=3,
        nbytes=1234,
        fingerprint="f" * 64,
        objective="kernel-ridge",
        seed=0,
        steps=40,
        best_step=20,
        metric="accuracy",
        seconds=2.0,
        recipe="kip",
        validation_score=0.75,
        settings={"ridge": 0.5},
        evaluation={"metric": "accuracy", "rows": rows},
        versions={"torch": "2"},
    )
    return dataclasses.replace(made, **changes)


def images(count: int = 6) -> TensorDataset:
    pixels = torch.zeros(count, 1, 4, 4)
    pixels[count // 2 :] = 1
    return TensorDataset(pixels, torch.arange(count) // (count // 2))


def write_metrics(path: Path, extra: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "step", "step": step, "loss": 1 / step} for step in range(1, 41)]
    lines += [{"kind": "validation", "step": step, "score": 0.5} for step in (20, 40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + extra)


def decode(picture: Picture | Table) -> np.ndarray:
    from PIL import Image

    assert isinstance(picture, Picture)
    kind, _, content = picture.source.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_a_run_becomes_one_page_with_scores_pictures_and_curves(tmp_path: Path) -> None:
    datastill.save(artifact("image", images()), tmp_path / "artifact")
    write_metrics(tmp_path / "metrics.jsonl")
    path = report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    text = " ".join(page.text)
    for shown in (
        "87.50 ± 1.25",
        "50.00 ± 1.25",
        "93.75 ± 1.25",
        "1,234",
        "75.0 %",
        "ridge = 0.5",
        "f" * 64,
        "step 20",
    ):
        assert shown in text, shown
    assert page.tags.count("img") == 3  # scores, images, curves
    assert not (tmp_path / ".report.html.new").exists()


def test_the_page_refers_to_nothing_outside_and_runs_nothing(tmp_path: Path) -> None:
    datastill.save(artifact("image", images()), tmp_path / "artifact")
    page = Page(report(tmp_path))
    assert not {"script", "link", "iframe", "object", "embed", "a", "form", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("href", "action", "srcset")
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:image/")
    assert any(value.startswith("default-src 'none'") for name, value in page.attributes if name == "content")
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_text_from_data_is_escaped_everywhere(tmp_path: Path) -> None:
    run = tmp_path / 'quo"te <b>'
    dataset = TextDataset([HOSTILE, "plain"], [HOSTILE, "'\">"], torch.eye(2), [HOSTILE, "x"])
    made = artifact("text", dataset, recipe=HOSTILE, settings={HOSTILE: HOSTILE}, versions={"x": HOSTILE})
    made = dataclasses.replace(made, learned={"rates": HOSTILE}, metric="accuracy", objective=HOSTILE)
    datastill.save(made, run / "artifact")
    page = Page(report(run))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.tags.count("img") == 1  # the scores; none that came out of a text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert HOSTILE in page.text


def test_several_runs_become_parts_of_one_page(tmp_path: Path) -> None:
    datastill.save(artifact("image", images()), tmp_path / "images/artifact")
    datastill.save(artifact("image", images(), recipe="dm"), tmp_path / "more/artifact")
    (tmp_path / "unrelated").mkdir()
    page = Page(report(tmp_path))
    assert page.tags.count("section") == 2
    assert "images · kip" in page.text
    assert "more · dm" in page.text


def test_a_run_that_is_still_going_on_shows_its_curves(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", extra='{"kind": "step", "step": 41, "lo')
    page = Page(report(tmp_path))
    assert page.tags.count("img") == 1
    assert "no summary stored yet" in page.text
    assert "40" in page.text


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        report(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        report(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_damaged_artifact_is_not_shown(tmp_path: Path) -> None:
    datastill.save(artifact("image", images()), tmp_path / "artifact")
    (tmp_path / "artifact/data.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError):
        report(tmp_path)


def test_equal_runs_give_equal_pages(tmp_path: Path) -> None:
    for name in ("a", "b"):
        datastill.save(artifact("image", images()), tmp_path / name / "run/artifact")
        write_metrics(tmp_path / name / "run/metrics.jsonl")
    assert report(tmp_path / "a/run").read_bytes() == report(tmp_path / "b/run").read_bytes()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 255.0, -3.0])
def test_the_image_grid_has_a_row_a_class(scale: float) -> None:
    pixels, labels = images().tensors
    pixels = (pixels * 255).to(torch.uint8) if scale == 255 else pixels * abs(scale) + min(scale, 0)
    (picture,) = draw_dataset("image", TensorDataset(pixels, labels))
    shown = decode(picture)
    height, width = shown.shape[:2]
    # Class 0 is black images, class 1 white ones, on a white page: the upper half is mostly black, the lower one white.
    dark = shown.max(2) < 10
    assert dark[: height // 2].mean() > 0.4
    assert dark[height // 2 + 5 :].mean() < 0.05
    assert width > height


def test_soft_labels_and_colour_images_are_drawn() -> None:
    pixels = torch.zeros(4, 3, 5, 5)
    pixels[:, 0] = 1.0
    (picture,) = draw_dataset("image", TensorDataset(pixels, torch.eye(2)[[0, 0, 1, 1]] * 0.5 + 0.25))
    red = (decode(picture) == [255, 0, 0]).all(2).mean()
    assert red > 0.4


@pytest.mark.parametrize("edges", [True, False])
def test_a_graph_is_drawn_with_a_colour_a_class(edges: bool) -> None:
    data = pytest.importorskip("torch_geometric.data").Data(
        x=torch.randn(8, 3, generator=torch.Generator().manual_seed(0)),
        edge_index=torch.tensor([[0, 1, 2, 2], [1, 0, 3, 2]]) if edges else torch.empty(2, 0, dtype=torch.int64),
        y=torch.arange(8) % 2,
    )
    (picture,) = draw_dataset("graph", data)
    shown = decode(picture).reshape(-1, 3)
    for colour in ([0x2F, 0x6D, 0xB3], [0xD0, 0x70, 0x2F]):
        assert (shown == colour).all(1).sum() > 200
    assert isinstance(picture, Picture)
    assert "8 synthetic nodes" in picture.caption
    assert ("spring" in picture.caption) == edges


def test_a_long_list_of_texts_is_cut_and_says_so() -> None:
    (table,) = draw_dataset("text", TextDataset([f"text {n}" for n in range(500)], [0] * 500))
    assert isinstance(table, Table)
    assert len(table.rows) == 200
    assert "500 synthetic texts, the first 200" in table.caption


def test_interactions_are_counted() -> None:
    (picture,) = draw_dataset("interactions", Interactions(np.array([0, 0, 1]), np.array(["a", "b", "a"])))
    assert isinstance(picture, Picture)
    assert "3 interactions of 2 synthetic users with 2 items" in picture.caption


def test_real_popularity_is_drawn_beside_the_synthetic_one() -> None:
    table = Interactions(np.array([0, 0, 1]), np.array(["a", "b", "a"]), np.array([1.0, 2.0, 0.5], dtype=np.float32))
    alone, both = (
        draw_dataset("interactions", table, target)[0]
        for target in (None, {"popularity": [[1, 0.5], [2, 0.3], [7, 0.01]]})
    )
    assert isinstance(alone, Picture)
    assert isinstance(both, Picture)
    drawn = [base64.b64decode(picture.source.partition(";base64,")[2]).decode() for picture in (alone, both)]
    assert drawn[1].count("#66727f") > drawn[0].count("#66727f")


def test_a_popularity_curve_is_shares_by_rank() -> None:
    assert popularity_curve(np.array([1.0, 0.0, 3.0, 4.0])) == [[1, 0.5], [2, 0.375], [3, 0.125]]
    many = popularity_curve(np.arange(1.0, 5001), points=50)
    assert len(many) <= 50
    assert many[0][0] == 1
    assert many[-1] == [5000, pytest.approx(1 / (5000 * 5001 / 2))]


def test_several_sizes_are_drawn_against_each_other(tmp_path: Path) -> None:
    for points in (3, 6):
        rows = [{**row, "points": points} for row in artifact("image", images()).evaluation["rows"]]  # type: ignore[index]
        made = artifact("image", images(), points=points, evaluation={"metric": "accuracy", "rows": rows})
        datastill.save(made, tmp_path / f"run-{points}" / "artifact")
    page = Page(report(tmp_path))
    assert "Scores against size" in page.text
    assert ("alt", "Scores of image against the number of points") in page.attributes
    datastill.save(artifact("image", images()), tmp_path / "run-6" / "artifact")  # of one size only there is no curve
    assert "Scores against size" not in Page(report(tmp_path)).text


def test_an_unknown_kind_has_no_picture() -> None:
    assert draw_dataset("smells", object()) == []


def test_curves_of_a_single_kind_and_of_negative_losses() -> None:
    assert draw_curves([(1, -1.0), (2, -2.0)], [], None).source.startswith("data:image/svg+xml")
    assert draw_curves([], [(0, 0.5)], 0).source.startswith("data:image/svg+xml")
