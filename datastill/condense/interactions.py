"""`condense_interactions`: a recommender log in, far fewer rows out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from datastill.budget import most_points, one_budget
from datastill.condense.common import Job, condenser, find_recipe
from datastill.errors import InputError, check_count, require
from datastill.modalities.interactions import PAIR_BYTES, InteractionsModality
from datastill.modalities.interactions_table import Interactions
from datastill.recipe import Recipe

_USERS = 500
_ROWS = 20  # of a user, for a budget in weighted rows: fewer say little of who they are
_WEIGHTED_BYTES = PAIR_BYTES + 4  # a row with its weight


def target(
    logs: Any,
    *,
    recipe: str | Recipe | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    min_rating: float | None = None,
    time_column: str | None = None,
    split_column: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    split: str = "random",
    core: int = 1,
    duplicates: str = "once",
    unseen: str = "keep",
    max_items: int | None = 20_000,
    store: str | Path | None = None,
    seed: int = 0,
) -> InteractionsModality:
    """The target dataset of `condense_interactions` with these arguments, which are all that decide it and where it is kept."""
    return InteractionsModality.from_logs(
        logs,
        user_column=user_column,
        item_column=item_column,
        rating_column=rating_column,
        min_rating=min_rating,
        time_column=time_column,
        split_column=split_column,
        validation=validation,
        test=test,
        split=split,
        core=core,
        duplicates=duplicates,
        unseen=unseen,
        max_items=max_items,
        store=store,
        seed=seed,
        **find_recipe(recipe, "interactions").target,
    )


@condenser
def condense_interactions(
    logs: Any,
    *,
    users: int | None = None,
    interactions: int | None = None,
    nbytes: int | None = None,
    recipe: str | Recipe | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    rating_column: str | None = None,
    min_rating: float | None = None,
    time_column: str | None = None,
    split_column: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    split: str = "random",
    core: int = 1,
    duplicates: str = "once",
    unseen: str = "keep",
    max_items: int | None = 20_000,
    store: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> Job[Interactions]:
    """Distil a log of user-item interactions into rows of a few synthetic users, on which a recommender trains almost as well.

    Args:
        logs: .parquet, .csv, .tsv or RecBole .inter files (a path, a list of paths, a folder or a glob pattern), a pandas,
            polars or Arrow table, or a SciPy sparse matrix (users, items).
        users: synthetic users in the result, at least 1 and at most the number of real ones; None is 500, or as many as there
            are, or fewer for a budget in rows or bytes: one for every 20 weighted rows, or as many users as fit.
        interactions: rows in the result, at least one a synthetic user; None is as many as so many real users have on average.
            For recipes of weighted rows, as the default is.
        nbytes: most bytes that the result may take, in place of `interactions`: of a weighted row 12, of one without weight 8
            (integer ids; others are counted as such).
        recipe: one of `datastill.recipes` for interactions, or None for the default. Where a log has no more items than
            the recipe has draws, a quarter of the items are drawn.
        user_column: name of the column of user ids, integers or strings; None finds the usual names.
        item_column: name of the column of item ids, likewise.
        rating_column: name of the column that `min_rating` is about; None finds the usual names.
        min_rating: least rating that counts as an interaction; None counts all rows.
        time_column: name of the column of times, for `split="time"`; None finds the usual names.
        split_column: name of a column that says train, validation or test; None splits each user's items at random or by time.
        validation: fraction of each user's items that is set apart to select the summary, in (0, 0.4].
        test: fraction that is never used in distillation and on which `evaluate` scores a job's result, in [0, 0.4].
        split: "random", or "time" to set the latest items of each user apart.
        core: every user and item keeps at least this many interactions; others are dropped.
        duplicates: of a (user, item) pair: "once" keeps one, "refuse" is an error.
        unseen: of held-out items that nobody has in training: "keep" scores them as misses, "drop" leaves them out, "refuse" is
            an error.
        max_items: where a log has more items, the synthetic users have the most popular ones alone, and `Result.learned["scope"]`
            says what share of the log that is; None is for all items, with users * items * 16 bytes of memory or more.
        store: folder for the log in its final form, memory-mapped shards, found there the next time; None keeps it in memory,
            or a log of more than 16 million interactions in a temporary folder.
        seed: of everything random.
        steps: outer steps, in place of the recipe's.
        out: run folder for the artifact, the metrics and checkpoints from which a killed run goes on. None writes nothing.
        device: where to compute; None is the CPU.
        memory: bytes that the run may use, such as "4GiB": chunks are made to fit, which changes numbers by rounding alone. None
            is the environment variable DATASTILL_MEMORY, or what is free.
        progress: whether a progress bar is shown on stderr.

    Returns:
        (user, item, weight) rows with the original item ids; synthetic users are 0, 1, ..., and their rows have no times, also
        where those of the log have: a synthetic user stands for many real ones, whose orders differ. `weight` > 0 says how
        strongly an item counts, 1 being about what it is for a real user. A recommender that takes no weights ignores it.

    Raises:
        InputError: for logs or arguments that cannot be used, before work starts.
    """
    if users is not None:
        check_count("users", users)
    one_budget(interactions=interactions, nbytes=nbytes)
    chosen = find_recipe(recipe, "interactions")
    modality = target(
        logs,
        recipe=chosen,
        user_column=user_column,
        item_column=item_column,
        rating_column=rating_column,
        min_rating=min_rating,
        time_column=time_column,
        split_column=split_column,
        validation=validation,
        test=test,
        split=split,
        core=core,
        duplicates=duplicates,
        unseen=unseen,
        max_items=max_items,
        store=store,
        seed=seed,
    )
    if chosen.summary.get("draws", 0) >= modality.items:  # a recipe's are for logs of thousands of items
        chosen = dataclasses.replace(chosen, summary={**chosen.summary, "draws": max(1, modality.items // 4)})
    weighted = chosen.summary.get("sampler") == "weights"
    most = min(len(modality.trained), _USERS) if users is None else users
    if nbytes is not None and weighted:
        interactions = nbytes // _WEIGHTED_BYTES
        users = _users_of(interactions, most) if users is None else users
        require(
            interactions >= max(1, users),
            f"nbytes={nbytes:,} is too little for {max(1, users):,} users: each needs a row, of {_WEIGHTED_BYTES} bytes.",
        )
    elif nbytes is not None:
        (users,) = most_points(
            modality, chosen, nbytes, lambda count: [count], least=1 if users is None else users, most=most, seed=seed
        )
    if interactions is not None:
        if not weighted:
            raise InputError(
                f"interactions is for recipes of weighted rows; recipe {chosen.name!r} exports rows by users."
            )
        users = _users_of(interactions, most) if users is None else users
        chosen = dataclasses.replace(chosen, summary={**chosen.summary, "interactions": interactions})
    options = {"seed": seed, "steps": steps, "out": out, "device": device, "progress": progress, "nbytes": nbytes}
    return Job(modality, [most if users is None else users], chosen, options)


def _users_of(rows: int, most: int) -> int:
    """Synthetic users for so many weighted rows, at most `most`."""
    return max(1, min(most, rows // _ROWS))
