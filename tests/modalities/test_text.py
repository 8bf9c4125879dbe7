"""The text modality and its summary."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.text import Tokens
from datastill.checks import check_modality
from datastill.errors import InputError
from datastill.modalities.text import TextDataset, TextModality
from datastill.modalities.text_data import labelled_texts, split_off
from datastill.modalities.text_decode import nearest_rows
from datastill.modalities.text_init import noise_like
from datastill.rng import generator

GOOD, BAD, NEUTRAL = (
    ("great", "fine", "lovely"),
    ("awful", "poor", "dull"),
    ("film", "plot", "the", "a", "actor", "scene"),
)


def reviews(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Sentences whose class is told by one or two of their words."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(count):
        good = number % 2 == 0
        words = [*rng.choice(NEUTRAL, rng.integers(2, 5)), *rng.choice(GOOD if good else BAD, rng.integers(1, 3))]
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append("good" if good else "bad")
    return texts, labels


@pytest.fixture(scope="module")
def modality() -> TextModality:
    return TextModality(*reviews(60, 0), test=reviews(30, 1))


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"labels": "learned", "pull": 0.1}], ids=["plain", "soft labels, pulled"])
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    check_modality(TextModality(*reviews(24, 0), test=reviews(10, 1)), **options)


def test_both_learners_and_kernels_learn_the_task(modality: TextModality) -> None:
    for name in (*modality.learners, *modality.kernels):
        predictor = modality.fit(modality.real(), name, rng=generator(0))
        assert modality.score(predictor, "test")["accuracy"] > 0.9, name


# --- texts in ---------------------------------------------------------------------------------------------------------


def test_every_form_of_labelled_texts_is_the_same_dataset() -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    texts, labels = reviews(20, 0)
    forms = [
        (texts, labels),
        (np.array(texts), np.array(labels)),
        ((texts, labels), None),
        ({"text": texts, "label": labels}, None),
        (pandas.DataFrame({"text": texts, "label": labels}), None),
        (TextDataset(texts, list(labels)), None),
    ]
    assert len({TextModality(*form).fingerprint() for form in forms}) == 1
    numbers = TextModality(texts, torch.tensor([0, 1] * 10))
    assert numbers.classes == [0, 1]
    assert numbers.fingerprint() != TextModality(texts, labels).fingerprint()


def test_the_validation_split_is_stratified_and_seeded() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    kept, given = split_off(labels, 0.1, generator(0))
    assert sorted([*kept.tolist(), *given.tolist()]) == list(range(63))
    assert torch.bincount(labels[given], minlength=4).tolist() == [5, 1, 1, 0]
    assert torch.equal(given, split_off(labels, 0.1, generator(0))[1])
    assert not torch.equal(given, split_off(labels, 0.1, generator(1))[1])


def test_sentences_are_cut_padded_and_looked_up() -> None:
    table = {"good": [1.0, 0.0], "bad": [0.0, 1.0], "film": [-1.0, -1.0]}
    texts = ["good film", "bad film bad bad bad", "strange words", "good", "bad"]
    held = (["good", "bad"], [0, 1])
    modality = TextModality(texts, [0, 1, 0, 0, 1], embeddings=table, validation=held, max_length=3)
    batch = modality.real()
    assert batch.inputs.mask.sum(1).tolist() == [2, 1, 1, 3, 1]  # by class, in the order given
    assert batch.inputs.vectors.shape == (5, 3, 2)
    tokens = batch.inputs.vectors[batch.inputs.mask]
    torch.testing.assert_close(tokens.mean(0), torch.zeros(2))
    torch.testing.assert_close(tokens.square().mean(), torch.tensor(1.0))


def test_the_usual_length_is_a_quantile_with_a_cap() -> None:
    texts = ["one two three"] * 19 + ["long " * 300]
    assert (
        TextModality(texts, [0, 1] * 10, validation=(["one"], [0])).max_length == 3 + 15
    )  # 3 + 0.05 * 297, rounded up
    assert TextModality(["long " * 300] * 4, [0, 1] * 2).max_length == 64


TEXTS, LABELS = reviews(20, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([], []), {}, "texts is empty"),
        ((TEXTS, LABELS[:-1]), {}, "one label a text, got 20 texts and 19 labels"),
        ((TEXTS,), {}, "came without labels"),
        (("a single string", LABELS), {}, "must be a list"),
        ((["", *TEXTS[1:]], LABELS), {}, "empty texts; entry 0"),
        (([*TEXTS[:3], " \n", *TEXTS[4:]], LABELS), {}, "empty texts; entry 3"),
        (([*TEXTS[:3], None, *TEXTS[4:]], LABELS), {}, "strings; entry 3 is of type NoneType"),
        ((TEXTS, ["good"] * 20), {}, "at least two classes"),
        ((TEXTS, [0.5] * 20), {}, "integer or a string; entry 0 is 0.5"),
        ((TEXTS, [True] * 20), {}, "integer or a string; entry 0 is True"),
        ((TEXTS, [*LABELS[:-1], 3]), {}, "all be integers or all be strings"),
        ((TEXTS, LABELS), {"test": (["a film"], ["so-so"])}, "test holds the label 'so-so'"),
        ((TEXTS, LABELS), {"validation": (["a film"], ["so-so"])}, "validation holds the label 'so-so'"),
        ((TEXTS, LABELS), {"validation": 1.0}, r"share in \(0, 1\)"),
        ((TEXTS[:2], LABELS[:2]), {}, "No class has two texts"),
        ((TEXTS, LABELS), {"max_length": 0}, "max_length"),
        ((TEXTS, LABELS), {"embeddings": "absent.json"}, "there is no file"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TextModality(*arguments, **options)


def test_labels_are_not_given_twice() -> None:
    with pytest.raises(InputError, match="already brings labels"):
        labelled_texts((TEXTS, LABELS), LABELS)


def test_a_test_score_needs_test_texts() -> None:
    modality = TextModality(TEXTS, LABELS)
    with pytest.raises(InputError, match="no test texts"):
        modality.score(modality.fit(modality.real(), "ntk", rng=generator(0)), "test")


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_kernels_see_scaled_means_of_the_tokens(modality: TextModality) -> None:
    batch = modality.real()
    means = np.stack(
        [row[mask].mean(0) for row, mask in zip(batch.inputs.vectors.double().numpy(), batch.inputs.mask.numpy())]
    )
    means /= np.sqrt(np.square(means).mean())
    expected = InfiniteReLU(1, "ntk")(torch.tensor(means), torch.tensor(means))
    found = modality.kernel("ntk")(batch.inputs, batch.inputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


# --- summaries --------------------------------------------------------------------------------------------------------


def test_real_and_central_summaries_begin_as_training_sentences(modality: TextModality) -> None:
    """Unchanged, they decode to their own words, so the decoded dataset equals the summary."""
    words = {tuple(sorted(text.split())) for text in modality.subset(modality.group_sizes, rng=generator(0)).texts}
    for init in ("real", "central"):
        summary = modality.summary([3, 2], rng=generator(1), init=init)
        exported = summary.export()
        assert exported.labels == ["bad"] * 3 + ["good"] * 2
        assert all(tuple(sorted(text.split())) in words for text in exported.texts)
        batch, again = summary(), modality.read(exported)
        assert torch.equal(batch.inputs.mask, again.inputs.mask)
        assert torch.equal(batch.inputs.vectors[batch.inputs.mask], again.inputs.vectors[again.inputs.mask])


def test_central_sentences_lie_in_the_clusters() -> None:
    """Two words, two clusters a class: a summary of two sentences a class holds one of each."""
    texts = [word for word in ("red", "blue", "tall", "short") for _ in range(6)]
    table = dict(zip(("red", "blue", "tall", "short"), torch.eye(4).tolist()))
    modality = TextModality(texts, ["colour"] * 12 + ["size"] * 12, embeddings=table)
    for seed in range(5):
        made = modality.summary([2, 2], rng=generator(seed), init="central").export()
        assert sorted(made.texts) == ["blue", "red", "short", "tall"]


def test_filled_sentences_have_full_length(modality: TextModality) -> None:
    for init in ("real", "noise"):
        summary = modality.summary([2, 2], rng=generator(0), init=init, fill=True)
        assert summary.mask.all()
        assert summary.vectors.shape == (4, modality.max_length, modality.embeddings.width)
    exported = modality.summary([2, 2], rng=generator(0), fill=True).export()
    assert not set(exported.texts[0].split()) & set(GOOD)


def test_noise_has_the_moments_of_the_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(4000, 3, generator=rng) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0]]) + 5
    drawn = noise_like(tokens, (200, 100), rng).flatten(0, 1)
    np.testing.assert_allclose(drawn.mean(0), tokens.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(tokens.T), atol=0.1)


def test_nearest_tokens_lose_nothing_in_decoding(modality: TextModality) -> None:
    summary = modality.summary([4, 4], rng=generator(0), init="noise", tokens="nearest")
    batch, again = summary().detach(), modality.read(summary.export())
    assert torch.equal(batch.inputs.mask, again.inputs.mask)
    torch.testing.assert_close(
        batch.inputs.vectors[batch.inputs.mask], again.inputs.vectors[again.inputs.mask], rtol=1e-6, atol=1e-6
    )
    # the gradient is that of the rows it shows, passed straight through
    weight = torch.randn(batch.inputs.vectors.shape, generator=generator(1))
    (slope,) = torch.autograd.grad((summary().inputs.vectors * weight).sum(), summary.vectors)
    torch.testing.assert_close(slope, weight)


def test_pull_goes_a_fraction_of_the_way_to_the_nearest_word(modality: TextModality) -> None:
    summary = modality.summary([1, 1], rng=generator(0), init="noise", pull=0.25)
    before = summary.vectors.detach().clone()
    table = modality.embeddings
    _, rows = nearest_rows(before.flatten(0, 1), table.vectors, table.decodable)
    target = table.vectors[rows.squeeze(1)].view_as(before)
    summary.project_()
    torch.testing.assert_close(summary.vectors.detach(), 0.75 * before + 0.25 * target)


def test_learned_labels_are_distributions_that_survive_export(modality: TextModality) -> None:
    summary = modality.summary([2, 1], rng=generator(0), labels="learned")
    np.testing.assert_allclose(summary().targets.detach(), [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]], rtol=1e-5)
    assert set(summary.parameter_groups()) == {"points", "labels"}
    exported = summary.export()
    assert exported.classes == ["bad", "good"]
    torch.testing.assert_close(modality.read(exported).targets, summary().targets.detach())
    turned = TextDataset(exported.texts, exported.labels, exported.soft_labels.flip(1), ["good", "bad"])  # type: ignore[union-attr]
    torch.testing.assert_close(modality.read(turned).targets, summary().targets.detach())
    tensors, meta = modality.pack(exported)
    again = modality.unpack(tensors, json.loads(json.dumps(meta)))
    assert again == exported
    assert again != turned
    assert exported.to_dict()["soft_label"][0] == pytest.approx([0.9, 0.1])


def test_special_and_unknown_tokens_are_never_decoded() -> None:
    table = {"[PAD]": [1.0, 0.0], "<unk>": [0.0, 1.0], "good": [1.0, 1.0], "bad": [-1.0, -1.0]}
    texts = ["good", "bad"] * 5
    modality = TextModality(texts, ["g", "b"] * 5, embeddings=table)
    summary = modality.summary([4, 4], rng=generator(0), init="noise", fill=True)
    assert {word for text in summary.export().texts for word in text.split()} <= {"good", "bad"}


def test_sizes_count_bytes(modality: TextModality) -> None:
    assert modality.size(TextDataset(["né", "a b"], ["x", "yz"])).nbytes == 3 + 1 + 3 + 2
    soft = TextDataset(["né"], ["bad"], torch.tensor([[0.5, 0.5]]), ["bad", "good"])
    assert modality.size(soft).nbytes == 3 + 3 + 2 * 4
    summary = modality.summary([2, 2], rng=generator(0))
    assert summary.nbytes == summary.vectors.numel() * 4 + summary.mask.numel() + 4 * 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "centrall"}, "'central'"),
        ({"tokens": "near"}, "'nearest'"),
        ({"labels": "soft"}, "hard, learned"),
        ({"pull": 1.5}, "pull"),
        ({"pul": 0.1}, "'pull'"),
    ],
)
def test_bad_options_are_refused(modality: TextModality, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        modality.summary([1, 1], rng=generator(0), **options)


def test_more_points_than_texts_are_refused_unless_they_are_noise(modality: TextModality) -> None:
    counts = [size + 1 for size in modality.group_sizes]
    for init in ("real", "central"):
        with pytest.raises(InputError, match="training texts"):
            modality.summary(counts, rng=generator(0), init=init)
    assert modality.summary(counts, rng=generator(0), init="noise").num_points == sum(counts)


def test_the_target_moves_to_another_precision(modality: TextModality) -> None:
    twin = TextModality(*reviews(20, 0), test=reviews(10, 1)).to(dtype=torch.float64)
    batch = twin.real(1, rng=generator(0))
    assert isinstance(batch.inputs, Tokens)
    assert batch.inputs.vectors.dtype == torch.float64
    assert twin.learner("pool", rng=generator(0))(batch.inputs).dtype == torch.float64
    assert next(iter(twin.held_out("test"))).inputs.vectors.dtype == torch.float64


def test_a_wrong_text_dataset_is_refused() -> None:
    with pytest.raises(InputError, match="one label a text"):
        TextDataset(["a"], [])
    other = TextDataset(["a"], ["good"], torch.ones(1, 2), ["good", "fair"])
    with pytest.raises(InputError, match="soft labels"):
        TextModality(TEXTS, LABELS).read(other)
    with pytest.raises(InputError, match="soft_labels"):
        TextDataset(["a"], ["x"], torch.ones(1, 3), ["x", "y"])
