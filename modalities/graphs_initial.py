"""The start of synthetic graphs: which real graphs, cut to size."""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.backbones.kmeans import k_means, nearest_members

INITS = ("real", "central", "noise")


def fitting(members: Tensor, sizes: Tensor, most: int) -> Tensor:
    """Those of the graphs `members` with at most `most` nodes, or the smallest ones where there are none."""
    mine = sizes[members]
    return members[mine <= max(most, int(mine.min()))]


def central_graphs(members: Tensor, points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """The graphs nearest to `count` centres of their class by k-means, each graph as seldom as possible.

    Args:
        members: graphs of one class.
        points: (len(members), d), a vector of each.
        count: how many to pick; beyond their number graphs repeat.
        rng: of the start of k-means.
    """
    distinct = min(count, len(members))
    chosen = members[nearest_members(points, k_means(points, distinct, rng))]
    return chosen.repeat(-(-count // distinct))[:count]


def cut(features: Tensor, edge_index: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` nodes of a graph, with zeros behind: features (most, d), and undirected edges (most, most), 0 or 1."""
    filled = features.new_zeros(most, features.shape[1])
    filled[: len(features)] = features[:most]
    block = torch.zeros(most, most)
    inside = edge_index[:, (edge_index < most).all(0)]
    block[inside[0], inside[1]] = 1.0
    return filled, torch.maximum(block, block.T).fill_diagonal_(0.0)
