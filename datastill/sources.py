"""What `--data` may name in a shell: embedded data, files and folders, as the objects that the library takes."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.errors import InputError, load_extra, require, unknown_name
from datastill.rng import generator

PLANETOID = ("Cora", "CiteSeer", "PubMed")
TEST_SHARE = 0.2
_IDX = {"train": "train", "test": "t10k"}
_GRAPH_ARRAYS = ("x", "edge_index", "y", "edge_weight", "train_mask", "val_mask", "test_mask")


# --- images -----------------------------------------------------------------------------------------------------------


def read_images(data: str, test: str | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Images by name: training part `data` and test part `test`, as `condense_images` takes them.

    Args:
        data: "digits" (scikit-learn's 1,797 images of 8 x 8); a folder with MNIST's IDX files (also gzipped); a folder
            with one subfolder a class, or with `train/` and `test/` of that form; or an .npz with `images`, `labels`
            and, if it has a test part, `test_images`, `test_labels`.
        test: a second such folder or .npz to score on. Without one, and without a test part in `data`, a fifth of each
            class is set apart.
        seed: of that split.
    """
    train, found = _image_parts(data)
    if test is not None:
        found = _image_parts(test)[0]
    if found is None:
        train, found = _split_images(train, seed)
    return {"data": train, "test": found}


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: (1797, 1, 8, 8) float32 in [0, 1], and (1797,) int64 labels."""
    digits = load_extra("sklearn.datasets", "all").load_digits()
    return torch.from_numpy(digits.images / 16).float().unsqueeze(1), torch.from_numpy(digits.target).long()


def _image_parts(data: str) -> tuple[Any, Any]:
    if data == "digits":
        return load_digits(), None
    path = _existing(data, "digits, a folder of images, a folder of IDX files, or an .npz")
    if path.suffix == ".npz":
        arrays = _read_npz(path, ("images", "labels"), ("test_images", "test_labels"))
        test = (arrays["test_images"], arrays["test_labels"]) if {"test_images", "test_labels"} <= set(arrays) else None
        return (arrays["images"], arrays["labels"]), test
    require(path.is_dir(), f"--data {data} is a file that holds no images; give a folder or an .npz.")
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if _idx_file(folder, "train", "images") is not None:
            has_test = _idx_file(folder, "test", "images") is not None
            return _read_idx_pair(folder, "train"), _read_idx_pair(folder, "test") if has_test else None
    if (path / "train").is_dir():
        return path / "train", path / "test" if (path / "test").is_dir() else None
    return path, None


def _split_images(train: Any, seed: int) -> tuple[Any, Any]:
    from datastill.modalities.image_data import labelled_images, require_hard

    given = labelled_images(train)
    require_hard(given, "data")
    kept, held = split_by_class(given.labels, seed)
    require(
        len(held) > 0,
        "data has at most two images of every class, too few to set some apart for the test: name test images by --test.",
    )
    rest, test = given.at(kept), given.at(held)
    return (rest, test) if isinstance(train, Path) else ((rest.images, rest.labels), (test.images, test.labels))


def _idx_file(folder: Path, part: str, what: str) -> Path | None:
    stem = f"{_IDX[part]}-{what}-idx{3 if what == 'images' else 1}-ubyte"
    return next((folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)


def _read_idx_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images, labels = _idx_file(folder, part, "images"), _idx_file(folder, part, "labels")
    if images is None or labels is None:
        raise InputError(f"{folder} lacks the {part} labels, an IDX file named {_IDX[part]}-labels-idx1-ubyte.")
    return torch.from_numpy(_read_idx(images)).unsqueeze(1), torch.from_numpy(_read_idx(labels)).long()


def _read_idx(path: Path) -> np.ndarray:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    dimensions = content[3] if len(content) > 3 else 0
    head = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:head], ">u4").tolist()) if len(content) >= head else ()
    if content[:3] != b"\x00\x00\x08" or not shape or len(content) != head + int(np.prod(shape)):
        raise InputError(f"{path} is not an IDX file of bytes, or was cut.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


# --- texts ------------------------------------------------------------------------------------------------------------


def read_texts(
    data: str,
    test: str | None = None,
    *,
    validation: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    seed: int = 0,
) -> dict[str, Any]:
    """Labelled texts by path: `texts`, `labels`, `test` and `validation`, as `condense_text` takes them.

    Args:
        data: a .csv or .tsv with a header, or a file with "label sentence" on each line. UTF-8, else Latin-1.
        test: such a file to score on. Without one, a fifth of each class is set apart.
        validation: such a file to select on. Without one, a part of the training texts is set apart.
        text_column: in a .csv or .tsv.
        label_column: in a .csv or .tsv.
        seed: of the test split.
    """
    texts, labels = _labelled_lines(data, text_column, label_column)
    found: dict[str, Any] = {}
    if validation is not None:
        found["validation"] = _labelled_lines(validation, text_column, label_column)
    if test is not None:
        return {"texts": texts, "labels": labels, "test": _labelled_lines(test, text_column, label_column), **found}
    names = sorted(set(labels))
    kept, held = split_by_class(torch.tensor([names.index(label) for label in labels]), seed)

    def part(index: Tensor) -> tuple[list[str], list[str]]:
        return [texts[i] for i in index.tolist()], [labels[i] for i in index.tolist()]

    return {"texts": part(kept)[0], "labels": part(kept)[1], "test": part(held), **found}


def _labelled_lines(data: str, text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    path = _existing(data, "a .csv or .tsv with a header, or a file of 'label sentence' lines")
    require(path.is_file(), f"{data} is a folder; give a file of labelled texts.")
    content = path.read_bytes()
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        decoded = content.decode("latin-1")
    if path.suffix in (".csv", ".tsv"):
        rows = list(csv.reader(decoded.splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ","))
        head = rows[0] if rows else []
        for column, option in ((text_column, "--text-column"), (label_column, "--label-column")):
            require(
                column in head,
                f"{data} has no column {column!r} but {', '.join(head) or 'nothing'}; name the right one by {option}.",
            )
        at_text, at_label = head.index(text_column), head.index(label_column)
        pairs = []
        for line, row in enumerate(rows[1:], 2):
            require(len(row) > max(at_text, at_label), f"{data}, row {line}: too few columns.")
            pairs.append((row[at_text], row[at_label]))
    else:
        pairs = []
        for line, row_text in enumerate(decoded.splitlines(), 1):
            label, _, text = row_text.partition(" ")
            require(bool(label and text.strip()), f"{data}, line {line}: expected a label, a blank and a sentence.")
            pairs.append((text, label))
    require(bool(pairs), f"{data} holds no labelled text.")
    return [text for text, _ in pairs], [label for _, label in pairs]


# --- graphs -----------------------------------------------------------------------------------------------------------


def read_graph_source(data: str, *, root: str = "data", download: bool = False) -> dict[str, Any]:
    """A graph by name or path: a PyG `Data`, as `condense_graph` takes it.

    Args:
        data: "Cora", "CiteSeer" or "PubMed", looked for in `root`; a folder with the raw Planetoid files of one of them
            (which are pickles, read by torch-geometric: take them from a source that you trust); a folder with
            `nodes.csv` (columns `label`, optionally `split` with train, val or test, and one a feature; a label below 0
            is unknown) and `edges.csv` (columns `source`, `target`: positions of nodes, from 0); or an .npz with `x`,
            `edge_index`, `y` and optionally `edge_weight`, `train_mask`, `val_mask`, `test_mask`.
        root: where named graphs lie, in a folder of their name.
        download: whether a named graph that is not there is fetched by torch-geometric.
    """
    geometric = load_extra("torch_geometric.data", "graphs")
    name = next((known for known in PLANETOID if known.lower() == data.lower()), None)
    if name is not None and not Path(data).exists():
        raw = Path(root) / name / "raw"
        if not raw.is_dir():
            if not download:
                raise InputError(
                    f"There is no {name} in {str(root)!r}: name its folder by --root, or have it fetched by --download."
                )
            load_extra("torch_geometric.datasets", "graphs").Planetoid(root, name)
        return {"data": _read_planetoid(raw, name)}
    if not Path(data).exists() and not any(mark in data for mark in "./\\"):
        raise unknown_name("graph", data, PLANETOID)
    path = _existing(data, f"{', '.join(PLANETOID)}, a folder, or an .npz")
    if path.suffix == ".npz":
        arrays = _read_npz(path, ("x", "edge_index", "y"), _GRAPH_ARRAYS)
        return {"data": geometric.Data(**{key: torch.from_numpy(value) for key, value in arrays.items()})}
    require(path.is_dir(), f"{data} is not an .npz; graphs come in an .npz or in a folder.")
    for raw in (path, path / "raw"):
        for known in PLANETOID:
            if (raw / f"ind.{known.lower()}.x").is_file():
                return {"data": _read_planetoid(raw, known)}
    return {"data": geometric.Data(**_read_node_tables(path))}


def _read_planetoid(raw: Path, name: str) -> Any:
    # torch-geometric writes what it made beside the raw files; a copy keeps the user's folder as it is.
    planetoid = load_extra("torch_geometric.datasets", "graphs").Planetoid
    with tempfile.TemporaryDirectory() as copy:
        target = Path(copy) / name / "raw"
        target.mkdir(parents=True)
        for file in raw.glob(f"ind.{name.lower()}.*"):
            shutil.copy(file, target)
        with open(os.devnull, "w") as quiet, redirect_stderr(quiet):
            return planetoid(copy, name)[0]


def _read_node_tables(path: Path) -> dict[str, Tensor]:
    for name in ("nodes.csv", "edges.csv"):
        require((path / name).is_file(), f"{path} holds no graph: it has neither Planetoid's raw files nor {name}.")
    with (path / "nodes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with (path / "edges.csv").open(newline="", encoding="utf-8") as file:
        links = list(csv.reader(file))
    head = rows[0] if rows else []
    require("label" in head, f"{path / 'nodes.csv'} needs a header with a column 'label'.")
    require(
        bool(links) and links[0][:2] == ["source", "target"], f"{path / 'edges.csv'} must begin with source,target."
    )
    columns = [position for position, name in enumerate(head) if name not in ("label", "split")]
    try:
        found = {
            "x": torch.tensor([[float(row[column]) for column in columns] for row in rows[1:]]),
            "y": torch.tensor([int(row[head.index("label")]) for row in rows[1:]]),
            "edge_index": torch.tensor([[int(row[0]), int(row[1])] for row in links[1:]]).reshape(-1, 2).T.contiguous(),
        }
        if "split" in head:
            parts = [row[head.index("split")] for row in rows[1:]]
            other = sorted(set(parts) - {"train", "val", "test", ""})
            require(not other, f"split must be train, val, test or empty, got {other[:1]}")
            found |= {
                f"{part}_mask": torch.tensor([found == part for found in parts]) for part in ("train", "val", "test")
            }
    except (ValueError, IndexError) as error:
        raise InputError(f"The tables in {path} cannot be read: {error}.") from error
    return found


# --- interactions -----------------------------------------------------------------------------------------------------


def read_logs(data: str) -> dict[str, Any]:
    """Recommender logs by path, as `condense_interactions` takes them.

    Args:
        data: a .parquet, .csv, .tsv or .inter file, a folder of such files, or a glob pattern.
    """
    return {"logs": data}


# --- common -----------------------------------------------------------------------------------------------------------


def split_by_class(labels: Tensor, seed: int, share: float = TEST_SHARE) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), each ascending; `share` of each class is held out, and at least one point is kept."""
    rng = generator(seed, "test split")
    held = []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        count = min(round(share * len(members)), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=rng)[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def _existing(data: str, allowed: str) -> Path:
    path = Path(data)
    require(path.exists(), f"There is no {data!r}. Data may be: {allowed}.")
    return path


def _read_npz(path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in needed if name not in file.files]
            require(not missing, f"{path} lacks the arrays {', '.join(missing)}; it has {', '.join(file.files)}.")
            return {name: file[name] for name in (*needed, *optional) if name in file.files}
    except InputError:
        raise
    except Exception as error:  # numpy raises whatever a broken archive makes it raise
        raise InputError(f"{path} is not an .npz without pickled objects: {error}.") from error
