"""`condense_graphs`: many small graphs in, a few synthetic PyG graphs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from datastill.budget import CODECS, finest_codec, most_points
from datastill.condense.common import Job, condenser, find_recipe
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.graphs import ADJACENCIES, GraphsModality
from datastill.modalities.graphs_data import Splits
from datastill.recipe import Recipe


def target(
    data: Any,
    *,
    recipe: str | Recipe | None = None,
    split: Splits | None = None,
    metric: Literal["accuracy", "roc_auc"] | None = None,
    integers: Literal["onehot", "number"] | None = None,
    seed: int = 0,
) -> GraphsModality:
    """The target dataset of `condense_graphs` with these arguments, which are all that decide it."""
    asked = {**find_recipe(recipe, "graphs").target, **({} if integers is None else {"integers": integers})}
    return GraphsModality(data, split=split, metric=metric, seed=seed, **asked)


@condenser
def condense_graphs(
    data: Any,
    *,
    per_class: int | None = None,
    nbytes: int | None = None,
    codec: str | None = None,
    nodes: int | None = None,
    adjacency: Literal["bernoulli", "none"] | None = None,
    recipe: str | Recipe | None = None,
    split: Splits | None = None,
    metric: Literal["accuracy", "roc_auc"] | None = None,
    integers: Literal["onehot", "number"] | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> Job[list[Any]]:
    """Distil labelled graphs into `per_class` small graphs of each class, on which a graph network trains almost as well.

    Args:
        data: a PyG dataset or a list of `torch_geometric.data.Data` with edge_index, one class in y, and x. Where no graph
            has x a node is its degree, one-hot, and that is the x of the synthetic graphs. Nothing is changed.
        per_class: graphs of each class in the result, at least 1; None is 10, or as many as fit into `nbytes`.
        nbytes: most bytes that the result may take. Edges, and what an entropy-coding codec saves, count as they are before
            anything is optimised; what takes more later is not selected, so fewer graphs (`per_class` beside `nbytes`) leave room
            for it. With `per_class` and no codec it decides the precision of features that are numbers: the finest codec by which
            so many graphs fit, entropy coding apart.
        codec: how such features are stored: "float32", "float16", "int8", "int4" or "int2", with "-entropy" behind it
            entropy-coded too. The result then has the bytes that they are decoded from as `coded`.
        nodes: nodes of the largest synthetic graph; None is the mean of the training graphs.
        adjacency: edges of the result, in place of the recipe's choice: "bernoulli" (free) or "none" (networks read the
            features as already propagated).
        recipe: one of `datastill.recipes` for graphs, or None for the default.
        split: {"train": positions, "valid": positions, "test": positions}; None is the dataset's own `get_idx_split`, or a
            tenth for validation and a tenth for testing at random. Test graphs are never used in distillation.
        metric: by which the summary is selected; None is what an OGB dataset says, else accuracy.
        integers: what integer x is: "onehot" (categories; synthetic nodes are of categories that there are) or "number"; None is
            the recipe's choice.
        seed: of everything random.
        steps: outer steps, in place of the recipe's.
        out: run folder for the artifact, the metrics and checkpoints from which a killed run goes on. None writes nothing.
        device: where to compute; None is the CPU.
        memory: bytes that the run may use, such as "4GiB": chunks are made to fit, which changes numbers by rounding alone. None
            is the environment variable DATASTILL_MEMORY, or what is free.
        progress: whether a progress bar is shown on stderr.

    Returns:
        A list of `Data` on the CPU with x (as the input has it: numbers, or categories), edge_index with both directions of
        each edge, and y of the shape that y has in `data`.

    Raises:
        InputError: for data or arguments that cannot be used, before work starts.
    """
    for name, number in (("per_class", per_class), ("nbytes", nbytes)):
        if number is not None:
            check_count(name, number)
    chosen = find_recipe(recipe, "graphs")
    if adjacency is not None:
        chosen = _with_adjacency(chosen, adjacency)
    if nodes is not None:
        chosen = dataclasses.replace(chosen, summary={**chosen.summary, "nodes": check_count("nodes", nodes)})
    modality = target(data, recipe=chosen, split=split, metric=metric, integers=integers, seed=seed)
    counts: Sequence[int] = [per_class or 10] * modality.num_groups
    require(
        per_class is None or sum(counts) <= sum(modality.group_sizes),
        f"{sum(counts):,} graphs are asked for, and {sum(modality.group_sizes):,} are there to be distilled: ask for fewer.",
    )
    stored: dict[str, Any] = {} if codec is None else {"codec": codec}
    if nbytes is not None and per_class is not None:
        choice = chosen.objective is not None and codec is None and modality.codec.exact
        found = finest_codec(modality, chosen, nbytes, counts, CODECS if choice else (None,), seed=seed, **stored)
        stored |= {} if found is None else {"codec": found}
    elif nbytes is not None:
        most = min(modality.group_sizes)
        counts = most_points(
            modality, chosen, nbytes, lambda count: [count] * modality.num_groups, most=most, seed=seed, **stored
        )
    options: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "out": out,
        "device": device,
        "progress": progress,
        "nbytes": nbytes,
    }
    return Job(modality, counts, chosen, {**options, **stored})


def _with_adjacency(recipe: Recipe, adjacency: str) -> Recipe:
    """The recipe with other edges; a summary without edges has no rate for them."""
    if adjacency not in ADJACENCIES:
        raise unknown_name("adjacency", adjacency, ADJACENCIES)
    lr = recipe.lr
    if adjacency == "none" and isinstance(lr, Mapping):
        lr = {name: rate for name, rate in lr.items() if name != "adjacency"}
    return dataclasses.replace(recipe, summary={**recipe.summary, "adjacency": adjacency}, lr=lr)
