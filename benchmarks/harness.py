"""What benchmark scripts share: the data, what machine and versions they ran on, and the JSON that they leave."""

from __future__ import annotations

import inspect
import json
import os
import platform
import subprocess
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from datastill import registry
from datastill.modalities.base import Modality
from datastill.sources import load_digits, read_graph_source, read_images, read_texts, split_by_class

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def environment() -> dict[str, Any]:
    """Commit, hardware, versions and time, for the head of a result file."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit + ("+changes" if changed else ""),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scipy")},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Taken at the start, because a long run may outlive the state of the tree that it measures.
STARTED = environment()


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write a result file: `environment()` as it was when the script began, and `content`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": STARTED, **content}, indent=1) + "\n")
    print(f"wrote {path}")


def modality(kind: str) -> Any:
    """The class of a kind of data."""
    return registry.find("modalities", kind)


def image_data(name: str) -> Modality:
    """ "digits" (embedded), or whatever `--data` of `datastill image` takes."""
    return modality("image")(**read_images(name))


def graph_data(path: str | None) -> Modality:
    """A graph by path; None is the nearest-neighbour graph of the embedded digits."""
    if path is not None:
        return modality("graph")(**read_graph_source(path))
    from datastill.demo import neighbour_graph

    pixels, labels = load_digits()
    _, held = split_by_class(labels, seed=0)
    return modality("graph")(neighbour_graph(pixels, labels, held, seed=0))


def text_data(path: str | None, embeddings: str | None) -> Modality:
    """A folder with SST's files, or None for the embedded stand-in: does a docstring come from NumPy, SciPy or PyTorch?"""
    if path is not None:
        parts = {part: str(Path(path) / f"stsa.binary.{part}") for part in ("train", "dev", "test")}
        return modality("text")(
            **read_texts(parts["train"], parts["test"], validation=parts["dev"]), embeddings=embeddings
        )
    texts, labels = docstrings()
    names = sorted(set(labels))
    kept, held = split_by_class(torch.tensor([names.index(label) for label in labels]), seed=0)

    def part(index: torch.Tensor) -> tuple[list[str], list[str]]:
        return [texts[i] for i in index.tolist()], [labels[i] for i in index.tolist()]

    return modality("text")(*part(kept), test=part(held), embeddings=embeddings)


def docstrings() -> tuple[list[str], list[str]]:
    """First paragraphs of public functions' docstrings, with the package they are from."""
    texts, labels = [], []
    for package, modules in {
        "numpy": ("numpy", "numpy.linalg", "numpy.fft", "numpy.ma"),
        "scipy": ("scipy.stats", "scipy.special", "scipy.signal", "scipy.optimize", "scipy.linalg", "scipy.ndimage"),
        "torch": ("torch", "torch.nn", "torch.linalg", "torch.nn.functional", "torch.optim"),
    }.items():
        for name in modules:
            for _, value in sorted(vars(import_module(name)).items()):
                text = inspect.getdoc(value) if callable(value) else None
                paragraphs = [part.replace("\n", " ") for part in (text or "").split("\n\n") if "(" not in part[:40]]
                if paragraphs and len(paragraphs[0].split()) >= 4 and paragraphs[0] not in texts:
                    texts.append(paragraphs[0])
                    labels.append(package)
    return texts, labels


def interactions_data(path: str | None) -> Modality:
    """Logs by path; None is the embedded stand-in: each digit is a user, whose items are the pixels that it inks."""
    if path is not None:
        return modality("interactions").from_logs(path)
    images = read_images("digits")["data"][0].flatten(1).numpy()
    users, items = np.nonzero(images >= 0.5)
    return modality("interactions").from_logs(sp.csr_matrix((np.ones(len(users)), (users, items)), shape=images.shape))


def modality_of(kind: str, *, embedded: bool = False, folder: Path = DATA) -> Modality:
    """The benchmark dataset of a kind: digits; Cora; SST-2 with GloVe; MovieLens-100K. Stand-ins if `embedded`."""
    if kind == "image":
        return image_data("digits")
    if kind == "graph":
        return graph_data(None if embedded else str(folder / "graphs/planetoid/Cora"))
    if kind == "text":
        if embedded:
            return text_data(None, None)
        return text_data(str(folder / "text/sst"), str(folder / "text/glove/glove-50d-5k.json"))
    return interactions_data(None if embedded else str(folder / "interactions/ml-100k/ml-100k.inter"))
