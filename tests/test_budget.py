"""Budgets in bytes: as many points as fit and no more, by every front door."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill import condense_graph, condense_graphs, condense_images, condense_interactions, condense_text, recipes
from datastill.budget import finest_codec, most_points
from datastill.checks import ToyModality
from datastill.condense.common import first_summary, run_recipe
from datastill.condense.images import images_within
from datastill.errors import InputError
from datastill.modalities.base import Size
from datastill.modalities.image import ImageModality
from datastill.objectives.remembered import remembering
from datastill.recipe import Recipe
from datastill.rng import generator

RECIPE = Recipe("toy", "", "", ("toy",), objective="kernel-ridge", summary={"init": "noise"})


def images(classes: int = 2, each: int = 40, *, eight_bit: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.rand(classes * each, 1, 6, 5, generator=generator("budget"))
    return (pixels * 255).to(torch.uint8) if eight_bit else pixels, torch.arange(classes).repeat_interleave(each)


class Measured(ToyModality):
    """Whose summaries take 7 bytes a point and 30 besides."""

    asked = 0

    def stored_bytes(self, counts: Sequence[int], **options: Any) -> int:
        assert not options
        self.asked += 1
        return 30 + 7 * sum(counts)

    def shapes_decide_bytes(self, **options: Any) -> bool:
        return True


@pytest.mark.parametrize("nbytes", [51, 52, 71, 72, 73, 200, 1000, 10**9])
def test_the_most_points_are_those_of_a_plain_search(nbytes: int) -> None:
    modality = Measured()
    found = most_points(modality, RECIPE, nbytes, lambda size: [size] * 3, most=40)
    plain = max(size for size in range(1, 41) if 30 + 21 * size <= nbytes)
    assert list(found) == [plain] * 3
    assert modality.asked <= 14  # some doublings and halvings


def test_too_few_bytes_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(InputError, match=r"nbytes=50 is too little: .* 3 points, takes 51 bytes"):
        most_points(Measured(), RECIPE, 50, lambda size: [size] * 3, most=40)
    with pytest.raises(InputError, match="nbytes must be"):
        most_points(Measured(), RECIPE, 0, lambda size: [size] * 3, most=40)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_images_as_many_as_fit(eight_bit: bool) -> None:
    # 30 pixels of 1 or 4 bytes and a label of 8; two classes.
    takes = 2 * (30 * (1 if eight_bit else 4) + 8)
    for nbytes, each in ((takes, 1), (5 * takes - 1, 4), (5 * takes, 5)):
        small = condense_images(*images(eight_bit=eight_bit), nbytes=nbytes, recipe="random", progress=False)
        assert len(small) == 2 * each
    with pytest.raises(InputError, match="nbytes=100 is too little"):
        condense_images(*images(eight_bit=False), nbytes=100, recipe="random", progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "int4"},
        {"codec": "int8-entropy"},
        {"storage": "formation"},
        {"storage": "formation", "codec": "int2-entropy"},
        {"storage": "codes"},
        {"recipe": dataclasses.replace(recipes["frepo"].on("image"), validate_every=0), "codec": "float16"},
    ],
    ids=str,
)
def test_what_is_stored_by_a_code_never_takes_more(options: dict[str, Any]) -> None:
    quick = dataclasses.replace(recipes.default("image"), validate_every=0)
    nbytes = 16_000 if options.get("storage") == "codes" else 4000  # the decoders alone take some
    job = condense_images.job(*images(), nbytes=nbytes, steps=2, progress=False, **{"recipe": quick, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = job.run()
    takes = len(result.export().coded)
    assert takes <= nbytes
    assert job.modality.size(result.export()).nbytes == takes
    stored = {key: value for key, value in options.items() if key != "recipe"}
    begun = {key: value for key, value in job.recipe.summary.items() if key != "init"}
    promised = job.modality.stored_bytes(job.counts, **{**begun, **stored})
    assert promised == takes if "entropy" not in str(options) else takes <= promised
    more = [count + (4 if "storage" in options else 1) for count in job.counts]
    if "entropy" not in str(options) and max(more) <= 36 and options.get("storage") != "codes":
        assert job.modality.stored_bytes(more, **stored, labels=dict(job.recipe.summary).get("labels", "hard")) > 4000


def test_linear_bases_are_more_than_one_image_a_class() -> None:
    """7 bases are stored of two classes, so the smallest summary has 4 images a class; the numbers are counted by hand."""
    pixels, labels = images(eight_bit=True)
    modality = ImageModality(pixels, labels)
    recipe = dataclasses.replace(recipes["linba"].on("image"), summary={"storage": "bases", "bases": 7})
    least = modality.stored_bytes([4, 4], storage="bases", bases=7)
    assert images_within(modality, recipe, least) == [4, 4]
    # An image takes 7 float32 coefficients more.
    assert images_within(modality, recipe, least + 2 * 28 * 3 + 27) == [7, 7]
    with pytest.raises(InputError, match=f"nbytes={least - 1:,} is too little: .* 8 points, takes {least:,} bytes"):
        images_within(modality, recipe, least - 1)


def test_bytes_and_images_together_decide_the_codec() -> None:
    data = images()
    chosen = []
    for nbytes in (1280, 1279, 600, 400, 300):
        job = condense_images.job(*data, per_class=5, nbytes=nbytes, progress=False)
        chosen.append(job.options.get("codec"))
        assert list(job.counts) == [5, 5]
    assert chosen == [None, "float16-entropy", "int8-entropy", "int4-entropy", "int2-entropy"]
    with pytest.raises(InputError, match=r"nbytes=150 is too little for 10 points .* even by codec 'int2-entropy'"):
        condense_images.job(*data, per_class=5, nbytes=150, progress=False)
    with pytest.raises(
        InputError, match=r"nbytes=1,279 is too little for 10 points of recipe 'random', which take 1,280"
    ):
        condense_images.job(*data, per_class=5, nbytes=1279, recipe="random", progress=False)
    with pytest.raises(InputError, match=r"multiple of 4|smallest summary"):
        condense_images.job(*data, nbytes=130, storage="formation", progress=False)


def test_the_finest_codec_that_fits() -> None:
    class Coded(ToyModality):
        def stored_bytes(self, counts: Sequence[int], *, codec: str = "full", **options: Any) -> int:
            return {"full": 8, "half": 4, "rough": 2}[codec] * sum(counts)

    codecs = (None, "half", "rough")
    found = [finest_codec(Coded(), RECIPE, nbytes, [2, 2, 1], codecs) for nbytes in (40, 39, 20, 19, 10)]
    assert found == [None, "half", "half", "rough", "rough"]


def test_texts() -> None:
    lines = [f"a {word} film number {number}" for number in range(30) for word in ("good", "bad")]
    labels = ["good", "bad"] * 30
    # Real texts: "a good film number 12" and its label are 25 bytes at most, the other class 22.
    small = condense_text(lines, labels, nbytes=250, recipe="random", progress=False)
    assert len(small) % 2 == 0
    assert 6 <= len(small) <= 12
    with pytest.raises(InputError, match="at most one of per_class and nbytes, got per_class, nbytes"):
        condense_text(lines, labels, nbytes=250, per_class=2, progress=False)


def test_a_graph() -> None:
    geometric = pytest.importorskip("torch_geometric.data")
    rng = generator("graph")
    y = torch.arange(60) % 3
    x = torch.randn(60, 7, generator=rng) + 2 * torch.eye(3, 7)[y]
    edges = torch.randint(60, (2, 200), generator=rng)
    masks = {f"{part}_mask": torch.arange(60) % 5 == number for number, part in ((3, "val"), (4, "test"))}
    data = geometric.Data(x=x, edge_index=edges, y=y, train_mask=torch.arange(60) % 5 < 3, **masks)
    with pytest.raises(InputError, match="exactly one of ratio, nodes, per_class and nbytes, got none"):
        condense_graph(data)
    job = condense_graph.job(data, nbytes=500, steps=2, progress=False)
    result = job.run()
    size = job.modality.size(result.export())
    assert size.nbytes <= 500
    assert size.points == sum(job.counts)
    assert job.modality.stored_bytes(job.modality.allocate(size.points + 1), adjacency="none") > 500


@pytest.mark.parametrize(
    "options",
    [{"codec": "int4-entropy"}, {"adjacency": "learned"}, {"adjacency": "learned", "codec": "int8-entropy"}],
    ids=str,
)
def test_a_graph_whose_content_decides(options: dict[str, Any]) -> None:
    """Words of a bag: most features are zero at the beginning. As many nodes as fit then, and no state that takes more."""
    geometric = pytest.importorskip("torch_geometric.data")
    rng = generator("graph of words")
    y = torch.arange(90) % 3
    x = (torch.rand(90, 40, generator=rng) < 0.08).float()
    x[torch.arange(90), y] = 1.0
    masks = {f"{part}_mask": torch.arange(90) % 5 == number for number, part in ((3, "val"), (4, "test"))}
    edges = torch.randint(90, (2, 300), generator=rng)
    data = geometric.Data(x=x, edge_index=edges, y=y, train_mask=torch.arange(90) % 5 < 3, **masks)
    recipe = dataclasses.replace(recipes["dm"].on("graph"), steps=3, validate_every=0)
    chosen: dict[str, Any] = {"recipe": recipe, "progress": False, **options}
    nbytes = 3000
    job = condense_graph.job(data, nbytes=nbytes, **chosen)

    def takes(nodes: int) -> int:
        one = condense_graph.job(data, nodes=nodes, **chosen)
        start = {**one.recipe.summary, **({"codec": options["codec"]} if "codec" in options else {})}
        return one.modality.size(first_summary(one.modality, one.counts, seed=0, **start).export()).nbytes

    count = sum(job.counts)
    assert takes(count) <= nbytes
    if "codec" in options:
        assert (
            count == sum(job.modality.full_sizes) or takes(count + 1) > nbytes or nbytes - takes(count) <= nbytes // 200
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing optimised fits is one of the two right ends
        assert job.modality.size(job.run().export()).nbytes <= nbytes


def test_sets_of_graphs_by_an_entropy_code() -> None:
    geometric = pytest.importorskip("torch_geometric.data")
    rng, graphs = generator("rings"), []
    for number in range(60):
        nodes = 4 + number % 4
        ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
        x = (torch.rand(nodes, 20, generator=rng) < 0.1).float() * 0.5 + number % 2
        graphs.append(geometric.Data(x=x, edge_index=torch.cat([ring, ring.flip(0)], 1), y=torch.tensor([number % 2])))
    recipe = dataclasses.replace(recipes["dm"].on("graphs"), steps=2, validate_every=0)
    plain, coded = (
        condense_graphs.job(graphs, nbytes=4000, recipe=recipe, codec=codec, progress=False)
        for codec in ("int8", "int8-entropy")
    )
    assert coded.counts[0] > plain.counts[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert coded.modality.size(coded.run().export()).nbytes <= 4000


def test_real_texts_are_as_many_as_fit() -> None:
    """Each is as long as it is, so that what is chosen is measured; by the same seed the run chooses the same."""
    texts = [" ".join(["word", "longer", "longest"][: 1 + number % 3] * (1 + number % 5)) for number in range(80)]
    for recipe in ("random", "herding"):
        job = condense_text.job(texts, [n % 2 for n in range(80)], nbytes=600, recipe=recipe, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            takes = job.modality.size(job.run().export()).nbytes
        assert 450 < takes <= 600


def test_a_log() -> None:
    from scipy import sparse

    rng = np.random.default_rng(0)
    logs = sparse.csr_matrix((rng.random((50, 20)) < 0.4).astype(float))
    small = condense_interactions(logs, nbytes=12 * 30 + 11, users=5, steps=2, progress=False)
    assert len(small) == 30
    assert small.num_users == 5
    for rows, users in ((9, 1), (100, 5)):  # twenty rows a user, as fewer say little of who it is
        assert condense_interactions(logs, nbytes=12 * rows, steps=2, progress=False).num_users == users
        assert condense_interactions(logs, interactions=rows, steps=2, progress=False).num_users == users
    assert condense_interactions.job(logs, steps=2, progress=False).counts == [50]  # there are no five hundred
    with pytest.raises(InputError, match=r"nbytes=100 is too little for 9 users: each needs a row, of 12 bytes"):
        condense_interactions(logs, nbytes=100, users=9, progress=False)
    with pytest.raises(InputError, match="at most one of interactions and nbytes"):
        condense_interactions(logs, nbytes=100, interactions=9, progress=False)
    job = condense_interactions.job(logs, nbytes=700, recipe="dm", steps=2, progress=False)
    assert 1 < job.counts[0] < 50


class Wordy(ToyModality):
    """Whose exports take as many bytes as the points' first digits say: content decides, and no two sizes are in line."""

    built = 0

    def size(self, dataset: tuple[torch.Tensor, torch.Tensor]) -> Size:
        self.built += 1
        return Size(len(dataset[0]), 20 + int((dataset[0].abs() * 10).ceil().sum()))


@pytest.mark.parametrize("nbytes", [1000, 2000, 3000, 4000])
def test_where_content_decides_what_the_run_begins_from_is_measured(nbytes: int) -> None:
    modality = Wordy(points=80)
    recipe = dataclasses.replace(RECIPE, summary={"init": "real"})
    found = most_points(modality, recipe, nbytes, lambda size: [size] * 3, most=80, seed=3)[0]
    built, taken = modality.built, [0]
    for size in range(1, 81):  # these points, or the others that the modality measures if those take more
        begun = modality.size(first_summary(modality, [size] * 3, seed=3, init="real").export()).nbytes
        taken.append(max(begun, modality.stored_bytes([size] * 3, init="real")))
    assert taken[found] <= nbytes
    assert found == 80 or taken[found + 1] > nbytes or nbytes - taken[found] <= nbytes // 200
    assert built <= 40


def blots(classes: int, sizes: Sequence[int], side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of which most pixels are black, so that an entropy code makes much less of them than two bits a pixel."""
    count = sum(sizes)
    pixels = torch.rand(count, 1, side, side, generator=generator("blots"))
    return torch.where(pixels > 0.8, pixels, 0.0), torch.repeat_interleave(torch.arange(classes), torch.tensor(sizes))


@settings(max_examples=12, deadline=None)
@given(
    classes=st.integers(2, 12),
    each=st.integers(20, 60),
    lacking=st.integers(0, 15),
    nbytes=st.integers(900, 6000),
    codec=st.sampled_from(["int2-entropy", "int4-entropy", "float16-entropy"]),
    seed=st.integers(0, 3),
)
def test_an_entropy_code_fills_the_budget(
    classes: int, each: int, lacking: int, nbytes: int, codec: str, seed: int
) -> None:
    """The oracle is the coded file of what the run begins from: it fits, and with one image a class more it does not."""
    data = blots(classes, [each - lacking, *[each] * (classes - 1)])

    def takes(per_class: int) -> int:
        recipe = dict(recipes.default("image").summary)
        begun = first_summary(job.modality, [per_class] * classes, seed=seed, **recipe, codec=codec)
        return len(begun.export().coded)

    asked: dict[str, Any] = {"codec": codec, "seed": seed, "progress": False}
    job = condense_images.job(*data, per_class=1, **asked)
    if takes(1) > nbytes:
        with pytest.raises(InputError, match=f"takes {takes(1):,} bytes"):
            condense_images.job(*data, nbytes=nbytes, **asked)
        return
    job = condense_images.job(*data, nbytes=nbytes, **asked)
    count = job.counts[0]
    assert list(job.counts) == [count] * classes
    assert takes(count) <= nbytes
    most = min(job.modality.group_sizes)
    assert count == most or takes(count + 1) > nbytes or nbytes - takes(count) <= nbytes // 200


def test_what_optimising_makes_too_large_is_not_selected(tmp_path: Path) -> None:
    """Black pixels turn grey, so the entropy rises; the file of the run is within the budget, and resumed runs agree."""
    data, nbytes = blots(3, [60, 50, 40]), 1500
    recipe = dataclasses.replace(recipes.default("image"), validate_every=1, validator="ntk", lr=0.3)
    chosen: dict[str, Any] = {"nbytes": nbytes, "recipe": recipe, "codec": "int2-entropy", "progress": False}
    with pytest.warns(UserWarning, match=r"Optimised, the summary took .* above the 1,500 asked for"):
        result = condense_images.job(*data, steps=4, out=tmp_path, **chosen).run()
    noted = [record for record in result.history if "score" in record]
    assert noted[0]["bytes"] <= nbytes < min(record["bytes"] for record in noted[1:])
    assert result.best_step == 0
    assert result.best_score == noted[0]["score"]
    assert result.export().write(tmp_path / "stored") == noted[0]["bytes"]
    with pytest.warns(UserWarning, match="Optimised"):
        again = condense_images.job(*data, steps=4, out=tmp_path, **chosen).run()
    assert again.export().coded == result.export().coded
    with pytest.raises(InputError, match=r"nbytes was 1500 and is now 1490|summary was"):
        condense_images.job(*data, steps=4, out=tmp_path, **{**chosen, "nbytes": 1490}).run()


def test_fewer_images_leave_room_for_what_optimising_adds() -> None:
    data = blots(3, [60, 50, 40])
    recipe = dataclasses.replace(recipes.default("image"), validate_every=0, lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = condense_images.job(
            *data, per_class=8, nbytes=1500, recipe=recipe, codec="int2-entropy", steps=4, progress=False
        )
        result = job.run()
    assert result.best_step == 4
    assert len(result.export().coded) <= 1500


def test_learned_labels_count_as_learned() -> None:
    """They begin as one class each, which a code makes nothing of, and end as so many float16."""
    data = blots(4, [50] * 4)
    recipe = dataclasses.replace(recipes["frepo"].on("image"), validate_every=0)
    hard, soft = (
        condense_images.job(*data, nbytes=4000, codec="int2-entropy", recipe=chosen, progress=False).counts[0]
        for chosen in (recipes.default("image"), recipe)
    )
    assert soft < hard


def test_real_points_that_come_out_larger_are_said() -> None:
    recipe = dataclasses.replace(recipes["random"], modalities=("toy",))
    with pytest.warns(UserWarning, match=r"takes 84 bytes, more than the 80 asked for"):
        run_recipe(ToyModality(), [1, 1, 1], recipe, nbytes=80, progress=False)


@pytest.mark.parametrize(
    ("init", "space"), [("forgetting", "mlp"), ("correct", "mlp"), ("confident", "mlp"), ("herding", "mlp")]
)
def test_points_that_a_training_chooses_are_measured_by_one_training(
    init: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = []
    built = ImageModality.learner

    def learner(self: ImageModality, *args: Any, **options: Any) -> Any:
        trainings.append(self)
        return built(self, *args, **options)

    modality = ImageModality(*images(each=60))
    recipe = dataclasses.replace(
        recipes["image-compact"], summary={"codec": "int4-entropy", "init": init, "space": space}
    )
    sizes = [400, 500, 700]
    alone = [images_within(modality, recipe, nbytes, seed=3) for nbytes in sizes]
    points = [first_summary(modality, counts, seed=3, **recipe.summary)().inputs for counts in alone]
    monkeypatch.setattr(ImageModality, "learner", learner)
    images_within(modality, recipe, sizes[-1], seed=3)
    each = len(trainings)
    first_summary(modality, alone[0], seed=3, **recipe.summary)
    assert len(trainings) == 2 * each  # a search has as many as one choice
    with remembering():
        found = [images_within(modality, recipe, nbytes, seed=3) for nbytes in sizes]
        again = [first_summary(modality, counts, seed=3, **recipe.summary)().inputs for counts in found]
        assert len(trainings) == 3 * each
        first_summary(modality, alone[0], seed=4, **recipe.summary)
        assert len(trainings) == 4 * each  # another seed is another training
        first_summary(ImageModality(*images(each=60)), alone[0], seed=3, **recipe.summary)
        assert len(trainings) == 5 * each  # so is another target dataset
    assert found == alone
    assert all(torch.equal(one, other) for one, other in zip(points, again))


def test_real_points_by_a_code_fill_the_budget_and_are_the_methods() -> None:
    data = blots(4, [50] * 4)
    result = condense_images.job(*data, nbytes=1500, recipe="herding", codec="int2-entropy", progress=False).run()
    modality, counts = result.modality, [result.summary.num_points // 4] * 4
    assert 1350 < modality.size(result.export()).nbytes <= 1500
    assert result.objective is None
    own = run_recipe(modality, counts, recipes["herding"].on("image"), progress=False).export()
    coded = modality.read(result.export())
    real = modality.read(own)
    assert torch.equal(coded.groups, real.groups)
    spread = float(real.inputs.max() - real.inputs.min())
    gaps = (coded.inputs - real.inputs).abs()
    assert 0 < float(gaps.max()) < 0.2 * spread  # half a step of two bits in each image's own range
    with pytest.raises(InputError, match=r"takes real points as they are, so storage cannot be chosen"):
        condense_images(*data, per_class=2, recipe="herding", storage="bases", codec="int2", progress=False)
