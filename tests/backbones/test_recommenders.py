"""Recommenders against dense linear algebra, the published figures, and logs whose structure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill.backbones import recommenders
from datastill.backbones.recommender import sparse_rows
from datastill.errors import InputError
from datastill.recommenders import ALS, EASE, Holdout, InfiniteAutoencoder, MultVAE, Popularity, Recommender

MOVIELENS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "interactions" / "ml-1m" / "ml-1m.csv.gz"


def weighted(users: int, items: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return ((rng.random((users, items)) < 0.4) * rng.random((users, items))).astype(np.float32)


def communities(users: int = 60, seed: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Users who have 6 of the 10 items of their community, and two more of them held out."""
    rng = np.random.default_rng(seed)
    histories, wanted = np.zeros((users, 40)), np.zeros((users, 40))
    for user in range(users):
        own = user % 4 * 10 + rng.permutation(10)
        histories[user, own[:6]], wanted[user, own[6:8]] = 1, 1
    return sp.csr_matrix(histories), sp.csr_matrix(wanted)


def ease_by_the_book(rows: np.ndarray, ridge: float) -> np.ndarray:
    """Algorithm 1 of the paper."""
    inverse = np.linalg.inv(rows.T @ rows + ridge * np.eye(rows.shape[1]))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("users", [5, 30], ids=["fewer users than items", "more users than items"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_ease_is_the_papers_on_either_side(users: int, form: str) -> None:
    rows = weighted(users, 12)
    model = EASE(ridge=0.7).fit(sp.csr_matrix(rows) if form == "sparse" else torch.from_numpy(rows))
    histories = weighted(4, 12, seed=1)
    expected = histories @ ease_by_the_book(rows.astype(float), 0.7)
    assert np.allclose(model(torch.from_numpy(histories)), expected, atol=1e-5)


def test_the_infinite_autoencoder_is_ridge_regression_of_rows_on_themselves() -> None:
    rows, histories = weighted(8, 12), weighted(3, 12, seed=1)
    model = InfiniteAutoencoder(depth=2, ridge=0.3).fit(sp.csr_matrix(rows))
    train, test = torch.from_numpy(rows), torch.from_numpy(histories)
    gram = model.kernel(train, train).numpy().astype(float)
    shifted = gram + 0.3 * np.trace(gram) / 8 * np.eye(8)
    expected = model.kernel(test, train).numpy() @ np.linalg.solve(shifted, rows)
    assert np.allclose(model(test), expected, atol=1e-4)


def test_popularity_adds_weights() -> None:
    rows = weighted(6, 5)
    for users in (sp.csr_matrix(rows), torch.from_numpy(rows)):
        assert np.allclose(Popularity().fit(users)(torch.zeros(2, 5)), np.tile(rows.sum(0), (2, 1)))


def all_recommenders(factors: int = 4) -> list[Recommender]:
    found = [EASE(), InfiniteAutoencoder(), MultVAE(hidden=32, latent=8, steps=200)]
    try:
        import implicit  # noqa: F401
    except ModuleNotFoundError:
        return found
    return [*found, ALS(factors)]


@pytest.mark.parametrize("model", all_recommenders(), ids=lambda model: type(model).__name__)
def test_users_get_the_other_items_of_their_community(model: Recommender) -> None:
    histories, wanted = communities()
    model.fit(histories, Holdout(histories, wanted))
    newcomers, theirs = communities(8, seed=1)
    items, scores = model.recommend(newcomers, 4, chunk=3)
    assert items.shape == scores.shape == (8, 4)
    assert np.mean(items // 10 == np.arange(8)[:, None] % 4) > 0.9  # by chance: 0.1
    assert not np.take_along_axis(newcomers.toarray(), items, 1).any()
    assert (np.diff(scores) <= 0).all()
    assert Holdout(newcomers, theirs).score(model)["recall@10"] > 0.9


@pytest.mark.parametrize("model", all_recommenders(factors=1), ids=lambda model: type(model).__name__)
def test_weights_count(model: Recommender) -> None:
    # Item 0 goes with item 1 in heavy rows and with item 2 in rows of a hundredth of the weight.
    pairs = [[3.0, 3.0, 0, 0]] * 10 + [[0.03, 0, 0.03, 0]] * 10 + [[0, 0, 0, 1.0]] * 5
    histories, wanted = sp.csr_matrix(np.array([[1.0, 0, 0, 0]])), sp.csr_matrix(np.array([[0, 1.0, 0, 0]]))
    model.fit(sp.csr_matrix(np.array(pairs)), Holdout(histories, wanted, metric="ndcg@1"))
    assert model.recommend(histories, 1)[0].item() == 1


def test_the_best_ridge_on_held_out_items_is_taken() -> None:
    histories, wanted = communities()
    holdout = Holdout(histories, wanted)
    for make in (lambda ridge: EASE(ridge), lambda ridge: InfiniteAutoencoder(ridge=ridge)):
        ridges = (1e-4, 1e-2, 1.0, 1e2, 1e4)
        alone = [holdout.score(make(ridge).fit(histories))["ndcg@10"] for ridge in ridges]
        assert make(ridges).fit(histories, holdout).ridge == ridges[int(np.argmax(alone))]


def test_a_ridge_that_leaves_equal_users_singular_is_passed_over() -> None:
    rows = sp.csr_matrix(np.tile([[1.0, 0, 1.0, 0]], (4, 1)))
    wanted = sp.csr_matrix(np.tile([[0, 1.0, 0, 0]], (4, 1)))
    with pytest.raises(InputError, match="Gram matrix of these users is singular"):
        InfiniteAutoencoder(ridge=0).fit(rows)
    assert InfiniteAutoencoder(ridge=(0, 0.5)).fit(rows, Holdout(rows, wanted)).ridge == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EASE().recommend(sp.csr_matrix((1, 3))), "has not been fitted"),
        (lambda: EASE().fit(sp.csr_matrix(np.eye(3))), "need validate"),
        (lambda: EASE(ridge=0), "must be positive"),
        (lambda: EASE(ridge=1).fit(sp.eye(30_001).tocsr()), "30,001 x 30,001"),
        (lambda: InfiniteAutoencoder(ridge=-1), "at least 0"),
        (lambda: Popularity().fit(sp.csr_matrix(-np.eye(3))), "at least 0"),
        (lambda: Popularity().fit(sp.csr_matrix((0, 3))), "no users"),
        (lambda: Popularity().fit(np.eye(3)), "SciPy sparse matrix"),
        (lambda: Popularity().fit(sp.csr_matrix(np.eye(3))).recommend(sp.csr_matrix((1, 4))), "fitted to 3 items"),
        (lambda: Popularity().fit(sp.csr_matrix(np.eye(3))).recommend(sp.csr_matrix((1, 3))), "k must be at most 3"),
        (lambda: MultVAE(dropout=1), "dropout"),
        (lambda: ALS(alpha=0), "alpha"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_mult_vae_is_the_same_for_equal_seeds_and_keeps_the_best_moment() -> None:
    histories, wanted = communities()
    holdout = Holdout(histories, wanted)
    fits = [MultVAE(hidden=16, latent=4, steps=60).fit(histories, holdout, seed=seed) for seed in (0, 0, 1)]
    scores = [fit(torch.eye(40)) for fit in fits]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    last = MultVAE(hidden=16, latent=4, steps=60).fit(histories, seed=0)
    assert holdout.score(fits[0])["ndcg@10"] >= holdout.score(last)["ndcg@10"]


@pytest.mark.slow
@pytest.mark.skipif(not MOVIELENS.exists(), reason="needs MovieLens-1M beside the checkout")
def test_movielens_1m_gives_the_figures_of_the_reference_program() -> None:
    pandas = pytest.importorskip("pandas")
    log = pandas.read_csv(MOVIELENS)
    users, items = log.user.astype("category").cat.codes, log.item.astype("category").cat.codes
    parts = {}
    for name in ("train", "val", "test"):
        rows = (log.split == name).to_numpy()
        parts[name] = sp.csr_matrix((np.ones(rows.sum()), (users[rows], items[rows])), shape=(6040, 3706))
    holdout = Holdout(parts["train"] + parts["val"], parts["test"])
    for model, expected in (
        (EASE(ridge=1000), (0.32258, 0.34068, 0.59982)),
        (InfiniteAutoencoder(ridge=5), (0.31906, 0.33394, 0.60913)),
    ):
        found = holdout.score(model.fit(parts["train"]))
        assert [found[name] for name in ("hr@10", "ndcg@10", "hr@100")] == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -3)])
def test_users_that_it_was_fitted_to_are_scored_without_a_kernel_as_with_one(order: slice) -> None:
    train, wanted = communities()
    train = sp.vstack([train, train[:3]]).tocsr()  # equal users have equal scores
    wanted = sp.vstack([wanted, wanted[:3]]).tocsr()
    inside = Holdout(train[order], wanted[order])
    places = recommenders._places(inside.histories, sparse_rows(train))
    assert places is not None
    assert torch.equal(sparse_rows(train).take(places).dense(), inside.histories.dense())
    model = InfiniteAutoencoder(ridge=(0.1, 1.0, 10.0)).fit(train, inside)
    scores = [inside.score(InfiniteAutoencoder(ridge=ridge).fit(train), [10])["ndcg@10"] for ridge in (0.1, 1.0, 10.0)]
    assert model.ridge == (0.1, 1.0, 10.0)[int(np.argmax(scores))]
    other = train[order].copy()
    other.data = 2 * other.data
    assert recommenders._places(Holdout(other, wanted[order]).histories, sparse_rows(train)) is None


def test_products_of_items_are_summed_in_float64_over_chunks_of_users_and_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = weighted(50, 6)
    rows[:25] *= 1e4  # in float32 the others would be lost in rounding
    sparse = sparse_rows(sp.csr_matrix(rows)).csr()
    wide = rows.astype(np.float64)
    monkeypatch.setattr(recommenders, "_USERS", 7)
    found = recommenders._item_gram(sparse)
    np.testing.assert_allclose(found.numpy(), wide.T @ wide, rtol=1e-13)
    np.testing.assert_allclose(recommenders._item_gram(torch.from_numpy(rows)).numpy(), wide.T @ wide, rtol=1e-13)
    parts = []
    monkeypatch.setattr("datastill.processes.size", lambda: 3)
    monkeypatch.setattr("datastill.processes.total", lambda values: values)
    for rank in range(3):
        monkeypatch.setattr("datastill.processes.rank", lambda rank=rank: rank)
        parts.append(recommenders._item_gram(sparse).numpy())
    assert all(0 < part.sum() < found.sum() for part in parts)
    np.testing.assert_allclose(sum(parts), wide.T @ wide, rtol=1e-13)
