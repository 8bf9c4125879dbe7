"""`condense_text` on the sentiment of film reviews (SST-2), and on what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import condense_text, distill, evaluate, load
from datastill.errors import InputError
from datastill.modalities.text import TextDataset, TextModality
from datastill.modalities.text_summary import TokenForm
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.rng import generator

DATA = Path(__file__).resolve().parents[2] / "../shared/data/text"
TEXTS = [f"{word} film number {i}" for i in range(12) for word in ("great", "awful")]
LABELS = ["good", "bad"] * 12


def sentences(part: str) -> tuple[list[str], list[int]]:
    path = DATA / "sst" / f"stsa.binary.{part}"
    if not path.exists():
        pytest.skip("needs the SST-2 sentences in ../shared/data/text/sst")
    rows = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()]
    return [text for _, text in rows], [int(label) for label, _ in rows]


def reviews(**options: Any) -> TextModality:
    return TextModality(sentences("train"), validation=sentences("dev"), test=sentences("test"), **options)


def test_it_gives_readable_texts_and_leaves_the_input_alone(tmp_path: Path) -> None:
    texts, labels = list(TEXTS), list(LABELS)
    state = torch.get_rng_state()
    options: dict[str, Any] = {"per_class": 2, "steps": 1, "seed": 5, "progress": False}
    small = condense_text(texts, labels, out=tmp_path / "run", **options)
    assert (texts, labels) == (TEXTS, LABELS)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(small, TextDataset)
    assert small.labels == ["bad", "bad", "good", "good"]
    words = {word for text in TEXTS for word in text.split()}
    assert all(text and set(text.split()) <= words for text in small.texts)
    again = condense_text({"text": texts, "label": labels}, **options)
    assert again == small
    kept = load(tmp_path / "run" / "artifact")
    assert kept.dataset == small


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 0}, "per_class"),
        ({"per_class": 100}, "training texts"),
        ({"recipe": "text-d"}, "'text-dd'"),
        ({"recipe": "gcond"}, "not for text"),
        ({"steps": 0}, "steps"),
        ({"embeddings": "absent.vec"}, "there is no file"),
        ({"validation": (["fine"], ["so-so"])}, "'so-so'"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        condense_text(TEXTS, LABELS, progress=False, **options)


def test_decoded_sentences_beat_random_ones_on_sst() -> None:
    """Ten sentences a class by kernel ridge regression, scored by the kernel: a short form of the full run below."""
    modality = reviews(embeddings=DATA / "glove" / "glove-50d-5k.json")
    counts = [10, 10]
    scores = [
        modality.score(modality.fit(modality.read(data), "ntk", rng=generator(0)), "test")["accuracy"]
        for data in (modality.subset(counts, rng=generator(seed)) for seed in range(5))
    ]
    forms: tuple[tuple[TokenForm, float], ...] = (("free", 0.0), ("nearest", 0.05))
    for form, floor in forms:
        summary = modality.summary(counts, rng=generator(0), tokens=form)
        objective = KernelRidge(kernel="ntk", ridge=1e-2, real_size=500)
        distill(modality, summary, objective, steps=60, lr=0.05, validator="ntk", progress=False)
        for floor_of, batch in ((0.05, summary().detach()), (floor, modality.read(summary.export()))):
            found = modality.score(modality.fit(batch, "ntk", rng=generator(0)), "test")["accuracy"]
            assert found > sum(scores) / 5 + floor_of, form


@pytest.mark.slow
@pytest.mark.parametrize("table", ["glove", "corpus"])
def test_ten_sentences_a_class_close_half_of_the_gap_on_sst(table: str) -> None:
    embeddings = DATA / "glove" / "glove-50d-5k.json" if table == "glove" else None
    modality = reviews(embeddings=embeddings)
    small = condense_text(
        sentences("train"), validation=sentences("dev"), per_class=10, embeddings=embeddings, progress=False
    )
    found = evaluate(small, modality, progress=False)
    print(found.table())
    assert found.gap_closed() >= 0.5


def test_a_run_with_other_vectors_does_not_go_on_in_its_folder(tmp_path: Path) -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    first, second = (
        dict(zip(words, torch.randn(len(words), 4, generator=generator("vectors", number)).numpy()))
        for number in (1, 2)
    )
    options: dict[str, Any] = {"per_class": 1, "steps": 2, "recipe": "dm", "out": tmp_path, "progress": False}
    condense_text(TEXTS, LABELS, embeddings=first, **options)
    with pytest.raises(InputError, match="embeddings was"):
        condense_text(TEXTS, LABELS, embeddings=second, **options)
