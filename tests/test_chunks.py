"""The same numbers in small pieces as in one, of every kind of data; and the memory that a run may be given."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill import (
    condense_graph,
    condense_graphs,
    condense_images,
    condense_interactions,
    condense_text,
    memory,
    processes,
    recipes,
)
from datastill.backbones.graph import GCN
from datastill.backbones.hop_store import HopStore
from datastill.backbones.nodes import Nodes, normalised
from datastill.backbones.ranking import Holdout
from datastill.backbones.recommenders import EASE, Popularity
from datastill.cli import main
from datastill.errors import InputError
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.graph import GraphModality
from datastill.modalities.graph_teacher import teach
from datastill.modalities.graphs import GraphsModality
from datastill.modalities.image import ImageModality
from datastill.modalities.image_scale import PixelScale
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_init import cluster_means
from datastill.modalities.interactions_teacher import Taught
from datastill.modalities.text import TextModality
from datastill.modalities.text_decode import nearest_rows
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.recipe import Recipe
from datastill.rng import generator

VARIABLE = "DATASTILL_MEMORY"


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4GiB")


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all chunks that are cut."""
    found: list[int] = []
    chunk = memory.chunk

    def watched(*arguments: Any, **options: Any) -> int:
        found.append(chunk(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(memory, "chunk", watched)
    return found


# --- small data of each kind ------------------------------------------------------------------------------------------


def pictures(count: int = 60) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 2
    return torch.rand(count, 1, 6, 6, generator=generator("pictures")) + 0.4 * labels[:, None, None, None], labels


def sentences(count: int = 60) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = [[f"{kind}{number}" for number in range(6)] + ["the", "a", "of"] for kind in ("good", "bad")]
    texts = [" ".join(rng.choice(words[number % 2], rng.integers(2, 6))) for number in range(count)]
    return texts, [("good", "bad")[number % 2] for number in range(count)]


def web(nodes: int = 90, width: int = 8) -> Any:
    data = pytest.importorskip("torch_geometric.data")
    rng = generator("web")
    labels, place = torch.arange(nodes) % 3, torch.arange(nodes)
    edges = torch.randint(nodes, (2, 4 * nodes), generator=rng)
    edges = edges[:, labels[edges[0]] == labels[edges[1]]]
    return data.Data(
        x=torch.randn(nodes, width, generator=rng) + F.one_hot(labels, width),
        edge_index=torch.cat([edges, edges.flip(0)], 1).unique(dim=1),
        y=labels,
        train_mask=place < 36,
        val_mask=(place >= 36) & (place < 60),
        test_mask=place >= 60,
    )


def molecules(count: int = 60) -> list[Any]:
    data = pytest.importorskip("torch_geometric.data")
    rng, found = generator("molecules"), []
    for number in range(count):
        nodes = 3 + number % 5
        edges = (torch.rand(nodes, nodes, generator=rng) < 0.3 + 0.4 * (number % 2)).triu(1).nonzero().T
        x = torch.randn(nodes, 3, generator=rng) + number % 2
        found.append(data.Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=torch.tensor([number % 2])))
    return found


def tastes(users: int = 60) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    pairs = [(user, 10 * (user % 2) + item) for user in range(users) for item in rng.choice(10, 6, replace=False)]
    return {"user_id": [f"u{user}" for user, _ in pairs], "item_id": [f"i{item}" for _, item in pairs]}


SPLIT = {"train": torch.arange(20), "valid": torch.arange(20, 30), "test": torch.arange(30, 60)}
CLASSIFIED: dict[str, tuple[Callable[[], ClassificationModality], str, str]] = {
    "image": (lambda: ImageModality(*pictures(), test=pictures(30)), "mlp", "10KB"),
    "text": (lambda: TextModality(*sentences(), test=sentences(30)), "pool", "20KB"),
    "graph": (lambda: GraphModality(web(), hidden=16), "gcn", "4KB"),
    "graphs": (lambda: GraphsModality(molecules(), split=SPLIT, hidden=8), "gcn", "8KB"),
}


@pytest.mark.parametrize("kind", CLASSIFIED)
def test_held_out_points_in_small_pieces(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, learner, little = CLASSIFIED[kind]
    modality = make()
    (whole,) = modality.held_out("test")
    predictor = modality.fit(modality.real(), learner, rng=generator("net"))
    with torch.no_grad():
        outputs, vectors = predictor(whole.inputs), modality.vectors(modality.real().inputs)
    right = float((outputs.argmax(1) == whole.targets).double().mean())

    monkeypatch.setenv(VARIABLE, little)
    cut = make()
    for _ in range(2):  # as made and, where they fit, as kept
        parts = list(cut.held_out("test"))
        assert len(parts) > 2
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        with torch.no_grad():
            torch.testing.assert_close(torch.cat([predictor(part.inputs) for part in parts]), outputs)
        assert cut.score(predictor, "test")["accuracy"] == pytest.approx(right)
    torch.testing.assert_close(cut.vectors(cut.real().inputs), vectors)
    assert cut.fingerprint() == modality.fingerprint()


@pytest.mark.parametrize("kind", ["text", "graph", "graphs"])
def test_held_out_batches_are_kept_only_where_they_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modality = CLASSIFIED[kind][0]()
    monkeypatch.setenv(VARIABLE, "400")
    first, second = (next(iter(modality.held_out("test"))) for _ in range(2))
    assert first is not second
    monkeypatch.setenv(VARIABLE, "4GiB")
    first, second = (next(iter(modality.held_out("test"))) for _ in range(2))
    assert first is second


def test_users_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    rng = generator("users")
    histories, wanted = (sp.csr_matrix((torch.rand(50, 40, generator=rng) < 0.2).float().numpy()) for _ in range(2))
    somebody = np.arange(50)[:, None] != 3
    wanted = sp.csr_matrix(wanted.toarray() * (histories.toarray() == 0) * somebody)
    scores = torch.rand(50, 40, generator=rng)
    holdout = Holdout(histories, wanted)
    users = torch.from_numpy(np.flatnonzero(wanted.getnnz(axis=1)))
    monkeypatch.setenv(VARIABLE, "16KB")  # five users of 40 items at 20 bytes
    found = holdout.score(scores[users])
    assert sizes[-1] == 5
    # The formulas, one user after the other.
    gains, hits = [], []
    for user in users.tolist():
        free = scores[user].masked_fill(torch.from_numpy(histories[user].toarray()[0] > 0), -torch.inf)
        relevant = wanted[user].toarray()[0][free.argsort(descending=True)[:10]] > 0
        discounts = 1 / np.log2(np.arange(2, 12))
        gains.append((relevant * discounts).sum() / discounts[: min(10, wanted[user].nnz)].sum())
        hits.append(relevant.sum() / wanted[user].nnz)
    assert found["ndcg@10"] == pytest.approx(np.mean(gains), rel=1e-5)
    assert found["recall@10"] == pytest.approx(np.mean(hits), rel=1e-5)
    assert sum(len(part) for part, _ in holdout) == len(users)


def test_processes_with_other_memory_score_every_user_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sp.identity(41, format="csr", dtype=np.float32)
    holdout = Holdout(sp.csr_matrix((41, 41), dtype=np.float32), rows)
    scored: list[int] = []

    def predictor(histories: Any) -> Tensor:
        scored.append(len(histories))
        return torch.ones(len(histories), 41)

    monkeypatch.setattr(processes, "size", lambda: 3)
    monkeypatch.setattr(processes, "total", lambda values: values)
    for turn, little in enumerate(("4GiB", "9KB", "30KB")):
        monkeypatch.setattr(processes, "_turn", lambda turn=turn: turn)
        monkeypatch.setenv(VARIABLE, little)
        holdout.score(predictor)
    assert scored == [14, 2, 2, 2, 2, 2, 2, 2, 9, 4]  # 20 bytes for each of 41 items; a third of the users each


@pytest.mark.parametrize("model", [EASE, Popularity])
def test_recommendations_in_small_pieces(
    model: type[EASE] | type[Popularity], monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    rows = sp.csr_matrix((torch.rand(50, 40, generator=generator("rows")) < 0.2).float().numpy())
    fitted = (EASE(10.0) if model is EASE else Popularity()).fit(rows)
    scores = fitted(torch.from_numpy(rows.toarray())).masked_fill(torch.from_numpy(rows.toarray() > 0), -torch.inf)
    monkeypatch.setenv(VARIABLE, "16KB")
    found = fitted.recommend(rows, 5)[1]
    assert sizes[-1] == 5
    np.testing.assert_allclose(found, scores.topk(5, dim=1).values.numpy(), rtol=1e-5, atol=1e-6)


def test_teacher_of_users_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    def taught() -> Taught:
        modality = InteractionsModality.from_logs(tastes(), teacher="ease")
        found: Taught = modality.real(50, rng=generator("users")).targets
        return found

    whole = taught()
    for little in ("40KB", "1KB"):  # kept, computed some users at a time; and computed whenever they are drawn
        monkeypatch.setenv(VARIABLE, little)
        cut = taught()
        torch.testing.assert_close(cut.scores, whole.scores)
        torch.testing.assert_close(cut.shares, whole.shares)
        assert (25 in sizes) == (little == "40KB")  # 400 bytes a user
        sizes.clear()


# --- what else is computed in pieces ----------------------------------------------------------------------------------


def test_scales_and_fingerprints_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are summed in blocks of 2^22 numbers, so 5 of 3 x 600 x 400 at a time; and always in the same ones."""
    images = torch.randint(0, 256, (12, 3, 600, 400), dtype=torch.uint8, generator=generator("large"))
    scale = PixelScale.of(images, None)
    unit = images.numpy() / 255
    np.testing.assert_allclose(scale.mean.numpy(), unit.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(scale.std.numpy(), unit.std((0, 2, 3)), rtol=1e-6)
    monkeypatch.setenv(VARIABLE, "1KB")
    assert torch.equal(PixelScale.of(images, None).mean, scale.mean)
    assert torch.equal(PixelScale.of(images, None).std, scale.std)


def test_neighbours_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    rng = generator("neighbours")
    queries, table = torch.randn(9, 5, generator=rng), torch.randn(200, 5, generator=rng)
    table[150] = table[20]  # a tie, which the lower row wins
    queries[0] = table[20]
    monkeypatch.setenv(VARIABLE, "30KB")
    cosines, rows = nearest_rows(queries, table, torch.ones(200, dtype=torch.bool), count=3)
    assert sizes[-1] < 40
    every = F.normalize(queries, dim=1) @ F.normalize(table, dim=1).T
    torch.testing.assert_close(cosines, every.topk(3, dim=1).values)
    assert torch.equal(rows[:, 0][1:], every.argmax(1)[1:])
    assert rows[0, :2].tolist() == [20, 150]


def test_hops_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    rng = generator("hops")
    features = torch.randn(70, 40, generator=rng, dtype=torch.float64)
    operator = normalised(torch.randint(70, (2, 300), generator=rng), None, 70, torch.float64)
    dense, rows = operator.dense(), torch.tensor([3, 69, 0])
    monkeypatch.setenv(VARIABLE, "12KB")
    mapped = Nodes.constant(features, operator, store=HopStore(tmp_path, "it"))
    torch.testing.assert_close(mapped.propagated(2), dense @ dense @ features)
    assert sizes[-1] == 9  # rows of 320 bytes in 3000
    hops = Nodes.constant(features, operator).hops
    assert hops is not None
    found = hops.at(rows, (2, 0, 3))
    assert sizes[-1] == 2  # columns; 8 are the fewest
    for power, values in found.items():
        torch.testing.assert_close(values, (torch.linalg.matrix_power(dense, power) @ features)[rows])


def test_hidden_units_of_nodes_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    rng = generator("hidden")
    edges, features = torch.randint(600, (2, 3000), generator=rng), torch.randn(600, 8, generator=rng)
    operator, net = normalised(edges, None, 600), GCN(8, 3).eval()
    dense = operator.dense()
    expected = dense @ (dense @ features @ net.first.weight.T).relu() @ net.head.weight.T
    monkeypatch.setenv(VARIABLE, "100KB")
    with torch.no_grad():
        torch.testing.assert_close(net(Nodes.constant(features, operator)), expected)
        assert sizes == [12]
        few = Nodes.constant(features, operator).take(torch.arange(0))
        assert net(few).shape == (0, 3)


def test_a_teacher_of_nodes_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    data = web()
    view = Nodes.constant(data.x, normalised(data.edge_index, None, 90))
    train, validation = data.train_mask.nonzero().squeeze(1), data.val_mask.nonzero().squeeze(1)
    whole = teach(view, data.y, train, validation, generator("teach"))
    assert len(sizes) == 2
    monkeypatch.setenv(VARIABLE, "20KB")
    assert torch.equal(teach(view, data.y, train, validation, generator("teach")), whole)
    assert sizes[-1] == 4


def test_clusters_of_users_in_small_pieces(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    picks = torch.rand(80, 30, generator=generator("clusters")) < 0.2
    picks[:, 0] = True  # nobody without an item
    rows = sp.csr_matrix(picks.double().numpy())
    whole = cluster_means(rows, 6, generator("centres"))
    monkeypatch.setenv(VARIABLE, "1KB")
    np.testing.assert_allclose(cluster_means(rows, 6, generator("centres")), whole, rtol=1e-6)
    assert sizes[-1] == 5


@pytest.mark.parametrize("kernel", ["ntk", "features"])
def test_labels_are_solved_in_small_pieces(kernel: str, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    modality = ImageModality(*pictures()).to(dtype=torch.float64)
    solved = []
    for little in ("4GiB", "20KB"):
        monkeypatch.setenv(VARIABLE, little)
        summary = modality.summary([3, 3], rng=generator("solve"), labels="signed")
        objective = KernelRidge(
            kernel=kernel, ridge=1e-3, solve_labels=True, learner="mlp" if kernel == "features" else None
        )
        objective.start(modality, summary)
        objective.settle()
        solved.append(summary().targets)
    torch.testing.assert_close(*solved, rtol=1e-6, atol=1e-8)
    assert sizes[-1] < 20


# --- the memory of a run ----------------------------------------------------------------------------------------------


def quick(recipe: str, kind: str) -> Recipe:
    """It is validated with a kernel machine, which takes no training."""
    return dataclasses.replace(recipes[recipe].on(kind), validator="ntk")


DOORS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], dict[str, Any], Callable[[Any], Any]]] = {
    "image": (
        condense_images,
        pictures,
        {"per_class": 1, "recipe": quick("dm", "image")},
        lambda small: small.tensors[0],
    ),
    "text": (
        condense_text,
        sentences,
        {"per_class": 1, "recipe": quick("text-default", "text")},
        lambda small: list(small.texts),
    ),
    "graph": (condense_graph, lambda: (web(),), {"per_class": 1}, lambda small: small.x),
    "graphs": (
        condense_graphs,
        lambda: (molecules(),),
        {"per_class": 1, "recipe": quick("doscond", "graphs")},
        lambda small: [one.x for one in small],
    ),
    "interactions": (condense_interactions, lambda: (tastes(),), {"users": 2}, lambda small: small.weights),
}


@pytest.mark.parametrize("kind", DOORS)
@pytest.mark.filterwarnings("ignore:This run takes about")
def test_a_run_is_given_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    door, data, options, numbers = DOORS[kind]
    there: list[int] = []
    chunk = memory.chunk

    def watched(*arguments: Any, **more: Any) -> int:
        there.append(memory.available())
        return chunk(*arguments, **more)

    whole = numbers(door(*data(), **options, steps=2, progress=False))
    monkeypatch.setattr(memory, "chunk", watched)
    cut = numbers(door(*data(), **options, steps=2, progress=False, memory="50KB"))
    assert set(there) == {50_000}
    assert memory.available() == 4 * 2**30
    assert os.environ[VARIABLE] == "4GiB"
    if kind == "text":
        assert cut == whole
        return
    if isinstance(whole, np.ndarray):
        whole, cut = torch.from_numpy(whole), torch.from_numpy(cut)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", DOORS)
@pytest.mark.parametrize("given", ["lots", 0, -3, True])
def test_what_is_no_memory_is_refused_before_the_data_are_read(kind: str, given: Any) -> None:
    door, _, options, _ = DOORS[kind]
    message = f"memory must be bytes such as 4GiB, 800MB or 1e9, got {given!r}."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        door(None, **options, memory=given)


def test_a_wrong_variable_is_refused_at_the_door_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "lots")
    with pytest.raises(InputError, match=r"^DATASTILL_MEMORY must be bytes .*, got 'lots'\.$"):
        condense_images(None)


def test_limits_are_of_a_block_and_a_thread() -> None:
    def inside(given: int) -> tuple[int, int, int]:
        with memory.limit(given):
            with memory.limit(f"{given // 2}B"):
                inner = memory.available()
            with memory.limit(None):
                return inner, memory.available(), memory.chunk(10, most=10**9)

    with memory.limit(7), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(inside, range(1000, 1400, 2)))
        assert memory.available() == 7
    assert found == [(given // 2, given, given // 4 // 10) for given in range(1000, 1400, 2)]
    assert memory.available() == 4 * 2**30
    with pytest.raises(RuntimeError), memory.limit(7):
        raise RuntimeError
    assert memory.available() == 4 * 2**30


@pytest.mark.filterwarnings("ignore:This run takes about")
def test_the_shell_gives_memory_and_records_none_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: list[int]
) -> None:
    log = tmp_path / "logs.csv"
    columns = tastes()
    log.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in zip(*columns.values())))
    run = ["interactions", "--data", str(log), "--users", "2", "--steps", "2", "--seeds", "0", "--quiet"]
    with pytest.raises(SystemExit) as end:
        main([*run, "--out", str(tmp_path / "run"), "--memory", "lots"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "datastill: memory must be bytes such as 4GiB, 800MB or 1e9, got 'lots'.\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as end:
        main([*run, "--out", str(tmp_path / "run"), "--memory", "20KB"])
    assert end.value.code == 0
    assert 0 < min(sizes) < 20
    stored = [path.read_text(encoding="utf-8") for path in (tmp_path / "run").rglob("*.json")]
    assert stored
    assert not any("20KB" in text for text in stored)
    again = ["evaluate", str(tmp_path / "run"), "--seeds", "1", "--baselines", "none", "--quiet", "--memory"]
    with pytest.raises(SystemExit) as end:
        main([*again, "lots"])
    assert end.value.code == 2
    assert "memory must be bytes such as 4GiB, 800MB or 1e9, got 'lots'.\n" in capsys.readouterr().err
    sizes.clear()
    with pytest.raises(SystemExit) as end:
        main([*again, "20KB"])
    assert end.value.code == 0
    assert 0 < min(sizes) < 20
