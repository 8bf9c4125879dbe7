"""Images of every size, number of classes and budget: they are distilled, or refused in one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datastill import condense_images, recipes
from datastill.errors import InputError
from datastill.modalities.image_stored import StoredImages
from datastill.objectives import coresets
from datastill.recipe import Recipe
from datastill.rng import generator

QUICK = dataclasses.replace(
    recipes["dm"].on("image"), settings={"learner": "convnet-w4", "real_size": 4}, steps=2, validate_every=0
)


def images(shape: tuple[int, int, int], classes: int, each: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(classes).repeat_interleave(each)
    return torch.rand(len(labels), *shape, generator=generator("images")), labels


@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        ((1, 28, 28), 10),
        ((3, 32, 32), 2),
        ((3, 64, 64), 2),
        ((1, 20, 33), 3),
        ((3, 9, 40), 3),
        ((1, 4, 4), 200),
        ((2, 1, 6), 2),
    ],
    ids=str,
)
def test_sizes_channels_and_classes(shape: tuple[int, int, int], classes: int) -> None:
    made = condense_images(images(shape, classes), per_class=1, recipe=QUICK, progress=False)
    pixels, labels = made.tensors
    assert pixels.shape == (classes, *shape)
    assert labels.tolist() == list(range(classes))
    assert bool(pixels.isfinite().all())


@pytest.mark.parametrize("per_class", [1, 3, 7])
@pytest.mark.parametrize("storage", ["pixels", "frequencies"])
def test_any_number_of_images_a_class(per_class: int, storage: str) -> None:
    made = condense_images(
        images((1, 8, 8), 3), per_class=per_class, recipe=QUICK, storage=storage, codec="int4", progress=False
    )
    assert isinstance(made, StoredImages)
    assert torch.bincount(made.tensors[1]).tolist() == [per_class] * 3


def test_classes_of_unequal_size() -> None:
    labels = torch.tensor([0] * 40 + [1] * 3 + [2] * 12)
    pixels = torch.rand(55, 1, 8, 8, generator=generator("images"))
    made = condense_images((pixels, labels), per_class=2, recipe=QUICK, progress=False)
    assert torch.bincount(made.tensors[1]).tolist() == [2, 2, 2]
    with pytest.raises(
        InputError, match=r"Class '1' has 2 training images, fewer than the 3 asked for: lower the budget"
    ):
        condense_images((pixels, labels), per_class=3, recipe=QUICK, progress=False)
    noise = dataclasses.replace(QUICK, summary={"init": "noise"})
    made = condense_images((pixels, labels), per_class=5, recipe=noise, progress=False)
    assert torch.bincount(made.tensors[1]).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("summary", "per_class", "said"),
    [
        ({"storage": "formation"}, 3, "must be a multiple of 4, got 3 for class 0: ask for 4"),
        ({"storage": "hallucinators"}, 2, "must be a multiple of 5, got 2 for class 0: ask for 5"),
        ({"storage": "codes", "decoders": 3}, 4, "must be a multiple of 3, got 4 for class 0: ask for 3"),
        ({"storage": "bases", "bases": 16}, 1, "bases must be at most 3 for 3 images of this size, got 16"),
        ({"storage": "frequencies", "keep": 2.0}, 1, r"keep must be a number in \(0, 1\], got 2.0"),
        ({"storage": "mosaics"}, 1, "Unknown storage 'mosaics'"),
        ({"codec": "int3"}, 1, "Unknown codec 'int3'"),
    ],
    ids=str,
)
def test_budgets_that_a_factorisation_cannot_meet(summary: dict[str, Any], per_class: int, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        condense_images(
            images((1, 8, 8), 3),
            per_class=per_class,
            recipe=dataclasses.replace(QUICK, summary=summary),
            progress=False,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("learner", "said"),
    [("lenet", "at least 12x12 pixels, got 8x8"), ("resnet18", "ask for resnet18-gn"), ("vgg11", "ask for vgg11-gn")],
)
def test_networks_that_the_images_are_too_small_for(learner: str, said: str) -> None:
    recipe = dataclasses.replace(QUICK, settings={**QUICK.settings, "learner": learner})
    with pytest.raises(InputError, match=said):
        condense_images(images((1, 8, 8), 3), per_class=1, recipe=recipe, progress=False)


@pytest.mark.parametrize("per_class", [0, -1, 1.5, True, "2"])
def test_numbers_that_are_none(per_class: Any) -> None:
    with pytest.raises(InputError, match="per_class must be an integer of at least 1"):
        condense_images(images((1, 8, 8), 3), per_class=per_class, recipe=QUICK, progress=False)


@pytest.mark.parametrize(("name", "per_class"), [("linba", 6), ("haba", 5), ("kfs", 2)])
def test_factorised_recipes_run(name: str, per_class: int) -> None:
    recipe = recipes[name].on("image")
    quick = {"learner": "convnet-w4", "inner_steps": 2, "experts": 1, "real_size": 4, "max_start": 1, "span": 1}
    fields = {field.name for field in dataclasses.fields(recipe.make_objective())}  # type: ignore[arg-type]
    settings = {**recipe.settings, **{key: value for key, value in quick.items() if key in fields}}
    recipe = dataclasses.replace(recipe, settings=settings, steps=2, validate_every=0)
    made = condense_images(images((1, 8, 8), 3), per_class=per_class, recipe=recipe, progress=False)
    assert isinstance(made, StoredImages)
    assert len(made) == 3 * per_class
    with pytest.raises(InputError, match=r"must be a multiple of|bases must be at most"):
        condense_images(images((1, 8, 8), 3), per_class=1, recipe=recipe, progress=False)


@pytest.mark.parametrize("per_class", [1, 3, 7])
@pytest.mark.parametrize(
    "name", ["dm", "dc", "dsa", "kip", "cafe", "m3d", "sre2l", "sre2l-kmeans", "rded", "soft-random"]
)
def test_no_recipe_is_for_some_numbers_of_images_alone(name: str, per_class: int) -> None:
    recipe = quick(name)
    made = condense_images(images((1, 8, 8), 2, each=9), per_class=per_class, recipe=recipe, progress=False)
    assert len(made) == len(made.tensors[1]) == 2 * per_class
    assert bool(made.tensors[0].isfinite().all())


@pytest.mark.parametrize("name", ["sre2l", "rded", "soft-random"])
@pytest.mark.parametrize(
    ("shape", "classes", "each"),
    [((3, 32, 32), 2, 8), ((1, 28, 28), 3, 8), ((3, 9, 14), 3, 8), ((1, 4, 4), 200, 3), ((1, 64, 64), 2, 8)],
    ids=str,
)
def test_decoupled_methods_on_every_shape(name: str, shape: tuple[int, int, int], classes: int, each: int) -> None:
    made = condense_images(images(shape, classes, each), per_class=1, recipe=quick(name), progress=False)
    pixels, labels = made.tensors
    assert pixels.shape == (classes, *shape)
    assert labels.shape == (classes, classes)
    torch.testing.assert_close(labels.sum(1), torch.ones(classes))
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_decoupled_methods_on_classes_of_unequal_size() -> None:
    labels = torch.tensor([0] * 40 + [1] * 3 + [2] * 12)
    pixels = torch.rand(55, 1, 8, 8, generator=generator("images"))
    for name in ("sre2l", "rded"):
        assert len(condense_images((pixels, labels), per_class=2, recipe=quick(name), progress=False)) == 6
    with pytest.raises(InputError, match=r"fewer than the 3 asked for: lower the budget"):
        condense_images((pixels, labels), per_class=3, recipe=quick("rded"), progress=False)
    made = condense_images((pixels, labels), per_class=5, recipe=quick("sre2l"), progress=False)  # it begins from noise
    assert len(made) == 15


def quick(name: str) -> Recipe:
    """A recipe of a few steps with small networks, and teachers that hardly train."""
    recipe = recipes[name].on("image")
    if recipe.objective is None:
        return dataclasses.replace(recipe, summary={**recipe.summary, "space": "mlp-d1-w8"})
    known = {field.name for field in dataclasses.fields(recipe.make_objective())}  # type: ignore[arg-type]
    small = {"real_size": 4, "outer_loops": 2, "inner_epochs": 1, "teacher_steps": 2, "query_size": 4, "max_epochs": 1}
    settings = {**recipe.settings, **{key: value for key, value in small.items() if key in known}}
    if "learner" in known and recipe.objective != "kernel-ridge":
        settings["learner"] = "convnet-w4-bn" if name == "sre2l" else "convnet-w4"
    return dataclasses.replace(recipe, settings=settings, steps=2, validate_every=0)


def test_options_of_a_storage() -> None:
    data = images((1, 8, 8), 3, each=40)
    made = condense_images(
        data, per_class=9, recipe=QUICK, storage="formation", storage_options={"factor": 3}, progress=False
    )
    assert isinstance(made, StoredImages)
    assert len(made) == 27
    # The recipe's own options belong to its storage: another storage begins with its defaults.
    assert len(condense_images(data, per_class=1, recipe=quick("linba"), storage="pixels", progress=False)) == 3
    two, three = (
        condense_images(data, per_class=1, recipe=quick("linba"), storage_options={"bases": bases}, progress=False)
        for bases in (2, 3)
    )
    assert isinstance(two, StoredImages)
    assert isinstance(three, StoredImages)
    # A base of 4x4 numbers and a coefficient for each of three images, in float32.
    assert len(three.coded) - len(two.coded) == pytest.approx(4 * (16 + 3), abs=6)
    # Without a number the next that comes from whole mosaics, four images of each.
    assert torch.bincount(condense_images(data, recipe=quick("idc"), progress=False).tensors[1]).tolist() == [12] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"recipe": "linba", "per_class": 1},
            r"bases must be at most 3 for 3 images .* \(storage_options={'bases': 3}\)",
        ),
        ({"storage": "formation", "storage_options": {"factr": 2}}, "Did you mean 'factor'"),
        ({"storage": "formation", "storage_options": {"bases": 2}}, "has the options factor, got 'bases'"),
        ({"storage": "preconditioned", "per_class": 10, "nbytes": 300}, "nbytes=300 is too little for 30 points"),
        ({"recipe": 3}, "recipe must be a name"),
    ],
    ids=str,
)
def test_storages_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        condense_images(images((1, 8, 8), 3, each=20), **{"progress": False, "steps": 1, **options})


@pytest.mark.parametrize("options", [{"codec": "int3"}, {"storage": "formation", "per_class": 3}], ids=str)
def test_options_are_refused_before_networks_are_trained(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastill.modalities.base.train", lambda *_, **__: pytest.fail("a network was trained"))
    with pytest.raises(InputError):
        condense_images(images((1, 8, 8), 3), **{"recipe": "datm", "per_class": 4, "progress": False, **options})


def test_a_run_folder_belongs_to_one_run(tmp_path: Path) -> None:
    data = images((1, 8, 8), 2)

    def run(**options: Any) -> torch.Tensor:
        found = condense_images(
            data, **{"per_class": 2, "recipe": QUICK, "out": tmp_path, "progress": False, **options}
        )
        return found.tensors[0]  # type: ignore[no-any-return]

    first = run()
    assert torch.equal(run(), first)
    noise = dataclasses.replace(QUICK, summary={**QUICK.summary, "init": "noise"})
    for options, said in (
        ({"codec": "int2"}, "start was .* and is now .*int2"),
        ({"augmentation": "none"}, "augmentation was"),
        ({"recipe": noise}, "start was .* and is now .*noise"),
        ({"recipe": dataclasses.replace(QUICK, name="other")}, "recipe was 'dm' and is now 'other'"),
        ({"recipe": "random"}, "holds another run, whose results those of 'random'"),
    ):
        with pytest.raises(InputError, match=said):
            run(**options)
    assert torch.equal(run(), first)


def test_numbers_may_be_numpys(tmp_path: Path) -> None:
    data, recipe = images((1, 8, 8), 2), dataclasses.replace(QUICK, steps=2)
    expected = condense_images(data, per_class=2, seed=3, steps=1, recipe=recipe, progress=False)
    numbers: dict[str, Any] = {"per_class": np.int64(2), "seed": np.uint8(3), "steps": np.int32(1)}
    found = condense_images(data, **numbers, recipe=recipe, out=tmp_path, progress=False)
    assert torch.equal(found.tensors[0], expected.tensors[0])
    with pytest.raises(InputError, match=r"per_class must be an integer of at least 1, got 1\.5"):
        condense_images(data, per_class=np.float64(1.5), recipe=recipe, progress=False)  # type: ignore[arg-type]


def test_a_budget_and_its_run_share_the_training_that_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = []
    ordinary = coresets.count_forgetting

    def counted(*given: Any, **named: Any) -> Any:
        trainings.append(given)
        return ordinary(*given, **named)

    monkeypatch.setattr(coresets, "count_forgetting", counted)
    forgetting = recipes["forgetting"].on("image")
    recipe = dataclasses.replace(forgetting, summary={**forgetting.summary, "space": "mlp"})
    found = condense_images(images((1, 8, 8), 2), nbytes=700, recipe=recipe, codec="int2-entropy", progress=False)
    assert len(found.tensors[0]) > 2
    assert len(trainings) == 1
