"""Sparse rows of users, and the autoencoder that reads them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill.backbones.batch import Batch
from datastill.backbones.recommender import SparseRows, UserAutoencoder, matrix, sparse_rows
from datastill.errors import InputError


def random_rows(users: int = 6, items: int = 9, seed: int = 0) -> tuple[np.ndarray, SparseRows]:
    """A dense matrix with an empty row and weights, and the same as sparse rows."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((users, items)) < 0.4) * rng.random((users, items))
    dense[2] = 0
    return dense.astype(np.float32), sparse_rows(sp.csr_matrix(dense.astype(np.float32)))


def test_sparse_rows_are_the_matrix_they_were_made_of() -> None:
    dense, rows = random_rows()
    assert len(rows) == 6
    assert np.array_equal(rows.dense().numpy(), dense)
    assert np.array_equal(rows.csr().to_dense().numpy(), dense)
    assert rows.owners.tolist() == sp.csr_matrix(dense).tocoo().row.tolist()


@pytest.mark.parametrize("index", [[0], [2], [4, 2, 4, 0], []], ids=str)
def test_taking_users_takes_rows(index: list[int]) -> None:
    dense, rows = random_rows()
    taken = rows.take(torch.tensor(index, dtype=torch.int64))
    assert np.array_equal(taken.dense().numpy(), dense[index])


def test_a_batch_of_sparse_rows_can_be_taken_cast_and_detached() -> None:
    dense, rows = random_rows()
    batch = (
        Batch(rows, rows, torch.zeros(6, dtype=torch.int64)).to(dtype=torch.float64).detach().take(torch.tensor([1]))
    )
    assert batch.inputs.values.dtype == torch.float64
    assert batch.inputs.columns.dtype == torch.int64
    assert np.allclose(batch.targets.dense().numpy(), dense[[1]])


def test_the_autoencoder_reads_sparse_rows_as_it_reads_dense_ones() -> None:
    torch.manual_seed(0)
    dense, rows = random_rows()
    net = UserAutoencoder(9, width=5)
    outputs = net(rows.dense())
    assert outputs.shape == (6, 9)
    assert torch.allclose(net(rows), outputs, atol=1e-6)
    # The definition, in NumPy.
    unit = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-6)
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    hidden = np.maximum(unit @ weights["encoder.weight"].T + weights["encoder.bias"], 0)
    expected = hidden @ weights["head.weight"].T + weights["head.bias"]
    assert np.allclose(outputs.detach().numpy(), expected, atol=1e-5)


def test_the_autoencoder_does_not_see_the_scale_of_a_row() -> None:
    net = UserAutoencoder(9, width=5)
    dense = torch.from_numpy(random_rows()[0])
    assert torch.allclose(net(dense), net(3 * dense), atol=1e-5)


def test_second_derivatives_through_sparse_and_dense_rows_agree() -> None:
    torch.manual_seed(0)
    _, rows = random_rows()
    net = UserAutoencoder(9, width=5)
    squares = []
    for inputs in (rows, rows.dense()):
        loss = net(inputs).logsumexp(1).sum()
        grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        square = torch.stack([grad.square().sum() for grad in grads]).sum()
        squares.append(torch.autograd.grad(square, net.encoder.weight)[0])
    assert torch.allclose(squares[0], squares[1], rtol=1e-4, atol=1e-6)


def test_a_row_without_items_has_a_finite_gradient() -> None:
    rows = torch.zeros(1, 9, requires_grad=True)
    UserAutoencoder(9, width=5)(rows).sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


def test_matrix_leaves_dense_rows_alone() -> None:
    dense = torch.ones(2, 3)
    assert matrix(dense) is dense


@pytest.mark.parametrize("arguments", [(0, 4), (4, 0), (4, 2.5)])
def test_sizes_are_checked(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="must be an integer of at least 1"):
        UserAutoencoder(*arguments)
