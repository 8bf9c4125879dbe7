"""What is read from a set of PyG graphs, how it is split, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.errors import InputError
from datastill.modalities.graphs_data import PARTS, read_graphs, read_parts
from datastill.modalities.graphs_native import set_of_tensors, size_of, tensors_of_set, to_list

pyg = pytest.importorskip("torch_geometric.data")


def graph(label: int = 0, nodes: int = 3, **changes: Any) -> Any:
    place = torch.arange(nodes)
    fields: dict[str, Any] = {
        "x": torch.arange(2.0 * nodes).reshape(nodes, 2),
        "edge_index": torch.stack([place[:-1], place[1:]]),
        "y": torch.tensor([label]),
    }
    return pyg.Data(**{name: value for name, value in {**fields, **changes}.items() if value is not None})


def several(count: int = 12, **changes: Any) -> list[Any]:
    return [graph(number % 2, 1 + number % 4, **changes) for number in range(count)]


def test_graphs_lie_end_to_end() -> None:
    found = read_graphs([graph(0, 2), graph(1, 1), graph(1, 3)])
    assert found.sizes.tolist() == [2, 1, 3]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.edge_index.tolist() == [[0, 3, 4], [1, 4, 5]]
    assert found.x is not None
    assert found.x.tolist() == [[0, 1], [2, 3], [0, 1], [0, 1], [2, 3], [4, 5]]
    assert found.degrees.tolist() == [0, 1, 0, 0, 1, 1]


def test_pyg_datasets_are_read_and_left_as_they_are() -> None:
    module = pytest.importorskip("torch_geometric.datasets")
    data = module.FakeDataset(num_graphs=8, avg_num_nodes=6, num_classes=2, task="graph")
    before = [part.to_dict() for part in data]
    found = read_graphs(data)
    assert found.sizes.tolist() == [part.num_nodes for part in data]
    assert found.labels.tolist() == [int(part.y) for part in data]
    for part, known in zip(data, before):
        assert all(torch.equal(value, known[name]) for name, value in part.to_dict().items() if name != "num_nodes")


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        (torch.tensor([1]), (1,)),
        (torch.tensor(1), (1,)),
        (torch.tensor([[1]]), (1, 1)),
        (torch.tensor([[1.0]]), (1, 1)),
        (torch.tensor([True]), (1,)),
        (1, (1,)),
    ],
)
def test_labels_in_the_forms_that_datasets_have(y: Any, shape: tuple[int, ...]) -> None:
    found = read_graphs([graph(y=y)])
    assert found.labels.tolist() == [1]
    assert found.label_shape == shape


def test_features_keep_their_kind() -> None:
    assert read_graphs([graph(x=torch.ones(3, 2, dtype=torch.float64))]).x.dtype == torch.float32  # type: ignore[union-attr]
    for kind in (torch.int64, torch.int32, torch.uint8, torch.bool):
        assert read_graphs([graph(x=torch.ones(3, 2, dtype=kind))]).x.dtype == torch.int64  # type: ignore[union-attr]
    bare = read_graphs([graph(x=None, num_nodes=5)])
    assert bare.x is None
    assert bare.sizes.tolist() == [5]


def bad(change: Callable[[list[Any]], Any]) -> Callable[[], Any]:
    def make() -> Any:
        data = several()
        return change(data) or data

    return make


def put(name: str, value: Any, place: int = 3) -> Callable[[], Any]:
    """Twelve graphs, one of which (with 4 nodes) has another `name`."""
    return bad(lambda data: setattr(data[place], name, value))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: [], "data has no graph"),
        (lambda: graph(), r"a list of torch_geometric\.data\.Data, got Data"),
        (lambda: "MUTAG", "got str"),
        (lambda: 3, "got int"),
        (lambda: [graph(), "graph"], r"data\[1\] must be a torch_geometric\.data\.Data, got str"),
        (put("x", None), r"data\[3\] has no x, but others have one"),
        (put("x", torch.zeros(4, 5)), r"as many columns in every graph, got \[2, 5\]"),
        (put("x", torch.zeros(4)), r"data\[3\]\.x must be a dense real tensor of shape"),
        (put("x", torch.zeros(4, 0)), r"data\[3\]\.x must be"),
        (put("x", torch.zeros(4, 2, dtype=torch.complex64)), "real tensor"),
        (put("x", torch.full((4, 2), torch.nan)), r"data\[3\]\.x has a NaN or infinite number; replace it first"),
        (put("x", torch.full((4, 2), 1e300, dtype=torch.float64)), r"data\[3\]\.x has a NaN or infinite"),
        (put("x", torch.full((4, 2), 1e30)), r"up to 1e\+15.*rescale"),
        (put("x", torch.zeros(4, 2, dtype=torch.int64)), "floating in every graph, or integer in every graph"),
        (put("x", torch.zeros(0, 2)), r"data\[3\] has no node; drop"),
        (put("edge_index", None), r"data\[3\]\.edge_index must be an integer tensor of shape \(2, edges\)"),
        (put("edge_index", torch.zeros(2, 3)), r"data\[3\]\.edge_index must be an integer"),
        (put("edge_index", torch.zeros(3, 3, dtype=torch.int64)), r"data\[3\]\.edge_index must be an integer"),
        (put("edge_index", torch.tensor([[0], [4]])), r"data\[3\]\.edge_index must hold node ids from 0 to 3"),
        (put("edge_index", torch.tensor([[-1], [0]])), r"data\[3\]\.edge_index must hold node ids"),
        (put("y", None), r"data\[3\] has no y; every graph needs its class"),
        (put("y", "toxic"), r"data\[3\]\.y must be a tensor with one class, got str"),
        (put("y", torch.zeros(1, 12)), r"data\[3\]\.y holds 12 labels.*several tasks.*keep one"),
        (put("y", torch.zeros(0)), r"data\[3\]\.y holds 0 labels"),
        (put("y", torch.tensor([[torch.nan]])), r"counted from 0, got nan.*unknown"),
        (put("y", torch.tensor([0.5])), "counted from 0, got 0.5"),
        (put("y", torch.tensor([-1])), "counted from 0, got -1; renumber"),
    ],
)
def test_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_graphs(make())


# --- splits -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 25), min_size=2, max_size=5), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_random_split_covers_all_graphs_with_the_classes_in_proportion(supply: list[int], seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(supply)), torch.tensor(supply))
    count = len(labels)
    held = max(1, round(0.1 * count))
    if count - len(supply) < 2 * held:
        with pytest.raises(InputError, match="too few to be split"):
            read_parts(None, None, labels, seed)
        return
    parts = read_parts(None, None, labels, seed)
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(count))
    assert len(parts["test"]) == len(parts["validation"]) == held
    kept = torch.bincount(labels[parts["train"]], minlength=len(supply))
    assert int(kept.min()) >= 1
    for label, total in enumerate(supply):
        fair = 2 * held * (total - 1) / (count - len(supply))
        assert abs(total - int(kept[label]) - fair) <= 1


def test_random_split_follows_the_seed() -> None:
    labels = torch.arange(60) % 3
    first, again, other = (read_parts(None, None, labels, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in PARTS)
    assert not torch.equal(first["test"], other["test"])


def test_a_class_of_a_single_graph_trains() -> None:
    labels = torch.tensor([0] * 30 + [1] * 30 + [2])
    for seed in range(10):
        assert 60 in read_parts(None, None, labels, seed)["train"]


def test_given_splits_in_all_forms() -> None:
    place = torch.arange(12)
    labels = place % 2
    by_position = read_parts(
        None, {"train": place[:6].flip(0), "valid": [6, 7, 8], "test": place[9:].numpy()}, labels, 0
    )
    masks = {"train": place < 6, "val": (place >= 6) & (place < 9), "test": place >= 9}
    by_mask = read_parts(None, masks, labels, 0)
    assert [by_position[name].tolist() for name in PARTS] == [list(range(6)), [6, 7, 8], [9, 10, 11]]
    assert all(torch.equal(by_position[name], by_mask[name]) for name in PARTS)

    class Dataset:
        def get_idx_split(self) -> dict[str, Tensor]:
            return {"train": place[:6], "valid": place[6:9], "test": place[9:]}

    own = read_parts(Dataset(), None, labels, 0)
    assert all(torch.equal(own[name], by_mask[name]) for name in PARTS)


FULL = {"train": torch.arange(6), "valid": torch.arange(6, 9), "test": torch.arange(9, 12)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"test": torch.arange(8, 12)}, "graph 8 into two parts; they must be disjoint"),
        ({"test": torch.arange(9, 13)}, "positions from 0 to 11"),
        ({"test": torch.tensor([-1])}, "positions from 0 to 11"),
        ({"test": torch.tensor([9, 9])}, "names a graph twice"),
        ({"test": torch.tensor([9.0])}, "positions of graphs or a mask"),
        ({"test": torch.ones(5, dtype=torch.bool)}, "must have the length 12"),
        ({"test": torch.arange(0)}, "The test part of the split is empty"),
        ({"testing": torch.arange(9, 12)}, "keys 'train', 'valid' and 'test'"),
        ({"train": torch.tensor([0, 2, 4])}, r"Class 1 has no training graph \(6 in all\)"),
    ],
)
def test_refused_splits(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_parts(None, {**FULL, **change}, torch.arange(12) % 2, 0)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.zeros(12, dtype=torch.int64), "All graphs have one class"),
        (torch.arange(12) % 2 * 2, "Classes go up to 2, but no graph has class 1"),
        (torch.arange(12) % 2 + 1, "no graph has class 0"),
        (torch.tensor([0, 1] * 5 + [0, 10**15]), "no graph has class 2"),
        (torch.tensor([0, 1, 0]), "3 graphs are too few"),
    ],
)
def test_refused_classes(labels: Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_parts(None, None, labels, 0)


def test_missing_part_is_named() -> None:
    for name in FULL:
        with pytest.raises(InputError, match=f"split lacks '{name}'"):
            read_parts(None, {key: value for key, value in FULL.items() if key != name}, torch.arange(12) % 2, 0)
    with pytest.raises(InputError, match="split must be a dict"):
        read_parts(None, [1, 2], torch.arange(12) % 2, 0)  # type: ignore[arg-type]


# --- back to lists ------------------------------------------------------------------------------------------------------


@st.composite
def sets(draw: st.DrawFn) -> list[Any]:
    """Graphs with and without edges, of one node and of more, with loops, repeated and one-way edges."""
    with_x, column = draw(st.booleans()), draw(st.booleans())
    integer = draw(st.booleans())
    found = []
    for number in range(draw(st.integers(1, 5))):
        nodes = draw(st.integers(1, 5))
        ends = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=6))
        y = torch.tensor([[number % 2]] if column else [number % 2])
        fields: dict[str, Any] = {
            "edge_index": torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
            "y": y,
        }
        rng = torch.Generator().manual_seed(number)
        x = torch.randint(0, 9, (nodes, 2), generator=rng)
        fields |= {"x": x if integer else x.float()} if with_x else {"num_nodes": nodes}
        found.append(pyg.Data(**fields))
    return found


def same_graphs(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.num_nodes == other.num_nodes
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.edge_index, other.edge_index)
        assert (one.x is None) == (other.x is None)
        assert one.x is None or torch.equal(one.x, other.x)


@given(sets())
@settings(max_examples=40, deadline=None)
def test_lists_come_back_as_they_were(data: list[Any]) -> None:
    found = read_graphs(data)
    same_graphs(to_list(found), data)
    same_graphs(to_list(set_of_tensors(*tensors_of_set(found))), data)
    order = torch.arange(len(data)).flip(0)
    same_graphs(to_list(found, order), data[::-1])
    assert size_of(found).points == len(data)


def test_size_counts_stored_bytes() -> None:
    data = [graph(0, 4), graph(1, 3)]
    # 7 nodes of two float32 each, 5 edges of two int64 each, 2 int64 labels; x has a single zero, so dense is smaller.
    assert size_of(read_graphs(data)).nbytes == 7 * 2 * 4 + 5 * 2 * 8 + 2 * 8


def test_fingerprint_sees_graphs_and_parts() -> None:
    data = several()
    parts = read_parts(None, FULL, torch.arange(12) % 2, 0)
    known = read_graphs(data).fingerprint(parts)
    assert read_graphs([part.clone() for part in data]).fingerprint(parts) == known
    for name, value in (("x", torch.ones(4, 2)), ("edge_index", torch.tensor([[0], [2]])), ("y", torch.tensor([0]))):
        changed = [part.clone() for part in data]
        setattr(changed[3], name, value)
        assert read_graphs(changed).fingerprint(parts) != known
    assert read_graphs(data).fingerprint({**parts, "test": parts["test"][:-1]}) != known
