"""What `--data` may name: each form is read to known values, and each mistake is one sentence."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datastill.errors import InputError
from datastill.sources import read_graph_source, read_images, read_logs, read_texts, split_by_class

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


def write_idx(path: Path, array: np.ndarray) -> None:
    head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


# --- images -----------------------------------------------------------------------------------------------------------


def test_digits_are_split_by_class() -> None:
    from sklearn.datasets import load_digits

    found = read_images("digits", seed=3)
    (train, train_labels), (test, test_labels) = found["data"], found["test"]
    labels = load_digits().target
    for digit in range(10):
        held = round(0.2 * int((labels == digit).sum()))
        assert int((test_labels == digit).sum()) == held
        assert int((train_labels == digit).sum()) == int((labels == digit).sum()) - held
    assert train.shape[1:] == test.shape[1:] == (1, 8, 8)
    assert train.max() == 1


@pytest.mark.parametrize("inside", ["", "raw", "MNIST/raw"])
def test_idx_files_are_read_gzipped_or_not(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (6, 5, 4)), rng.integers(0, 256, (3, 5, 4))
    write_idx(folder / "train-images-idx3-ubyte.gz", train)
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(6) % 3)
    write_idx(folder / "t10k-images-idx3-ubyte", test)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(3))
    found = read_images(str(tmp_path))
    assert found["data"][0].squeeze(1).tolist() == train.tolist()
    assert found["data"][0].dtype == torch.uint8
    assert found["test"][0].squeeze(1).tolist() == test.tolist()
    assert found["test"][1].tolist() == [0, 1, 2]


def test_mnist_has_its_known_statistics() -> None:
    root = SHARED / "images/MNIST"
    if not root.is_dir():
        pytest.skip("needs MNIST in ../shared/data")
    found = read_images(str(root))
    pixels = found["data"][0][:20000].float() / 255
    assert len(found["data"][0]) == 60000
    assert len(found["test"][0]) == 10000
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=0.002)


def test_an_npz_of_images_with_and_without_a_test_part(tmp_path: Path) -> None:
    images, labels = np.arange(40, dtype=np.uint8).reshape(10, 2, 2), np.arange(10) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=images, labels=labels, test_images=images[:2], test_labels=labels[:2])
    found = read_images(str(tmp_path / "a.npz"))
    assert len(found["data"][0]) == 8
    assert len(found["test"][0]) == 2
    assert len(read_images(str(tmp_path / "b.npz"))["data"][0]) == 10
    assert len(read_images(str(tmp_path / "a.npz"), str(tmp_path / "b.npz"))["test"][0]) == 10


def test_folders_of_image_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(5):
                array = np.full((4, 4), 40 * number, np.uint8)
                image.fromarray(array).save(tmp_path / part / label / f"{number}.png")
    found = read_images(str(tmp_path))
    assert found["data"] == tmp_path / "train"
    assert found["test"] == tmp_path / "test"
    split = read_images(str(tmp_path / "train"))
    assert len(split["data"].images) == 8
    assert sorted(split["test"].labels.tolist()) == [0, 1]


@pytest.mark.parametrize(
    "damage", [b"", b"\x00\x00\x08\x03", b"\x00\x00\x08\x01\x00\x00\x00\x09abc", b"PK\x03\x04" * 9]
)
def test_damaged_idx_files_are_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damage)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(damage)
    with pytest.raises(InputError, match="not an IDX file"):
        read_images(str(tmp_path))


def test_archives_with_pickles_or_without_the_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1))
    np.savez(tmp_path / "empty.npz", pictures=np.zeros(1))
    (tmp_path / "text.npz").write_text("x")
    for name, said in (("pickle", "pickled"), ("empty", "lacks the arrays images, labels"), ("text", "not an .npz")):
        with pytest.raises(InputError, match=said):
            read_images(str(tmp_path / f"{name}.npz"))


# --- texts ------------------------------------------------------------------------------------------------------------


def test_lines_of_label_and_sentence(tmp_path: Path) -> None:
    lines = [f"{number % 2} sentence number {number}" for number in range(20)]
    (tmp_path / "train").write_text("\n".join(lines) + "\n")
    (tmp_path / "test").write_bytes("1 na\xefve\n".encode("latin-1"))
    found = read_texts(str(tmp_path / "train"), str(tmp_path / "test"), validation=str(tmp_path / "test"))
    assert found["texts"] == [f"sentence number {number}" for number in range(20)]
    assert found["labels"] == ["0", "1"] * 10
    assert found["test"] == found["validation"] == (["naïve"], ["1"])
    split = read_texts(str(tmp_path / "train"))
    assert sorted(split["texts"] + split["test"][0]) == sorted(found["texts"])
    assert split["test"][1].count("0") == split["test"][1].count("1") == 2


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_of_texts(tmp_path: Path, name: str, mark: str) -> None:
    rows = ["label", "body"], ["x", '"two\nlines"'], ["y", "one"]
    (tmp_path / name).write_text("\n".join(mark.join(row) for row in rows), encoding="utf-8-sig")
    found = read_texts(str(tmp_path / name), str(tmp_path / name), text_column="body")
    assert found["texts"] == ["two\nlines", "one"]
    assert found["labels"] == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "label,body\n1,x\n", "no column 'text' but label, body"),
        ("a.csv", "label,text\n1\n", "row 2: too few columns"),
        ("a.csv", "", "no column"),
        ("a.csv", "label,text\n", "no labelled text"),
        ("a", "1 fine\nword\n", "line 2: expected a label"),
        ("a", "", "no labelled text"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_texts(str(tmp_path / name))


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_cora_is_found_by_name_and_by_folder_and_its_folder_stays_as_it_was() -> None:
    pytest.importorskip("torch_geometric")
    root = SHARED / "graphs/planetoid"
    if not root.is_dir():
        pytest.skip("needs Cora in ../shared/data")
    before = sorted(root.rglob("*"))
    for found in (read_graph_source("cora", root=str(root)), read_graph_source(str(root / "Cora"))):
        data = found["data"]
        assert (data.num_nodes, data.num_edges, data.num_features) == (2708, 10556, 1433)
        assert [int(data[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")] == [140, 500, 1000]
    assert sorted(root.rglob("*")) == before


def test_graphs_in_an_npz_and_in_tables(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    np.savez(
        tmp_path / "g.npz",
        x=np.eye(3, dtype=np.float32),
        edge_index=np.array([[0, 1], [1, 2]]),
        y=np.array([0, 1, 0]),
        train_mask=np.array([True, True, False]),
    )
    from_npz = read_graph_source(str(tmp_path / "g.npz"))["data"]
    (tmp_path / "nodes.csv").write_text("label,a,split,b,c\n0,1,train,0,0\n1,0,train,1,0\n0,0,,0,1\n")
    (tmp_path / "edges.csv").write_text("source,target\n0,1\n1,2\n")
    from_tables = read_graph_source(str(tmp_path))["data"]
    for data in (from_npz, from_tables):
        assert data.x.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        assert data.edge_index.tolist() == [[0, 1], [1, 2]]
        assert data.y.tolist() == [0, 1, 0]
        assert data.train_mask.tolist() == [True, True, False]
    assert from_tables.test_mask.tolist() == [False] * 3


@pytest.mark.parametrize(
    ("nodes", "edges", "said"),
    [
        ("a,b\n1,2\n", "source,target\n", "a column 'label'"),
        ("label,a\n0,1\n", "from,to\n", "must begin with source,target"),
        ("label,a\n0,x\n", "source,target\n", "cannot be read"),
        ("label,a\n0,1\n", "source,target\n0\n", "cannot be read"),
        ("label,split,a\n0,holdout,1\n", "source,target\n", "split must be"),
    ],
)
def test_tables_of_graphs_that_cannot_be_read(tmp_path: Path, nodes: str, edges: str, said: str) -> None:
    pytest.importorskip("torch_geometric")
    (tmp_path / "nodes.csv").write_text(nodes)
    (tmp_path / "edges.csv").write_text(edges)
    with pytest.raises(InputError, match=said):
        read_graph_source(str(tmp_path))


def test_names_and_places_of_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_geometric")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--download"):
        read_graph_source("Cora")
    with pytest.raises(InputError, match="Did you mean 'PubMed'"):
        read_graph_source("pubmde")
    with pytest.raises(InputError, match=r"There is no '\./nowhere'"):
        read_graph_source("./nowhere")
    with pytest.raises(InputError, match="neither Planetoid"):
        read_graph_source(str(tmp_path))


# --- common -----------------------------------------------------------------------------------------------------------


def test_logs_are_passed_on_by_path() -> None:
    assert read_logs("logs/*.parquet") == {"logs": "logs/*.parquet"}


def test_a_split_keeps_a_point_of_each_class_and_is_seeded() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    kept, held = split_by_class(labels, 0)
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(16))
    assert labels[held].bincount(minlength=3).tolist() == [2, 1, 0]
    assert torch.equal(held, split_by_class(labels, 0)[1])
    assert any(not torch.equal(held, split_by_class(labels, seed)[1]) for seed in range(1, 5))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.arange(12) % 2 + 0.7}, "must be class ids"),
        ({"labels": np.arange(9) % 2}, "12 images but 9 labels"),
        ({"labels": np.arange(15) % 2}, "12 images but 15 labels"),
        ({"labels": np.array(["a", "b"] * 6)}, "must be class ids"),
        ({"labels": np.array(1)}, "one class id for each image"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "data is empty"),
        ({"images": np.zeros((4, 4, 4), np.uint8), "labels": np.arange(4) % 2}, "at most two images of every class"),
    ],
)
def test_archives_of_images_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "wrong.npz", **{"images": images, **arrays})
    with pytest.raises(InputError, match=said):
        read_images(str(tmp_path / "wrong.npz"))


def test_an_archive_in_another_byte_order(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((12, 4, 4)).astype(">f4")
    np.savez(tmp_path / "foreign.npz", images=images, labels=(np.arange(12) % 2).astype(">i4"))
    found = read_images(str(tmp_path / "foreign.npz"))
    (train, kept), (test, held) = found["data"], found["test"]
    assert len(kept) + len(held) == 12
    assert float(train.sum() + test.sum()) == pytest.approx(float(images.sum()), rel=1e-5)
