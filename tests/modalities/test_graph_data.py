"""What is read from a PyG `Data`, what is made where it is missing, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datastill.backbones.nodes import normalised
from datastill.errors import InputError
from datastill.modalities.graph_data import PARTS, read_graph

pyg = pytest.importorskip("torch_geometric.data")

N = 30


def graph(**changes: Any) -> Any:
    place = torch.arange(N)
    fields: dict[str, Any] = {
        "x": torch.randn(N, 4, generator=torch.Generator().manual_seed(0)),
        "edge_index": torch.stack([place[:-1], place[1:]]),
        "y": place % 3,
        "train_mask": place < 12,
        "val_mask": (place >= 12) & (place < 21),
        "test_mask": place >= 21,
    }
    return pyg.Data(**{name: value for name, value in {**fields, **changes}.items() if value is not None})


def ids(*bounds: int) -> Tensor:
    return torch.arange(*bounds)


def test_masks_ids_and_dicts_agree() -> None:
    plain = read_graph(graph())
    by_id = read_graph(graph(train_mask=ids(12).flip(0), val_mask=ids(12, 21), test_mask=ids(21, N).int()))
    bare = graph(train_mask=None, val_mask=None, test_mask=None)
    by_dict = read_graph(bare, {"train": ids(12), "valid": ids(12, 21), "test": ids(21, N)})
    for part in PARTS:
        assert torch.equal(plain.parts[part], by_id.parts[part])
        assert torch.equal(plain.parts[part], by_dict.parts[part])
    assert plain.fingerprint() == by_id.fingerprint() == by_dict.fingerprint()


def test_column_of_many_splits() -> None:
    data = graph()
    for mask in ("train_mask", "val_mask", "test_mask"):
        data[mask] = torch.stack([data[mask].roll(3), data[mask]], 1)
    assert torch.equal(read_graph(data, 1).parts["train"], ids(12))
    with pytest.raises(InputError, match="from 0 to 1"):
        read_graph(data, 2)


def test_missing_masks_give_stratified_parts() -> None:
    parts = read_graph(graph(train_mask=None, val_mask=None, test_mask=None, y=ids(N) % 2)).parts
    assert torch.equal(torch.cat(list(parts.values())).sort().values, ids(N))
    for part, each in (("train", 9), ("validation", 3), ("test", 3)):
        assert torch.bincount(parts[part] % 2).tolist() == [each, each]
    again = read_graph(graph(train_mask=None, val_mask=None, test_mask=None, y=ids(N) % 2)).parts
    other = read_graph(graph(train_mask=None, val_mask=None, test_mask=None, y=ids(N) % 2), seed=1).parts
    assert torch.equal(parts["train"], again["train"])
    assert not torch.equal(parts["train"], other["train"])


def test_missing_validation_is_split_off_the_training_nodes() -> None:
    parts = read_graph(graph(val_mask=None)).parts
    assert torch.equal(torch.cat([parts["train"], parts["validation"]]).sort().values, ids(12))
    assert torch.bincount(parts["validation"] % 3).tolist() == [1, 1, 1]
    assert torch.equal(parts["test"], ids(21, N))
    single = read_graph(graph(val_mask=None, train_mask=torch.tensor([0, 3, 6, 1, 2])))
    assert torch.bincount(single.labels[single.parts["train"]]).tolist() == [2, 1, 1]


def test_missing_test_is_the_rest() -> None:
    y = ids(N) % 3
    y[25] = -1
    parts = read_graph(graph(test_mask=None, y=y)).parts
    assert parts["test"].tolist() == [21, 22, 23, 24, 26, 27, 28, 29]


def test_unknown_labels_outside_of_the_masks_are_fine() -> None:
    y = ids(N) % 3
    y[29] = -1
    assert read_graph(graph(y=y, test_mask=ids(21, 29))).num_classes == 3
    assert torch.equal(read_graph(graph(y=(ids(N) % 3)[:, None])).labels, ids(N) % 3)


def test_nodes_without_features_get_structural_ones_and_it_is_said() -> None:
    with pytest.warns(UserWarning, match=r"datastill\.transforms\.StructuralFeatures"):
        found = read_graph(graph(x=None))
    assert found.structural
    assert found.features.shape == (N, 2 + N)
    received, sent = found.features[:, 0].expm1(), found.features[:, 1].expm1()
    torch.testing.assert_close(received, torch.tensor([0.0] + [1.0] * (N - 1)))
    torch.testing.assert_close(sent, torch.tensor([1.0] * (N - 1) + [0.0]))
    # With all singular vectors kept, their Gram matrix is that of the operator's square root of its square.
    both = torch.cat([graph().edge_index, graph().edge_index.flip(0)], 1)
    operator = normalised(both, None, N).dense()
    values, vectors = torch.linalg.eigh(operator)
    position = found.features[:, 2:]
    torch.testing.assert_close(position @ position.T / N, (vectors * values.abs()) @ vectors.T, rtol=1e-3, atol=1e-4)


def test_induced_graph() -> None:
    weight = torch.arange(N - 1).float()
    part = read_graph(graph(edge_weight=weight)).induced(torch.tensor([3, 4, 5, 9]))
    assert part.edge_index.tolist() == [[0, 1], [1, 2]]
    assert part.edge_weight is not None
    assert part.edge_weight.tolist() == [3.0, 4.0]
    assert part.parts["train"].tolist() == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch, when PyG makes the matrix
def test_transposed_sparse_adjacency_is_read_too() -> None:
    transforms = pytest.importorskip("torch_geometric.transforms")
    weight = torch.rand(N - 1, generator=torch.Generator().manual_seed(0)) + 0.1
    data = graph(edge_weight=weight)
    found = read_graph(transforms.ToSparseTensor(attr="edge_weight", layout=torch.sparse_csr)(data.clone()))
    order = found.edge_index[0].argsort()
    assert found.edge_weight is not None
    assert torch.equal(found.edge_index[:, order], data.edge_index)
    torch.testing.assert_close(found.edge_weight[order], weight)


def test_fingerprint_sees_every_part() -> None:
    known = read_graph(graph()).fingerprint()
    x = graph().x
    x[0, 0] += 1
    for changed in (
        graph(x=x),
        graph(edge_weight=torch.ones(N - 1)),
        graph(val_mask=ids(13, 21)),
        graph(y=(ids(N) + 1) % 3),
    ):
        assert read_graph(changed).fingerprint() != known


def bad_label(node: int, value: int) -> Tensor:
    y = ids(N) % 3
    y[node] = value
    return y


def only_held_out() -> Any:
    return graph(y=torch.where(ids(N) >= 25, 3, ids(N) % 3))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: "graph", "must be a torch_geometric.data.Data, got str"),
        (lambda: [graph()], r"Pass one graph of it, dataset\[0\]"),
        (lambda: graph(x="words"), "data.x must be a tensor or None, got str"),
        (lambda: graph(x=torch.zeros(N)), "shape .nodes, features."),
        (lambda: graph(x=torch.full((N, 4), torch.nan)), "node 0 has a NaN"),
        (lambda: graph(x=torch.full((N, 4), 1e30)), "largest absolute value between 1e-15 and 1e.15"),
        (lambda: graph(x=torch.full((N, 4), 1e-30)), "rescale it"),
        (lambda: graph(edge_index=None), "edge_index is missing"),
        (lambda: graph(edge_index=torch.zeros(3, 5, dtype=torch.int64)), "shape .2, edges."),
        (lambda: graph(edge_index=torch.zeros(2, 5)), "integer tensor"),
        (lambda: graph(edge_index=torch.tensor([[0], [N]])), "from 0 to 29, .* but has 30"),
        (lambda: graph(edge_index=torch.tensor([[-1], [2]])), "but has -1"),
        (lambda: graph(edge_weight=torch.ones(3)), "one number for each of the 29 edges"),
        (lambda: graph(edge_weight=-torch.ones(N - 1)), "at least 0"),
        (lambda: graph(y=None), "data.y is missing"),
        (lambda: graph(y=torch.zeros(N - 1, dtype=torch.int64)), "one integer class for each of the 30"),
        (lambda: graph(y=torch.zeros(N)), "integer class"),
        (lambda: graph(y=torch.zeros(N, dtype=torch.int64)), "single class"),
        (lambda: graph(y=bad_label(2, -1)), "Node 2 is in the train part but has the label -1"),
        (lambda: graph(y=bad_label(15, -1)), "Node 15 is in the validation part"),
        (lambda: graph(y=bad_label(2, 1000)), "counted from 0, but has 1000"),
        (lambda: graph(y=bad_label(2, 7)), "Class 3 has no training node"),
        (only_held_out, r"Class 3 has no training node \(5 in validation and test\)"),
        (lambda: graph(train_mask=graph().train_mask.float()), "boolean mask or integer ids"),
        (lambda: graph(train_mask=graph().train_mask.long()), "looks like a mask of numbers"),
        (lambda: graph(train_mask=torch.ones(N - 1, dtype=torch.bool)), "must have the length 30"),
        (lambda: graph(train_mask=torch.tensor([0, N])), "node ids from 0 to 29"),
        (lambda: graph(train_mask=torch.zeros(N, dtype=torch.bool)), "data.train_mask selects no node"),
        (lambda: graph(test_mask=ids(20, N)), "share 1 nodes, for example 20"),
    ],
)
def test_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_graph(make())


def test_refused_splits() -> None:
    with pytest.raises(InputError, match="got 'public'"):
        read_graph(graph(), "public")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keys 'train', 'valid' and 'test'"):
        read_graph(graph(), {"training": ids(3)})
