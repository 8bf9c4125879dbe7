"""What fits into memory, chunks that give the same numbers, and estimates of what a run takes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datastill import condense_images, distill, memory, recipes
from datastill.backbones.chunks import activations, parts_of
from datastill.backbones.convnet import ConvNet
from datastill.checks import ToyModality
from datastill.condense.estimate import Estimate, estimate_memory
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.base import Objective, training_bytes
from datastill.objectives.coresets import features
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.objectives.gradient_matching import GradientMatching
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.objectives.layer_matching import LayerMatching
from datastill.objectives.meta_model import UnrolledTraining
from datastill.objectives.statistics_matching import StatisticsMatching, real_moments
from datastill.rng import generator


def images(each: int = 100) -> ImageModality:
    pixels = torch.rand(2 * each, 1, 16, 16, generator=generator("memory"))
    return ImageModality(
        pixels, torch.arange(2).repeat_interleave(each), test=(pixels[::3], torch.arange(2 * each)[::3] // each)
    )


@pytest.mark.parametrize(
    ("given", "count"),
    [("4GiB", 2**32), ("800 MB", 8 * 10**8), ("1e9", 10**9), ("17", 17), ("1.5kib", 1536), ("2B", 2), (4096, 4096)],
)
def test_bytes_in_words(given: int | str, count: int) -> None:
    assert memory.parse_bytes(given, "memory") == count


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "4 GiBs", "1.2.3", "GB"])
def test_what_is_no_number_of_bytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASTILL_MEMORY", text)
    with pytest.raises(InputError, match="DATASTILL_MEMORY must be bytes such as 4GiB"):
        memory.available()


def test_the_variable_stands_for_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATASTILL_MEMORY", raising=False)
    assert 2**20 < memory.available() < 2**50
    monkeypatch.setenv("DATASTILL_MEMORY", "4000")
    assert memory.available() == 4000
    # A quarter of it, at least one and at most as many as wanted.
    assert [memory.chunk(each, most=50) for each in (10, 100, 333, 5000, 0)] == [50, 10, 3, 1, 50]
    assert [memory.readable(count) for count in (17, 1536, 3 * 2**20, 5 * 2**30)] == [
        "17 bytes",
        "1.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]


def test_activations_are_those_of_every_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    total, largest = activations(net, torch.zeros(7, 3))
    assert total == 4 * 7 * (3 + 5 + 5 + 2)
    assert largest == 4 * 7 * 5


def test_parts_are_all_points_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = ToyModality()
    batch, net = modality.real(), modality.learner("mlp", rng=generator("net"))
    monkeypatch.setenv(
        "DATASTILL_MEMORY", "4000"
    )  # 1000 bytes: the widest layer has 16 numbers, twice 64 bytes a point
    parts = list(parts_of(net, batch))
    assert [len(part) for part in parts] == [7] * 8 + [4]
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    net.couples_points = True  # type: ignore[misc]
    assert [len(part) for part in parts_of(net, batch)] == [60]


def test_little_memory_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    modality = images()
    net = modality.learner("convnet", rng=generator("net"))
    machine = modality.fit(modality.real(), "ntk", rng=generator("ntk"))

    def numbers() -> list[Tensor]:
        scores = [torch.tensor(modality.score(one, "test")["accuracy"]) for one in (net, machine)]
        return [
            *scores,
            features(modality, "mlp", generator("f")),
            *(m for pair in real_moments(net, modality.full()) for m in pair),
        ]

    usual = numbers()
    sizes: list[int] = []
    chunk = memory.chunk

    def watched(*arguments: object, **options: int) -> int:
        sizes.append(chunk(*arguments, **options))  # type: ignore[arg-type]
        return sizes[-1]

    monkeypatch.setattr(memory, "chunk", watched)
    monkeypatch.setenv("DATASTILL_MEMORY", "3MB")
    for a, b in zip(usual, numbers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert min(sizes) < 20


def kept_bytes(loss_of: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of one loss, each tensor once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of()
    assert loss.requires_grad
    return sum(seen.values())


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "dm": lambda: DistributionMatching(real_size=50),
    "gm": lambda: GradientMatching(real_size=50),
    "kip": lambda: KernelRidge(depth=2, real_size=50),
    "cafe": lambda: LayerMatching(real_size=50, query_size=10),
    "sre2l": lambda: StatisticsMatching(teacher_steps=2),
    "dd": lambda: UnrolledTraining(inner_steps=3, real_size=20),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_estimated_as_large_as_what_autograd_keeps_of_it(name: str) -> None:
    modality = images()
    summary = modality.summary([40, 40], rng=generator("summary"))
    objective = OBJECTIVES[name]()
    estimate = objective.footprint(modality, summary)
    objective.start(modality, summary)
    kept = kept_bytes(lambda: objective.loss(generator("loss")))
    assert 0.8 * kept < estimate < 12 * kept + 2**22


def test_an_estimate_grows_with_the_summary_and_changes_nothing() -> None:
    modality = images()
    totals = []
    for count in (5, 50):
        summary = modality.summary([count, count], rng=generator("summary"))
        before = [value.clone() for value in summary.state_dict().values()]
        found = estimate_memory(modality, summary, DistributionMatching(real_size=10))
        assert all(torch.equal(a, b) for a, b in zip(before, summary.state_dict().values()))
        assert found.data == modality.full_size().nbytes
        totals.append(found.total)
    assert totals[1] > 3 * totals[0] - found.data * 3


def test_a_run_says_what_it_takes_before_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(recipes["kip"].on("image"), validate_every=0)
    pixels, labels = torch.rand(40, 1, 8, 8, generator=generator("run")), torch.arange(2).repeat_interleave(20)
    monkeypatch.delenv("DATASTILL_MEMORY", raising=False)
    result = condense_images.job(pixels, labels, per_class=2, recipe=recipe, steps=1, progress=True).run()
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("memory: about ")
    assert " on cpu" in first
    assert result.learned["memory"] > 36 * 64 * 4
    monkeypatch.setenv("DATASTILL_MEMORY", "10KB")
    with pytest.warns(
        UserWarning, match=r"This run takes about .* of memory, and there are 9.8 KiB on cpu: lower the budget"
    ):
        condense_images(pixels, labels, per_class=2, recipe=recipe, steps=1, progress=False)
    assert capsys.readouterr().err == ""


def test_data_that_stay_in_the_computers_memory_are_not_counted_against_a_gpus() -> None:
    place, shares = torch.device("cuda"), {"data": 1000, "summary": 10, "step": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Estimate(**shares, available=30, device=place, elsewhere=1000).warn()
    with pytest.warns(UserWarning, match=r"about 30 bytes of memory, and there are 29 bytes on cuda"):
        Estimate(**shares, available=29, device=place, elsewhere=1000).warn()
    with pytest.warns(UserWarning, match=r"This run takes about 1\.0 KiB"):
        Estimate(**shares, available=1000, device=place).warn()


def test_an_objective_of_ones_own_has_an_estimate_too() -> None:
    class Own(Objective):
        name = "own"

        def loss(self, rng: torch.Generator) -> Tensor:
            return self.summary(rng).inputs.square().sum()

    modality = ToyModality()
    summary = modality.summary([2, 2, 2], rng=generator("summary"))
    assert estimate_memory(modality, summary, Own()).step > 0
    assert distill(modality, summary, Own(), steps=1, validate_every=0, progress=False).best_step == 1
    assert isinstance(ConvNet((1, 8, 8), 2).points_at_a_time(), int)


@pytest.mark.parametrize("name", ["rded", "soft-random", "herding", "random"])
def test_recipes_without_an_objective_say_what_they_take_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pixels, labels = torch.rand(40, 1, 8, 8, generator=generator("run")), torch.arange(2).repeat_interleave(20)
    result = condense_images.job(pixels, labels, per_class=2, recipe=name, progress=True).run()
    assert capsys.readouterr().err.startswith("memory: about ")
    assert result.learned["memory"] > 36 * 64 * 4


def test_a_run_that_begins_with_a_training_says_first_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    fit = ImageModality.fit

    def fitted(self: ImageModality, *args: Any, **options: Any) -> Any:
        said.append("fit")
        return fit(self, *args, **options)

    monkeypatch.setattr(ImageModality, "fit", fitted)
    monkeypatch.setattr(Estimate, "warn", lambda self: said.append(f"{self.step}"))
    recipe = dataclasses.replace(recipes["kip"].on("image"), validate_every=0)
    pixels, labels = torch.rand(40, 1, 8, 8, generator=generator("run")), torch.arange(2).repeat_interleave(20)
    for init in ("real", "correct"):
        begun = dataclasses.replace(recipe, summary={**recipe.summary, "init": init})
        condense_images(pixels, labels, per_class=2, recipe=begun, steps=1, progress=False)
    of_kernel, of_training, trained = said
    assert trained == "fit"
    # A batch of 36 images through the network that chooses takes more than a step of the kernel on 4.
    assert int(of_training) > int(of_kernel) > 0


def test_what_a_training_takes_is_as_large_as_what_autograd_keeps_of_a_batch() -> None:
    modality = images()
    name = modality.learners[0]
    net = modality.learner(name, rng=generator("net"))
    points = min(modality.protocol(name).batch_size or sum(modality.full_sizes), sum(modality.full_sizes))
    batch = modality.full().take(torch.arange(points))
    kept = kept_bytes(lambda: modality.loss(net(batch.inputs), batch.targets))
    assert 0.8 * kept < training_bytes(modality, name) < 12 * kept + 2**22
    assert training_bytes(modality, "ntk") == 0
