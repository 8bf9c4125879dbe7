"""`condense_interactions`, from a file to a table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datastill import condense_interactions, load, recipes
from datastill.errors import InputError
from datastill.modalities.interactions_table import Interactions

DATA = Path(__file__).resolve().parents[2] / "../shared/data/interactions"


def logs(users: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    pairs = [(f"user {u}", f"item {i}") for u in range(users) for i in rng.choice(30, 8) if u % 3 == i % 3]
    return pd.DataFrame(pairs, columns=["user_id", "item_id"])


def test_a_file_becomes_a_table_with_its_ids(tmp_path: Path) -> None:
    frame = logs()
    frame.to_parquet(tmp_path / "logs.parquet")
    state = torch.get_rng_state()
    small = condense_interactions(tmp_path / "logs.parquet", users=4, steps=3, out=tmp_path / "run", progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(small, Interactions)
    assert sorted(set(small.users.tolist())) == [0, 1, 2, 3]
    assert set(small.items.tolist()) <= set(frame["item_id"])
    again = condense_interactions(frame, users=4, steps=3, progress=False)
    assert np.array_equal(again.items, small.items)
    stored = load(tmp_path / "run" / "artifact").dataset
    assert np.array_equal(stored.items, small.items)
    assert small.weights is not None
    assert stored.weights.tolist() == small.weights.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": 0}, "users must be an integer of at least 1, got 0"),
        ({"users": 41}, "users must be at most"),
        ({"recipe": "distil-cf"}, "Did you mean 'distill-cf'"),
        ({"recipe": "gcond"}, "is for graph data, not for interactions"),
        ({"item_column": "thing"}, "item_column='thing' is not a column of the logs; there are: user_id, item_id"),
        ({"interactions": 3}, "at least the number of users, 4"),
        ({"interactions": 9, "recipe": "distill-cf"}, "recipes of weighted rows"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        condense_interactions(logs(), progress=False, **{"users": 4, **arguments})


def test_the_number_of_rows_is_asked_for_and_the_default_is_that_of_as_many_users() -> None:
    frame = logs()
    assert len(condense_interactions(frame, users=4, interactions=9, steps=3, progress=False)) == 9
    modality: Any = condense_interactions.job(frame, users=4).modality
    expected = 4 * round(modality.splits.train.nnz / len(modality.trained))
    assert len(condense_interactions(frame, users=4, steps=3, progress=False)) == expected


def test_every_recipe_runs() -> None:
    published = recipes["distill-cf"]
    few_draws = dataclasses.replace(published, summary={**published.summary, "draws": 5})
    for recipe in ("dm", "kip", few_draws, "interactions-dense"):
        small = condense_interactions(logs(), users=3, recipe=recipe, steps=2, progress=False)
        assert small.num_users == 3, recipe


@pytest.mark.skipif(not (DATA / "ml-100k/ml-100k.inter").exists(), reason="needs MovieLens-100K in ../shared/data")
def test_movielens_is_read_with_its_known_size() -> None:
    from datastill.modalities.interactions import InteractionsModality

    modality = InteractionsModality.from_logs(DATA / "ml-100k/ml-100k.inter")
    splits = modality.splits
    assert (len(splits.user_ids), len(splits.item_ids)) == (943, 1682)
    assert splits.train.nnz + splits.validation.nnz + splits.test.nnz == 100_000
    assert splits.item_ids.tolist() == list(range(1, 1683))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not (DATA / "ml-1m/ml-1m.csv.gz").exists(), reason="needs MovieLens-1M in ../shared/data")
def test_all_users_of_movielens_1m_score_as_in_the_published_program() -> None:
    from datastill.modalities.interactions import InteractionsModality

    modality = InteractionsModality.from_logs(DATA / "ml-1m/ml-1m.csv.gz", split_column="split")
    splits = modality.splits
    assert (splits.train.nnz, splits.validation.nnz, splits.test.nnz) == (791_718, 99_692, 108_799)
    batch = modality.real()
    machine = modality.kernel("ntk").fit(batch.inputs, modality.encode(batch.targets), 5.0)
    scores = modality.score(machine, "test")
    # Measured with the authors' JAX code on the same split, ridge 5.
    assert scores["hr@10"] == pytest.approx(0.31906, abs=2e-4)
    assert scores["ndcg@10"] == pytest.approx(0.33394, abs=2e-4)
    assert scores["hr@100"] == pytest.approx(0.60913, abs=2e-4)


def test_a_recipe_of_more_draws_than_items_takes_fewer() -> None:
    users = np.repeat(np.arange(40), 9)
    items = (users % 3 * 9 + np.random.default_rng(0).integers(0, 13, 360)) % 27
    job = condense_interactions.job(
        {"user": users, "item": items}, users=3, recipe="distill-cf", steps=1, progress=False
    )
    summary: Any = job.run().summary
    assert summary.logits.shape[1] == 27
    assert summary.draws == 6  # a quarter of the items
