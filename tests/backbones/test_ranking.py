"""HR@k and nDCG@k against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import ndcg_score

from datastill.backbones.ranking import ranking_metrics
from datastill.backbones.recommender import sparse_rows


def by_hand(scores: list[float], seen: set[int], wanted: set[int], k: int) -> tuple[float, float]:
    """HR@k and nDCG@k of one user, with sets and a loop."""
    ranking = sorted((item for item in range(len(scores)) if item not in seen), key=lambda item: -scores[item])[:k]
    hits = [item in wanted for item in ranking]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), k)))
    gained = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
    return sum(hits) / min(len(wanted), k), gained / ideal


def test_a_user_worked_out_on_paper() -> None:
    # Ranking without the seen item 0: 3, 1, 4, 2. Wanted: 1 and 2; at k = 3 only item 1 is found, at rank 2.
    scores = torch.tensor([[9.0, 3.0, 1.0, 4.0, 2.0]])
    seen, wanted = (sparse_rows(sp.csr_matrix(np.array([row]))) for row in ([1, 0, 0, 0, 0], [0, 1, 1, 0, 0]))
    found = ranking_metrics(scores, seen, wanted, [3])
    assert float(found["hr@3"]) == pytest.approx(1 / 2)
    assert float(found["ndcg@3"]) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert scores[0, 0] == 9


@pytest.mark.parametrize("seed", range(5))
def test_random_users_agree_with_loops_over_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = 20, 15
    scores = rng.permuted(np.tile(np.arange(float(items)), (users, 1)), axis=1)
    parts = rng.integers(0, 3, (users, items))
    parts[:, 0] = 2  # everybody wants something
    found = ranking_metrics(
        torch.from_numpy(scores),
        sparse_rows(sp.csr_matrix(parts == 1)),
        sparse_rows(sp.csr_matrix(parts == 2)),
        [1, 3, 7],
    )
    for k in (1, 3, 7):
        expected = [
            by_hand(scores[u].tolist(), set(np.flatnonzero(parts[u] == 1)), set(np.flatnonzero(parts[u] == 2)), k)
            for u in range(users)
        ]
        assert np.allclose(found[f"hr@{k}"], [hr for hr, _ in expected])
        assert np.allclose(found[f"ndcg@{k}"], [ndcg for _, ndcg in expected])


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    scores, wanted = rng.random((12, 30)), rng.random((12, 30)) < 0.2
    wanted[:, 3] = True
    found = ranking_metrics(torch.from_numpy(scores), None, sparse_rows(sp.csr_matrix(wanted)), [5])
    expected = [ndcg_score(wanted[[u]], scores[[u]], k=5) for u in range(12)]
    assert np.allclose(found["ndcg@5"], expected)


def test_a_cutoff_above_the_number_of_items_is_their_number() -> None:
    wanted = sparse_rows(sp.csr_matrix(np.array([[0, 1, 0]])))
    found = ranking_metrics(torch.tensor([[3.0, 2.0, 1.0]]), None, wanted, [10, 100])
    assert float(found["hr@10"]) == 1
    assert float(found["ndcg@100"]) == pytest.approx(1 / math.log2(3))
