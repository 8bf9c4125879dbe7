"""Stored summaries: the bytes that are reported are the bytes on disk, and they decode to the export."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from datastill import distill, evaluate, load, save
from datastill.bundle import DATA
from datastill.checks import MODALITY_CHECKS
from datastill.errors import ArtifactError, InputError
from datastill.modalities.codec import NAMES, Codec
from datastill.modalities.image import ImageModality
from datastill.modalities.image_storages import STORAGES, blank_storage, make_storage
from datastill.modalities.image_stored import StoredImages, decode_images, read_stored
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.rng import generator

FORMS: list[dict[str, Any]] = [
    {"storage": "pixels", "codec": "float32"},
    {"storage": "pixels", "codec": "int2-entropy"},
    {"storage": "pixels", "codec": "int8", "labels": "learned"},
    {"storage": "formation", "factor": 2, "codec": "int4"},
    {"storage": "bases", "bases": 3, "downscale": 2},
    {"storage": "low-resolution", "downscale": 3, "codec": "int4"},
    {"storage": "frequencies", "keep": 0.4, "codec": "float16-entropy", "labels": "learned"},
    {"storage": "hallucinators", "styles": 4, "fit": 2, "codec": "int8-entropy"},
    {"storage": "codes", "decoders": 2, "channels": 2, "width": 3, "fit": 2},
]


def name_of(form: dict[str, Any]) -> str:
    return "-".join(map(str, form.values()))


def images(*, colour: bool = False, eight_bit: bool = False, side: tuple[int, int] = (8, 10)) -> ImageModality:
    labels = torch.arange(3).repeat_interleave(14)
    pixels = torch.rand(42, 3 if colour else 1, *side, generator=generator("pixels"))
    pixels[torch.arange(42), 0, labels * 2] = 1.0
    pixels = (pixels * 255).to(torch.uint8) if eight_bit else pixels
    return ImageModality(pixels, labels, validation=(pixels[::3], labels[::3]), test=(pixels[::3], labels[::3]))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
@pytest.mark.parametrize("colour", [False, True])
def test_bytes_are_those_on_disk(form: dict[str, Any], colour: bool, tmp_path: Path) -> None:
    modality = images(colour=colour, eight_bit=colour)
    summary = modality.summary([4, 8, 4], rng=generator(0), **form)
    with torch.no_grad():
        for parameter in summary.parameter_groups()["points"]:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator("shift")))
    summary.project_()
    exported = summary.export()
    assert isinstance(exported, StoredImages)
    size = exported.write(tmp_path / "some" / "summary.still")
    assert (
        size == os.path.getsize(tmp_path / "some" / "summary.still") == summary.nbytes == modality.size(exported).nbytes
    )
    again = read_stored(tmp_path / "some" / "summary.still")
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, exported.tensors))
    # What a learner reads from the export is what the objective saw, up to the clamping of decoded pixels.
    ours, theirs = summary().detach(), modality.read(exported)
    low, high = modality.scale.bounds(ours.inputs)
    step = (high - low) / 255 if colour else 0 * low
    clamped = torch.minimum(torch.maximum(ours.inputs, low), high)
    assert bool(((clamped - theirs.inputs).abs() <= 0.51 * step + 1e-5).all())
    assert torch.allclose(modality.encode(ours.targets), modality.encode(theirs.targets))
    assert torch.equal(ours.groups, theirs.groups)


def test_bytes_of_the_simplest_form_by_hand() -> None:
    summary = images().summary([2, 2, 2], rng=generator(0), codec="int2")
    pixels = 6 * (80 * 2 // 8 + 4)
    assert (
        pixels < summary.nbytes < pixels + 200
    )  # the header: shape, counts, options, checksum; and the scale of pixels
    full = images().summary([2, 2, 2], rng=generator(0), codec="float32")
    assert full.nbytes - summary.nbytes == pytest.approx(6 * 80 * 4 - pixels, abs=4)


def test_an_artifact_stores_the_coded_bytes(tmp_path: Path) -> None:
    modality = images()
    summary = modality.summary([4, 4, 4], rng=generator(0), storage="formation", codec="int4-entropy", labels="learned")
    result = distill(modality, summary, DistributionMatching(real_size=4), steps=3, lr=0.1, progress=False)
    stored = save(result, tmp_path / "artifact")
    assert stored.nbytes == result.summary.nbytes
    on_disk = os.path.getsize(tmp_path / "artifact" / DATA)
    assert stored.nbytes < on_disk < stored.nbytes + 120  # safetensors' own header
    loaded = load(tmp_path / "artifact")
    assert loaded.dataset.coded == result.export().coded
    assert all(torch.equal(a, b) for a, b in zip(loaded.dataset.tensors, result.export().tensors))
    rows = evaluate(result, learners=["mlp"], seeds=1, progress=False).rows
    assert {row.data: row.nbytes for row in rows if row.data in ("summary", "exported")} == {
        "summary": stored.nbytes,
        "exported": stored.nbytes,
    }
    assert all(row.points == 12 for row in rows if row.data != "full data")


def test_rounding_is_optimised_through() -> None:
    """Matching means in two bits: with rounding in the loop the loss of what is stored falls, and falls below rounding after."""
    modality = images()
    objective = DistributionMatching(refresh=1000, real_size=None, augment=False, learner="convnet-d1-w8")

    def run(codec: str | None) -> list[float]:
        summary = modality.summary([4, 4, 4], rng=generator(0), codec=codec)
        result = distill(modality, summary, objective, steps=40, lr=0.05, validate_every=0, progress=False)
        losses = [record["loss"] for record in result.history if "loss" in record]
        if codec is None:  # rounded afterwards, under the same network
            rounded = modality.summary([4, 4, 4], rng=generator(0), codec="int2")
            rounded.load_state_dict(result.summary.state_dict())
            after = distill(modality, rounded, objective, steps=1, lr=0.0, validate_every=0, progress=False)
            losses.append(after.history[0]["loss"])
        return losses

    inside, outside = run("int2"), run(None)
    assert inside[-1] < 0.7 * inside[0]
    assert min(inside[-5:]) < outside[-1]


@pytest.mark.parametrize("codec", ["float16", "int8-entropy"])
@pytest.mark.parametrize(
    "check",
    [check for check in MODALITY_CHECKS if check.__name__ != "check_gradients"],
    ids=lambda check: check.__name__,
)
def test_conformance(check: Any, codec: str) -> None:  # its gradient is that of the numbers before rounding, on purpose
    check(images(), codec=codec)


def test_damage_is_found() -> None:
    coded = images().summary([4, 4, 4], rng=generator(0), codec="int4").encoded()
    for wrong in (b"", coded[:-1], coded[:40], b"X" + coded[1:], coded + b"0"):
        with pytest.raises(ArtifactError, match="not images as datastill stores them"):
            decode_images(wrong)
    for place in range(0, len(coded), 7):
        forged = coded[:place] + bytes([coded[place] ^ 64]) + coded[place + 1 :]
        with pytest.raises(ArtifactError):
            decode_images(forged)


def test_refusals() -> None:
    modality = images()
    with pytest.raises(InputError, match="Unknown codec 'int5'"):
        modality.summary([1] * 3, rng=generator(0), codec="int5")
    with pytest.raises(InputError, match="must be a multiple of 4, got 3 for class 1: ask for 4"):
        modality.summary([4, 3, 4], rng=generator(0), storage="formation")
    assert len(NAMES) == 10


@pytest.mark.parametrize("form", [*FORMS, {"storage": "bases", "bases": 12, "codec": "int8"}], ids=name_of)
def test_stored_numbers_decode_without_looking_for_first_values(
    form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    modality = images(colour=True)
    summary = modality.summary([4, 8, 4], rng=generator(0), **form)
    with torch.no_grad():
        for number, parameter in enumerate(summary.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator("shift", number)))
    summary.project_()
    # The same storage that was optimised, with its own numbers after the codec's rounding: no other one is made for this.
    codec = Codec(form.get("codec", "float32"))
    kept = copy.deepcopy(summary.storage)
    with torch.no_grad():
        for value in kept.parameters():
            value.copy_(codec.decode(codec.encode(value), value.shape))
        expected = modality.scale.restore(kept()).clamp(modality.scale.low, modality.scale.high)
    coded = summary.encoded()

    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("first values were looked for")

    for place, name in ((torch.linalg, "svd"), (torch.optim, "Adam"), (torch, "randn"), (F, "mse_loss")):
        monkeypatch.setattr(place, name, never)
    assert torch.equal(decode_images(coded).tensors[0], expected)
    assert modality.stored_bytes([4, 8, 4], **form) >= len(coded)


@pytest.mark.parametrize("name", STORAGES)
def test_a_blank_storage_has_the_shapes_of_one_with_images(name: str) -> None:
    given = torch.rand(12, 3, 9, 13, generator=generator("blank"))
    options: dict[str, float] = {"bases": 5, "downscale": 2} if name == "bases" else {}
    options |= {"factor": 2} if name == "formation" else {"styles": 3} if name == "hallucinators" else {}
    begun, blank = make_storage(name, given, options), blank_storage(name, given.shape, options)
    shapes = [
        [(key, value.shape, value.stride(), value.dtype) for key, value in one.named_parameters()]
        for one in (begun, blank)
    ]
    assert shapes[0] == shapes[1]
    assert begun.options == blank.options
    assert not any(bool(value.any()) for value in blank.parameters())
    blank.load_state_dict(begun.state_dict())
    assert torch.equal(begun(), blank())


@pytest.mark.parametrize("labels", ["hard", "learned", "signed"])
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_bytes_are_known_from_shapes(form: dict[str, Any], labels: str) -> None:
    """Of plain codecs exactly; entropy coding takes no more."""
    modality = images()
    form = {**form, "labels": labels}
    takes = modality.summary([8, 4, 8], rng=generator(0), init="noise", **form).nbytes
    bound = modality.stored_bytes([8, 4, 8], **form)
    assert takes <= bound
    if not form.get("codec", "").endswith("-entropy"):
        assert bound == takes
    for wrong, said in (({"factors": 2}, "Unknown option"), ({"labels": "soft"}, "Unknown kind of labels")):
        with pytest.raises(InputError, match=said):
            modality.stored_bytes([8, 4, 8], **{**form, **wrong})
