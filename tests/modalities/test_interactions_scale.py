"""Logs with many items and many users: what is left out is counted, and what is sampled is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill.backbones.ranking import ranking_metrics
from datastill.backbones.recommender import SparseRows, sparse_rows
from datastill.checks import check_modality
from datastill.condense.interactions import condense_interactions
from datastill.modalities import interactions_io
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_popular import most_popular
from datastill.rng import generator


def log(users: int = 80, items: int = 40, seed: int = 0) -> dict[str, Any]:
    """Popularity falls with the item's number."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, items + 1)
    rows = [rng.choice(items, 8, replace=False, p=shares / shares.sum()) for _ in range(users)]
    return {"user": np.repeat(np.arange(users), 8), "item": np.concatenate(rows) * 3}


def test_the_most_popular_items_are_kept_and_the_others_counted() -> None:
    whole = InteractionsModality.from_logs(log()).splits
    counts = whole.train.sum(0).A1
    few = most_popular(whole, 10)
    kept = np.sort(np.argsort(-counts, kind="stable")[:10])
    assert few.item_ids.tolist() == whole.item_ids[kept].tolist()
    for name in ("train", "validation", "test"):
        narrow, full = getattr(few, name), getattr(whole, name)
        assert np.array_equal(narrow[:].toarray(), full.toarray()[:, kept])
        assert np.array_equal(narrow[np.array([5, 3])].toarray(), full.toarray()[[5, 3]][:, kept])
        if name != "train":
            others = np.setdiff1d(np.arange(full.shape[1]), kept)
            assert few.missing[name].tolist() == full.toarray()[:, others].sum(1).tolist()
    assert few.share == pytest.approx(counts[kept].sum() / counts.sum())
    assert most_popular(whole, 1000) is whole
    assert most_popular(whole, None) is whole


def test_what_cannot_be_found_is_a_miss_by_hand() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    relevant = sparse_rows(sp.csr_matrix(np.array([[1.0, 0, 0, 0]])))
    found = ranking_metrics(scores, None, relevant, [2], missing=torch.tensor([2]))
    # 3 items are held out, 1 of them is ranked first: HR@2 is 1/2, recall@2 1/3, nDCG@2 1 / (1 + 1 / log2(3)).
    assert float(found["hr@2"]) == pytest.approx(1 / 2)
    assert float(found["recall@2"]) == pytest.approx(1 / 3)
    assert float(found["ndcg@2"]) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_scores_over_few_items_are_those_of_a_ranking_of_all() -> None:
    """A predictor that never recommends the others scores the same whether they are there or not."""
    whole = InteractionsModality.from_logs(log(), chunk=7)
    few = InteractionsModality.from_logs(log(), chunk=7, max_items=10)
    kept = np.searchsorted(whole.splits.item_ids, few.splits.item_ids)
    worth = torch.randn(10, generator=generator(0))

    def over_few(rows: SparseRows) -> torch.Tensor:
        return worth.expand(len(rows), -1)

    def over_all(rows: SparseRows) -> torch.Tensor:
        scores = torch.full((len(rows), whole.items), -1e9)
        scores[:, kept] = worth
        return scores

    for split in ("validation", "test"):
        narrow, wide = few.score(over_few, split), whole.score(over_all, split)  # type: ignore[arg-type]
        assert narrow["hr@10"] <= wide["hr@10"] + 1e-9  # a ranking of all may end with items beside the ten
        assert few.held_out(split).missing is not None  # type: ignore[arg-type]
        assert len(few.held_out(split)) == len(whole.held_out(split))  # type: ignore[arg-type]


def test_it_keeps_the_contract_with_few_items_and_users() -> None:
    check_modality(InteractionsModality.from_logs(log(), max_items=12, score_users=30))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    job = condense_interactions.job(log(), users=4, max_items=10, steps=1, recipe="kip", progress=False)
    assert job.run().learned["scope"].startswith("the 10 most popular of 40 items, which carry ")
    assert InteractionsModality.from_logs(log()).scope() == ""
    sampled = InteractionsModality.from_logs(log(), score_users=20)
    assert sampled.scope() == "scores are those of 20 of 80 users, and full data stands for as many"
    assert len(sampled.held_out("test")) == len(sampled.full()) == 20


def test_a_log_on_disk_distils_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"users": 5, "steps": 1, "recipe": "kip", "max_items": 20, "progress": False}
    expected = condense_interactions(log(), **options)
    monkeypatch.setattr(interactions_io, "LOADED", 0)
    monkeypatch.setattr(interactions_io, "SHARD_ROWS", 60)
    found = condense_interactions(log(), store=tmp_path / "store", **options)
    assert found.items.tolist() == expected.items.tolist()
    assert np.array_equal(found.weights, expected.weights)  # type: ignore[arg-type]
