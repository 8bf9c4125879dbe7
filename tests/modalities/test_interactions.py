"""The modality of recommender logs: batches, loss, kernel, scores, exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.recommender import SparseRows, sparse_rows
from datastill.checks import check_modality
from datastill.errors import InputError
from datastill.loop import distill
from datastill.modalities.interactions import InteractionsModality
from datastill.modalities.interactions_init import cluster_means
from datastill.modalities.interactions_rows import Held
from datastill.modalities.interactions_table import Interactions
from datastill.objectives.kernel_ridge import KernelRidge
from datastill.rng import generator

COMMUNITIES, ITEMS_EACH = 6, 10


def community_logs(users: int = 90, seed: int = 0) -> dict[str, list[str]]:
    """Users who have 7 items of their community and one of any; ids are strings."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[str]] = {"user_id": [], "item_id": []}
    for user in range(users):
        own = user % COMMUNITIES * ITEMS_EACH + rng.permutation(ITEMS_EACH)[:7]
        for item in {*own.tolist(), int(rng.integers(COMMUNITIES * ITEMS_EACH))}:
            found["user_id"].append(f"u{user:03}")
            found["item_id"].append(f"item {item:02}")
    return found


@pytest.fixture(scope="module")
def modality() -> InteractionsModality:
    return InteractionsModality.from_logs(community_logs(), width=32)


def small() -> InteractionsModality:
    return InteractionsModality.from_logs(community_logs(24), width=8)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "gumbel", "draws": 4, "cardinality": 0.1},
        {"init": "noise", "weighted": False, "temperature": 1.0},
        {"init": "active", "init_scale": 1.0, "export_length": 3},
        {"init": "kmeans"},
        {"sampler": "weights", "interactions": 40},
    ],
    ids=["mean field", "gumbel", "noise", "active", "clusters", "weights"],
)
def test_it_keeps_the_contract(options: dict[str, Any]) -> None:
    check_modality(small(), **options)


# --- real batches -----------------------------------------------------------------------------------------------------


def test_all_real_users_are_their_training_rows(modality: InteractionsModality) -> None:
    batch = modality.real()
    assert np.array_equal(batch.inputs.dense().numpy(), modality.splits.train.toarray())
    assert np.array_equal(modality.encode(batch.targets).numpy(), modality.splits.train.toarray())


def test_a_part_of_each_row_is_held_out(modality: InteractionsModality) -> None:
    batch = modality.real(1000, rng=generator(0))
    assert isinstance(batch.targets, Held)
    read, held = batch.inputs.dense(), modality.encode(batch.targets)
    assert torch.equal(read, batch.targets.seen.dense())
    assert not bool((read * held).any())
    together = sorted(map(tuple, (read + held).tolist()))
    assert together == sorted(map(tuple, modality.splits.train.toarray().tolist()))
    counts = (read + held).sum(1)
    assert torch.equal(held.sum(1), torch.clamp(torch.round(0.2 * counts), min=1))


def test_what_is_held_out_is_drawn_afresh_and_evenly() -> None:
    logs = sp.csr_matrix(np.ones((4, 10)))
    modality = InteractionsModality.from_logs(logs, holdout=0.5)
    rng = generator(0)
    total = sum(modality.encode(modality.real(4, rng=rng).targets) for _ in range(300))
    train = modality.splits.train.toarray() > 0
    assert isinstance(total, torch.Tensor)
    # 4 of each user's 8 training items are hidden: each user comes once in every draw, in any order.
    share = total.sum(0).numpy() / (300 * train.sum(0))
    assert np.allclose(share, 0.5, atol=0.06)


def test_a_single_item_is_read_and_asked_for() -> None:
    logs = {"user": [0, 1, 1, 1, 1], "item": [0, 0, 1, 2, 3]}
    modality = InteractionsModality.from_logs(logs)
    batch = modality.real(2, rng=generator(0))
    row = int((batch.inputs.starts.diff() == 1).logical_and(batch.targets.seen.starts.diff() == 0).nonzero()[0])
    assert torch.equal(batch.inputs.dense()[row], batch.targets.rows.dense()[row])


def test_no_holdout_gives_whole_rows() -> None:
    modality = InteractionsModality.from_logs(community_logs(24), holdout=0)
    batch = modality.real(5, rng=generator(0))
    assert isinstance(batch.targets, SparseRows)
    assert torch.equal(batch.inputs.dense(), batch.targets.dense())


# --- loss and kernel --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_log_probabilities_by_hand(modality: InteractionsModality) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 8))
    weights = (rng.random((5, 8)) < 0.4) * rng.random((5, 8))
    weights[:, 0], weights[:, 1] = 0.5, 0
    seen = np.zeros((5, 8))
    seen[:, 1] = 1
    seen[2, 3:6] = weights[2, 3:6] = 0
    outputs = torch.from_numpy(logits)

    def expected(ranked: np.ndarray) -> float:
        total = 0.0
        for user in range(5):
            among = sum(np.exp(logits[user, item]) for item in range(8) if ranked[user, item])
            total += sum(weights[user, item] * -np.log(np.exp(logits[user, item]) / among) for item in range(8))
        return total / weights.sum()

    dense, sparse = torch.from_numpy(weights), sparse_rows(sp.csr_matrix(weights))
    assert float(modality.loss(outputs, dense)) == pytest.approx(expected(np.ones((5, 8))))
    assert float(modality.loss(outputs, sparse)) == pytest.approx(expected(np.ones((5, 8))))
    held = Held(sparse, sparse_rows(sp.csr_matrix(seen)))
    assert float(modality.loss(outputs, held)) == pytest.approx(expected(seen == 0))
    assert float(modality.ridge_loss(outputs, held)) == pytest.approx(expected(seen == 0))


def test_masked_items_leave_second_derivatives_finite(modality: InteractionsModality) -> None:
    outputs = torch.randn(2, 4, generator=generator(0), requires_grad=True)
    rows = sparse_rows(sp.csr_matrix(np.array([[1, 0, 0, 0], [0, 1, 0, 0]])))
    seen = sparse_rows(sp.csr_matrix(np.array([[0, 0, 1, 1], [0, 0, 0, 1]])))
    (grad,) = torch.autograd.grad(modality.loss(outputs, Held(rows, seen)), outputs, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), outputs)
    assert bool(second.isfinite().all())
    assert second[0, 2:].tolist() == [0, 0]


def test_the_infinite_autoencoder_is_the_closed_form_of_the_paper(modality: InteractionsModality) -> None:
    rows = modality.splits.train.toarray().astype(np.float64)
    width = rows.shape[1]
    inner, norm = 2 * rows @ rows.T / width + 0.01, 2 * rows.sum(1) / width + 0.01
    scale = np.sqrt(np.outer(norm, norm))
    angle = np.arccos(np.clip(inner / scale, -1, 1))
    first = scale * (np.sin(angle) + (np.pi - angle) * inner / scale) / (2 * np.pi)
    gram = 2 * first + 0.01 + 2 * (np.pi - angle) / (2 * np.pi) * inner
    expected = gram @ np.linalg.solve(gram + 5 * np.trace(gram) / len(gram) * np.eye(len(gram)), rows)
    modality.to(dtype=torch.float64)
    try:
        batch = modality.real()
        machine = modality.kernel("ntk").fit(batch.inputs, modality.encode(batch.targets), 5.0)
        assert np.allclose(machine(batch.inputs).numpy(), expected, atol=1e-8)
    finally:
        modality.to(dtype=torch.float32)


def test_fitting_a_kernel_takes_the_ridge_that_validates_best(modality: InteractionsModality) -> None:
    batch = modality.read(modality.subset([12], rng=generator(3)))
    chosen = modality.fit(batch, "nngp", rng=generator(0))
    scores = [
        modality.score(InfiniteMachine(modality, batch, ridge), "validation")["ndcg@10"] for ridge in modality.ridges
    ]
    assert modality.score(chosen, "validation")["ndcg@10"] == pytest.approx(max(scores))


def test_a_retuned_ridge_is_the_one_that_validates_best_at_each_turn() -> None:
    modality = InteractionsModality.from_logs(community_logs(24), width=8, metric="hr@100", ridges=(1e-3, 1.0, 50.0))
    summary = modality.summary([5], rng=generator(0), init="noise")
    objective = KernelRidge(retune=2, real_size=None)
    objective.start(modality, summary)
    for step in range(4):
        loss = objective.loss(generator(step))
        if step % 2 == 0:
            expected = modality.choose_ridge(summary().detach(), modality.kernel())
        fixed = KernelRidge(ridge=expected, real_size=None)
        fixed.start(modality, summary)
        assert torch.equal(loss, fixed.loss(generator(step)))
        objective.after_step(generator(step))
        with torch.no_grad():
            summary.logits.add_(torch.randn(summary.logits.shape, generator=generator(step)))
    again = KernelRidge(retune=2, real_size=None)
    again.start(modality, summary)
    again.load_state_dict(objective.state_dict())
    assert again.state_dict() == objective.state_dict() == {"step": 4, "tuned": expected}
    with pytest.raises(InputError, match="retune"):
        KernelRidge(kernel="features", retune=2)


class InfiniteMachine:
    """A kernel machine put together outside of the modality, on dense rows."""

    def __init__(self, modality: InteractionsModality, batch: Any, ridge: float) -> None:
        self.support = batch.inputs.dense()
        self.kernel = InfiniteReLU(1, "nngp")
        self.machine = self.kernel.fit(self.support, self.support, ridge)

    def __call__(self, rows: SparseRows) -> torch.Tensor:
        return self.machine(rows.dense())


# --- scores -----------------------------------------------------------------------------------------------------------


def test_users_are_read_through_what_may_be_known(modality: InteractionsModality) -> None:
    seen: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
    for split, rows in seen.items():

        def predictor(inputs: SparseRows, rows: list[np.ndarray] = rows) -> torch.Tensor:
            rows.append(inputs.dense().numpy())
            return torch.zeros(len(inputs), inputs.width)

        modality.score(predictor, split)  # type: ignore[arg-type]
    train, validation = modality.splits.train.toarray(), modality.splits.validation.toarray()
    assert np.array_equal(np.concatenate(seen["validation"]), train)
    assert np.array_equal(np.concatenate(seen["test"]), train + validation)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_an_oracle_scores_one_and_the_known_items_score_nothing(chunk: int) -> None:
    modality = InteractionsModality.from_logs(community_logs(), chunk=chunk)
    start = 0

    def oracle(inputs: SparseRows) -> torch.Tensor:
        nonlocal start
        rows = modality.splits.test.toarray()[start : start + len(inputs)]
        start += len(inputs)
        # What is known gets the highest scores; it must not take up places of the ranking.
        return torch.from_numpy(rows) + 5 * inputs.dense()

    assert modality.score(oracle, "test") == {"hr@10": 1, "ndcg@10": 1, "hr@100": 1, "ndcg@100": 1}
    assert modality.score(lambda inputs: 5 * inputs.dense(), "test")["hr@10"] < 0.5


def test_every_way_to_learn_finds_the_communities(modality: InteractionsModality) -> None:
    for name in (*modality.learners, *modality.kernels):
        scores = modality.score(modality.fit(modality.real(), name, rng=generator(0)), "test")
        assert scores["hr@10"] > 0.8, name


def test_there_may_be_no_test_split() -> None:
    modality = InteractionsModality.from_logs(community_logs(24), test=0)
    predictor = modality.fit(modality.real(), rng=generator(0))
    assert 0 <= modality.score(predictor, "validation")["ndcg@10"] <= 1
    with pytest.raises(InputError, match="no test interactions"):
        modality.score(predictor, "test")


# --- summaries --------------------------------------------------------------------------------------------------------


def test_gumbel_rows_are_sums_of_draws_of_one_item_cut_off_at_one() -> None:
    # At a low temperature a draw is one item, drawn by softmax(logits) with replacement: 1 - (1 - p)^draws of the rows have it.
    modality = small()
    summary = modality.summary([2], rng=generator(0), init="noise", sampler="gumbel", draws=4, temperature=1e-3)
    chances = summary.logits.detach().softmax(1)
    mean = torch.stack([summary(generator(seed)).inputs.detach() for seed in range(2000)]).mean(0)
    assert torch.allclose(mean, 1 - (1 - chances) ** 4, atol=0.04)
    warm = modality.summary([2], rng=generator(0), init="noise", sampler="gumbel", draws=4, temperature=10.0)
    rows = warm(generator(0)).inputs.detach()
    assert torch.allclose(rows.sum(1), torch.tensor(4.0), atol=1e-4)  # nothing is cut off where all draws are soft
    assert not torch.equal(rows, warm(generator(1)).inputs.detach())


def test_mean_field_rows_are_the_formula(modality: InteractionsModality) -> None:
    summary = modality.summary([4], rng=generator(0), draws=30, temperature=2.0)
    logits = summary.logits.detach().double().numpy()
    weights = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    assert np.allclose(summary.rows().detach().numpy(), np.minimum(1, 30 * weights), atol=1e-5)


def test_real_starts_have_the_items_of_real_users_on_top(modality: InteractionsModality) -> None:
    rows = (modality.summary([5], rng=generator(0)).logits > 0).int().tolist()
    assert all(row in modality.splits.train.toarray().tolist() for row in rows)
    counts = modality.splits.train.sum(1).A1
    active = modality.summary([5], rng=generator(0), init="active").logits
    assert (active > 0).sum(1).tolist() == sorted(counts, reverse=True)[:5]


def test_clustered_starts_are_parts_of_communities(modality: InteractionsModality) -> None:
    start = modality.summary([3 * COMMUNITIES], rng=generator(0), init="kmeans")
    rows = start.rows().detach()
    assert torch.allclose(rows.sum(1), start.masses, rtol=1e-4)
    shares = rows.reshape(-1, COMMUNITIES, ITEMS_EACH).sum(2) / rows.sum(1, keepdim=True)
    # 7 of 8 items are of a user's own community, and the start spreads a tenth of the mass over all items.
    assert float(shares.max(1).values.median()) > 0.7
    assert len(set(shares.argmax(1).tolist())) == COMMUNITIES
    same_mass = modality.summary([2], rng=generator(0), init="kmeans", draws=5).masses
    assert same_mass.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("clusters", [1, 5, 90])
def test_cluster_means_are_means_of_users(modality: InteractionsModality, clusters: int) -> None:
    rows = modality.splits.train
    means = cluster_means(rows, clusters, generator(0))
    assert means.shape == (clusters, rows.shape[1])
    if clusters == 1:
        assert np.allclose(means[0], np.asarray(rows.mean(0)).ravel())
    elif clusters == 90:
        assert sorted(map(tuple, means.tolist())) == sorted(map(tuple, rows.toarray().tolist()))
    else:
        unit = rows.toarray() / np.linalg.norm(rows.toarray(), axis=1, keepdims=True)
        from sklearn.cluster import KMeans

        best = KMeans(clusters, n_init=5, random_state=0).fit(unit)
        starts = [means, *(cluster_means(rows, clusters, generator(seed)) for seed in range(1, 5))]
        ours = [start / np.linalg.norm(start, axis=1, keepdims=True) for start in starts]
        theirs = best.cluster_centers_ / np.linalg.norm(best.cluster_centers_, axis=1, keepdims=True)
        assert max((unit @ centres.T).max(1).mean() for centres in ours) > 0.95 * (unit @ theirs.T).max(1).mean()


def test_an_export_has_the_weightiest_items_by_their_ids(modality: InteractionsModality) -> None:
    summary = modality.summary([3], rng=generator(0), export_length=4, init="noise")
    rows = summary.rows().detach().numpy()
    table = summary.export()
    for user in range(3):
        mine = table.users == user
        best = np.argsort(-rows[user])[:4]
        assert set(table.items[mine].tolist()) == set(modality.splits.item_ids[best].tolist())
        assert table.weights is not None
        assert np.isclose(sorted(table.weights[mine]), sorted(rows[user][best])).all()
    assert modality.size(table) == modality.size(table).__class__(3, 12 * 12)
    bare = modality.summary([3], rng=generator(0), export_length=4, init="noise", weighted=False).export()
    assert bare.weights is None
    assert modality.size(bare).nbytes == 12 * 8


def test_the_usual_export_is_as_long_as_real_users_are(modality: InteractionsModality) -> None:
    table = modality.summary([3], rng=generator(0)).export()
    assert len(table) == 3 * round(modality.splits.train.nnz / 90)


def test_a_subset_is_real_users_as_they_are(modality: InteractionsModality) -> None:
    table = modality.subset([7], rng=generator(0))
    assert modality.size(table).points == table.num_users == 7
    rows, users, _ = table.to_csr(modality.splits.item_ids)
    where = [modality.splits.user_ids.tolist().index(user) for user in users]
    assert (rows != modality.splits.train[where]).nnz == 0
    assert modality.full_size().nbytes == 8 * modality.splits.train.nnz


def test_string_ids_survive_packing(modality: InteractionsModality) -> None:
    for table in (modality.summary([3], rng=generator(0)).export(), modality.subset([3], rng=generator(0))):
        again = modality.unpack(*modality.pack(table))
        assert again.items.tolist() == table.items.tolist()
        assert again.users.tolist() == table.users.tolist()


def test_the_cardinality_penalty_is_that_of_the_sample(modality: InteractionsModality) -> None:
    options: dict[str, Any] = {"sampler": "gumbel", "draws": 6, "export_length": 5}
    summary = modality.summary([4], rng=generator(0), cardinality=0.3, **options)
    sample = summary(generator(1)).inputs
    penalty = summary.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.3 * float(sample.detach().sum(1).mean()) / 25)
    assert modality.summary([4], rng=generator(0), **options).penalty() is None


def test_distilled_users_beat_as_many_random_ones(modality: InteractionsModality) -> None:
    summary = modality.summary([COMMUNITIES], rng=generator(0))
    distill(modality, summary, KernelRidge(ridge=0.1), steps=40, lr=0.2, progress=False)
    random = [
        modality.score(
            modality.fit(modality.read(modality.subset([COMMUNITIES], rng=generator(seed))), rng=generator(0)), "test"
        )
        for seed in range(5)
    ]
    for batch in (summary().detach(), modality.read(summary.export())):
        ours = modality.score(modality.fit(batch, rng=generator(0)), "test")
        assert ours["ndcg@10"] > max(scores["ndcg@10"] for scores in random)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.summary([91], rng=generator(0)), "users must be at most 90.*got 91"),
        (lambda m: m.subset([91], rng=generator(0)), "users must be at most 90.*got 91"),
        (lambda m: m.summary([0], rng=generator(0)), "users must be an integer of at least 1, got 0"),
        (lambda m: m.summary([2, 2], rng=generator(0)), "one group"),
        (lambda m: m.summary([2], rng=generator(0), init="reel"), "Did you mean 'real'"),
        (lambda m: m.summary([2], rng=generator(0), sampler="gumble"), "Did you mean 'gumbel'"),
        (lambda m: m.summary([2], rng=generator(0), temprature=1), "Did you mean 'temperature'"),
        (lambda m: m.summary([2], rng=generator(0), temperature=0), "temperature must be a positive number, got 0"),
        (lambda m: m.summary([2], rng=generator(0), draws=0), "draws must be an integer of at least 1"),
        (lambda m: m.summary([2], rng=generator(0), draws=60), "draws must be below the number of items, 60"),
        (lambda m: m.summary([2], rng=generator(0), export_length=0), "export_length must be an integer"),
        (lambda m: m.summary([2], rng=generator(0), init_scale=-1), "init_scale must be a positive number"),
        (lambda m: m.summary([2], rng=generator(0), cardinality=-1), "cardinality must be at least 0"),
        (lambda m: m.score(lambda rows: rows.dense(), "train"), "Unknown split 'train'"),
        (lambda m: m.real(1, groups=[1], rng=generator(0)), "one group, 0; got group 1"),
        (lambda m: m.read(Interactions(np.array([0]), np.array(["nothing"]))), "not in the target dataset"),
    ],
)
def test_bad_arguments_are_refused(modality: InteractionsModality, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(modality)


@pytest.mark.parametrize(
    ("logs", "options", "message"),
    [
        ({"user": [1, 2, 3], "item": [5, 5, 5]}, {}, "1 item.*at least 2 distinct items"),
        ({"user": [1, 1, 1], "item": [1, 2, 3]}, {"holdout": 1.0}, r"holdout must be a number in \[0, 1\), got 1.0"),
        ({"user": [1, 1, 1], "item": [1, 2, 3]}, {"core": 4}, "core=4 leaves no interaction"),
        ({"user": [1, 1, 1], "item": [1, 2, 2]}, {"duplicates": "refuse"}, "repeated"),
        ({"user": [1, 1, 1], "item": [1, 2, 2]}, {}, "No user has 3 distinct items"),
    ],
)
def test_bad_logs_are_refused(logs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InteractionsModality.from_logs(logs, **options)
