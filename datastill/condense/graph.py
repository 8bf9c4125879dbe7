"""`condense_graph`: a PyG `Data` in, a PyG `Data` with a few dozen nodes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from datastill.budget import CODECS, finest_codec, most_points, one_budget
from datastill.condense.common import Job, condenser, find_recipe
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.graph import ADJACENCIES, GraphModality
from datastill.modalities.graph_data import SplitChoice
from datastill.recipe import Recipe

_IN_MEMORY = (
    2**28
)  # numbers in the features of a graph, 1 GiB; of larger ones a run folder keeps the propagated in files


def target(
    data: Any,
    *,
    recipe: str | Recipe | None = None,
    split: SplitChoice = 0,
    setting: Literal["transductive", "inductive"] = "transductive",
    unlabelled: Literal["ignore", "teach"] | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> GraphModality:
    """The target dataset of `condense_graph` with these arguments, which are all that decide it and where it is kept."""
    if unlabelled is None:
        asked = find_recipe(recipe, "graph").target.get("unlabelled", "ignore")
        unlabelled = asked if setting == "transductive" else "ignore"
    if (
        cache is None
        and out is not None
        and isinstance(getattr(data, "x", None), torch.Tensor)
        and data.x.numel() > _IN_MEMORY
    ):
        cache = Path(out) / "propagated"
    return GraphModality(data, split=split, setting=setting, unlabelled=unlabelled, cache=cache, seed=seed)


@condenser
def condense_graph(
    data: Any,
    *,
    ratio: float | None = None,
    nodes: int | None = None,
    per_class: int | None = None,
    nbytes: int | None = None,
    codec: str | None = None,
    adjacency: Literal["none", "learned", "bernoulli"] | None = None,
    recipe: str | Recipe | None = None,
    split: SplitChoice = 0,
    setting: Literal["transductive", "inductive"] = "transductive",
    unlabelled: Literal["ignore", "teach"] | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> Job[Any]:
    """Distil a graph whose nodes have classes into a small one on which any graph network trains almost as well.

    Give exactly one of `ratio`, `nodes` and `per_class`, or `nbytes` in their place or beside one of them. With all but
    `per_class` the classes share the budget as they share the training nodes, at least one node each.

    Args:
        data: a `torch_geometric.data.Data` with x, edge_index, y and, where there are, edge_weight and masks; it is not
            changed. `datastill.modalities.graph_data.read_graph` says what is made where masks or x are missing.
        ratio: synthetic nodes as a share of ALL nodes in `data`, labelled or not, in (0, 1]; rounded down. On Cora's
            2,708 nodes 0.013 is 35 nodes, a quarter of its 140 training nodes.
        nodes: synthetic nodes in all.
        per_class: synthetic nodes of each class.
        nbytes: most bytes that the result may take, features, edges and labels. Where an entropy-coding
            codec or learned edges decide how many, as many nodes fit as fill them before anything is optimised, and what takes
            more later is not selected, so fewer nodes (another budget beside `nbytes`) leave room for it. Beside another budget
            and without `codec` it decides the precision of the features: the finest codec by which so many nodes fit, entropy
            coding apart.
        codec: how features are stored: "float32", "float16", "int8", "int4" or "int2", with "-entropy" behind it entropy-coded
            too. The result then has the bytes that x is decoded from as `coded`.
        adjacency: edges of the result, in place of the recipe's choice: "none" (networks read its features as already
            propagated), "learned" from features, or "bernoulli" (free).
        recipe: one of `datastill.recipes` for graphs, or None for the default.
        split: which column of masks of shape (n, splits), or {"train": ids, "valid": ids, "test": ids}.
        setting: "transductive" or "inductive" (distil the graph of the training nodes alone).
        unlabelled: "teach" lets nodes without a training label join the target dataset, with the classes that a kernel
            machine gives them which learned from the training labels; "ignore" leaves them their features only. None is
            the recipe's choice in the transductive setting, which is "teach" for the default and "ignore" for published
            methods, and "ignore" in the inductive one, where training sees no such nodes.
        cache: folder for the propagated features of a large graph, as many numbers as `x` has, which are then mapped from files
            instead of kept in memory. None is memory; with `out` and features of more than 1 GiB it is the folder "propagated"
            in `out`, which may be deleted after the run.
        seed: of everything random.
        steps: outer steps, in place of the recipe's.
        out: run folder for the artifact, the metrics and checkpoints from which a killed run goes on. None writes
            nothing.
        device: where to compute; None is the CPU.
        memory: bytes that the run may use, such as "4GiB": chunks are made to fit, which changes numbers by rounding alone. None
            is the environment variable DATASTILL_MEMORY, or what is free.
        progress: whether a progress bar is shown on stderr.

    Returns:
        A `Data` on the CPU with x (in the input's scale), edge_index (a loop at each node where no edges are learned),
        edge_weight (if edges are learned from features), y (soft if the recipe learns labels) and train_mask (all
        True). PyG's networks train on it as on any other graph.

    Raises:
        InputError: for data or arguments that cannot be used, before work starts.
    """
    points: dict[str, Any] = {"ratio": ratio, "nodes": nodes, "per_class": per_class}
    if nbytes is not None:
        check_count("nbytes", nbytes)
    if any(value is not None for value in points.values()):
        one_budget(**points)
    else:
        one_budget(needed=True, **points, nbytes=nbytes)
    chosen = find_recipe(recipe, "graph")
    if adjacency is not None:
        chosen = _with_adjacency(chosen, adjacency)
    modality = target(
        data, recipe=chosen, split=split, setting=setting, unlabelled=unlabelled, cache=cache, seed=seed, out=out
    )
    stored = {} if codec is None else {"codec": codec}
    if per_class is not None:
        counts: Sequence[int] = [per_class] * modality.num_classes
    elif ratio is None and nodes is None and nbytes is not None:
        least, most = modality.num_classes, sum(modality.full_sizes)
        counts = most_points(modality, chosen, nbytes, modality.allocate, least=least, most=most, seed=seed, **stored)
    else:
        counts = modality.allocate((nodes or 0) if ratio is None else int(ratio * modality.num_nodes))
    require(
        sum(counts) <= modality.num_nodes,
        f"{sum(counts):,} nodes are asked for, and the graph has {modality.num_nodes:,}: ask for fewer.",
    )
    if nbytes is not None and any(value is not None for value in points.values()):
        codecs = CODECS if chosen.objective is not None and codec is None else (None,)
        found = finest_codec(modality, chosen, nbytes, counts, codecs, seed=seed, **stored)
        stored |= {} if found is None else {"codec": found}
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
    """The recipe with other edges; a summary without edges has no rate or turn for them."""
    if adjacency not in ADJACENCIES:
        raise unknown_name("adjacency", adjacency, ADJACENCIES)
    lr, alternate = recipe.lr, recipe.alternate
    if adjacency == "none":
        if isinstance(lr, Mapping):
            lr = {name: rate for name, rate in lr.items() if name != "adjacency"}
        if alternate is not None and "adjacency" in alternate:
            alternate = None
    return dataclasses.replace(recipe, summary={**recipe.summary, "adjacency": adjacency}, lr=lr, alternate=alternate)
