"""HR@k and nDCG@k against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import ndcg_score, roc_auc_score

from datastill.backbones.ranking import Holdout, all_metrics, auc, inverse_propensities, leading, ranking_metrics
from datastill.backbones.recommender import sparse_rows
from datastill.errors import InputError


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


def test_recall_divides_by_all_wanted_items() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    wanted = sparse_rows(sp.csr_matrix(np.array([[1, 0, 1, 1, 0]])))
    found = ranking_metrics(scores, None, wanted, [2])
    assert float(found["recall@2"]) == pytest.approx(1 / 3)
    assert float(found["hr@2"]) == pytest.approx(1 / 2)


def test_propensity_scored_precision_by_hand() -> None:
    # Top 2 are items 0 and 1; wanted 1, 2, 3. A hit of item 1 counts 5; the best two of the wanted count 9 and 7.
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    wanted = sparse_rows(sp.csr_matrix(np.array([[0, 1, 1, 1]])))
    found = ranking_metrics(scores, None, wanted, [2], torch.tensor([3.0, 5.0, 9.0, 7.0]))
    assert float(found["psp@2"]) == pytest.approx(5 / 16)
    assert float(found["psp-legacy@2"]) == pytest.approx(5 / 2 / 16)


def test_the_best_ranking_has_every_metric_at_one() -> None:
    wanted = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    rows = sparse_rows(sp.csr_matrix(wanted))
    propensities = inverse_propensities(torch.tensor([5.0, 1.0, 2.0, 9.0, 1.0]))
    found = ranking_metrics(torch.from_numpy(wanted * 1.0), None, rows, [2], propensities)
    for name in ("hr@2", "ndcg@2", "recall@2", "psp@2"):
        assert np.allclose(found[name], 1), name
    assert np.allclose(auc(torch.from_numpy(wanted * 1.0), None, rows), 1)


def test_rare_items_have_high_inverse_propensities_by_the_formula() -> None:
    found = inverse_propensities(torch.tensor([10.0, 0.0, 90.0]))
    expected = [1 + (math.log(100) - 1) * 2.5**0.55 * (count + 1.5) ** -0.55 for count in (10, 0, 90)]
    assert np.allclose(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_scikit_learn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (8, 20)).astype(float)
    parts = rng.integers(0, 3, (8, 20))
    parts[:, 0], parts[:, 1] = 2, 0
    found = auc(
        torch.from_numpy(scores), sparse_rows(sp.csr_matrix(parts == 1)), sparse_rows(sp.csr_matrix(parts == 2))
    )
    unseen = parts != 1
    expected = [roc_auc_score(parts[u, unseen[u]] == 2, scores[u, unseen[u]]) for u in range(8)]
    assert np.allclose(found, expected)


def test_all_metrics_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 3, (30, 12))
    parts[:, 0], parts[:, 1], parts[0] = 2, 0, 0  # the first user wants nothing, and is left out
    histories, wanted = sp.csr_matrix(parts == 1), sp.csr_matrix(parts == 2)
    popular = torch.arange(12.0)
    found = all_metrics(lambda rows: popular.expand(len(rows), -1), Holdout(histories, wanted, chunk=7), popular, (2,))
    order = [[i for i in range(11, -1, -1) if parts[u, i] != 1] for u in range(1, 30)]
    hits = [np.mean([parts[u, i] == 2 for i in order[u - 1][:2]]) for u in range(1, 30)]
    attainable = [min(2, (parts[u] == 2).sum()) / 2 for u in range(1, 30)]
    assert found["hr@2"] == pytest.approx(np.mean(np.array(hits) / attainable))
    assert found["coverage@2"] == pytest.approx(len({i for row in order for i in row[:2]}) / 12)
    aucs = [roc_auc_score(parts[u, sorted(order[u - 1])] == 2, sorted(order[u - 1])) for u in range(1, 30)]
    assert found["auc"] == pytest.approx(np.mean(aucs))
    # The pooled list: all wanted items against sampled others, which here can be counted whole.
    positive = [i for u in range(1, 30) for i in range(12) if parts[u, i] == 2]
    negative = [np.array([i for i in range(12) if parts[u, i] == 0]) for u in range(1, 30)]
    chances = [np.mean([np.mean(p > n) + np.mean(p == n) / 2 for n in negative if len(n)]) for p in positive]
    assert found["pooled-auc"] == pytest.approx(np.mean(chances), abs=0.02)


@pytest.mark.parametrize(
    ("histories", "wanted", "message"),
    [
        (np.eye(3), sp.csr_matrix(np.eye(3)), "must be"),
        (sp.csr_matrix((3, 4)), sp.csr_matrix(np.eye(3)), "same users and items"),
        (sp.csr_matrix((3, 3)), sp.csr_matrix((3, 3)), "Nobody has held-out items"),
    ],
    ids=["dense", "shapes", "empty"],
)
def test_a_holdout_that_cannot_be_is_refused(histories: object, wanted: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Holdout(histories, wanted)


@pytest.mark.parametrize("seed", range(5))
def test_of_equal_scores_the_first_item_leads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (30, 12)).astype(float)
    scores[scores == 0] = -np.inf  # as seen items are
    scores[0] = rng.permutation(12)  # no ties
    for k in (1, 3, 11, 12):
        found = leading(torch.from_numpy(scores), k)
        # NumPy sorts by the last key first: columns decide where the negative scores are equal.
        wanted = np.stack([np.lexsort((np.arange(12), -row))[:k] for row in scores])
        assert np.array_equal(found.indices.numpy(), wanted)
        assert np.array_equal(found.values.numpy(), np.take_along_axis(scores, wanted, 1))


def test_a_model_of_equal_scores_recommends_the_first_items() -> None:
    rows, wanted = (sparse_rows(sp.csr_matrix(np.eye(6)[places])) for places in ([0, 1], [1, 5]))
    flat = torch.zeros(2, 6)
    assert ranking_metrics(flat, rows, wanted, [1])["hr@1"].tolist() == [1, 0]
    assert ranking_metrics(flat, rows, wanted, [5])["hr@5"].tolist() == [1, 1]
