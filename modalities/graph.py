"""Nodes of a graph with a class each: PyG `Data` in, a small PyG `Data` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Batch, Size, Summary
from datastill.modalities.codec import Codec
from datastill.modalities.graph_adjacency import BernoulliEdges, PairMLP, SyntheticEdges
from datastill.modalities.graph_initial import INITS, class_centres, in_proportion, pick_nodes, separate
from datastill.modalities.graph_native import decoded_features, from_data, stored_size, to_data, without_zeros
from datastill.modalities.graph_summary import GraphSummary, StructuredGraphSummary
from datastill.modalities.graph_target import GraphTarget
from datastill.rng import fork, generator, isolated

ADJACENCIES = ("none", "learned", "bernoulli")
_EDGE_LOGIT = (
    4.0  # of edges that a learned Bernoulli structure starts with; of others minus that, so that few are drawn
)
_SPARSE_START = 0.05  # share of random edges in a learned Bernoulli structure that does not start from real nodes


class GraphModality(GraphTarget):
    """Nodes of a graph with a class each, what learns from them, and summaries of them.

    Arguments, learners and kernels are those of `GraphTarget`.
    """

    kind = "graph"

    def allocate(self, points: int) -> list[int]:
        """Nodes of each class in proportion to its training nodes, at least one, by largest remainders."""
        super().allocate(points)  # refuses too small a budget
        return in_proportion(self.full_sizes, points)

    def summary(
        self,
        counts: Sequence[int],
        *,
        rng: torch.Generator,
        init: str | Tensor = "real",
        adjacency: str = "none",
        labels: str = "hard",
        codec: str | None = None,
        hidden: int = 128,
        threshold: float = 0.05,
        temperature: tuple[float, float] = (1.0, 0.1),
        anneal: int = 200,
        sparsity_weight: float = 0.1,
        **unknown: Any,
    ) -> Summary:
        """A synthetic graph with `counts[c]` nodes of each class, in blocks by class.

        Args:
            counts: nodes of each class, at least one.
            rng: of the initial values.
            init: "real" (features of random training nodes), "propagated" (the same after propagation, which suits a
                summary without edges), "kmeans" (class-wise centres of propagated training nodes), "noise" (normal, of
                the scale of propagated features), or positions of training nodes in `full`, which begin as by "propagated"
                without edges and as by "real" with edges.
            adjacency: "none", "learned" (GCond's perceptron on pairs of features) or "bernoulli" (DosCond's free
                probabilities, which start from the edges among the nodes chosen by "real" or "propagated", or else from
                random ones).
            labels: "hard" (the class), or "learned": class distributions, which begin as the class and are optimised too.
            codec: how features are stored: None in full, or one of `codec.NAMES`. The rounding is part of what is optimised.
            hidden: units of "learned".
            threshold: of "learned": exported edges weigh more than this, in [0, 1).
            temperature: of "bernoulli": first and last temperature of the relaxed sample.
            anneal: of "bernoulli": steps between the two.
            sparsity_weight: of "bernoulli": how much more edges than at the start are penalised.
        """
        if unknown:
            options = (
                "adjacency",
                "labels",
                "codec",
                "hidden",
                "threshold",
                "temperature",
                "anneal",
                "sparsity_weight",
            )
            raise unknown_name("graph summary option", next(iter(unknown)), options)
        if isinstance(init, str) and init not in INITS:
            raise unknown_name("init", init, INITS)
        if adjacency not in ADJACENCIES:
            raise unknown_name("adjacency", adjacency, ADJACENCIES)
        coder = None if codec is None else Codec(codec)
        if labels not in ("hard", "learned"):
            raise unknown_name("kind of labels", labels, ("hard", "learned"))
        require(
            len(counts) == self.num_groups,
            f"counts must have one number for each of the {self.num_groups} classes, got {len(counts)}.",
        )
        for label, count in enumerate(counts):
            check_count(f"counts[{label}]", count)
        if isinstance(init, str):
            chosen = torch.cat([pick_nodes(members, count, rng) for members, count in zip(self._target[1], counts)])
        else:
            chosen = torch.cat(self._labelled)[self.check_chosen(init, counts)]
            init = "propagated" if adjacency == "none" else "real"
        classes = torch.repeat_interleave(torch.arange(self.num_groups), torch.tensor(counts))
        features = separate(self._initial(init, chosen, counts, rng), self.scale, rng)
        common: dict[str, Any] = {
            "scale": self.scale,
            "classes": self.num_groups,
            "soft_labels": labels == "learned",
            "codec": coder,
        }
        if adjacency == "none":
            return GraphSummary(features, classes, **common).to(self.device, self.dtype)
        edges: SyntheticEdges
        if adjacency == "learned":
            with isolated(fork(rng)):
                edges = PairMLP(features.shape[1], hidden, threshold)
        else:
            start = self._initial_edges(init, chosen, rng)
            edges = BernoulliEdges(start, temperature, anneal, sparsity_weight, start=_EDGE_LOGIT)
        return StructuredGraphSummary(features, classes, edges, **common).to(self.device, self.dtype)

    def _initial(self, init: str, chosen: Tensor, counts: Sequence[int], rng: torch.Generator) -> Tensor:
        view = self._view("train")
        if init == "noise":
            return torch.randn(len(chosen), view.features.shape[1], generator=rng) * self.scale
        if init == "kmeans":
            centres = []
            for members, count in zip(self._target[1], counts):
                points = view.at(members.to(self.device)).propagated(self.hops).cpu()
                centres.append(class_centres(points, count, rng))
            return torch.cat(centres)
        return view.at(chosen.to(self.device)).propagated(0 if init == "real" else self.hops).cpu()

    def _initial_edges(self, init: str, chosen: Tensor, rng: torch.Generator) -> Tensor:
        if init in ("real", "propagated"):
            distinct, where = chosen.unique(return_inverse=True)
            graph = self._parts["train"].induced(distinct)
            linked = torch.zeros(len(distinct), len(distinct))
            linked[graph.edge_index[0], graph.edge_index[1]] = 1.0
            return torch.maximum(linked, linked.T)[where][:, where]
        return (torch.rand(len(chosen), len(chosen), generator=rng) < _SPARSE_START).float()

    def read(self, dataset: Any) -> Batch:
        """A `Data` like those of `export` and `subset`: all of its nodes, or those of its train_mask."""
        graph = from_data(dataset)
        x, y = graph["x"], graph["y"]
        require(
            x.dim() == 2 and x.shape[1] == self.graph.features.shape[1],
            f"x must have {self.graph.features.shape[1]} features a node, like the target dataset, got {tuple(x.shape)}.",
        )
        groups = y.argmax(1) if y.is_floating_point() else y
        require(
            bool(x.isfinite().all()) and bool(y.isfinite().all()),
            "x and y must be finite, got NaN or infinity: repair or drop these nodes.",
        )
        require(
            len(groups) > 0 and int(groups.min()) >= 0 and int(groups.max()) < self.num_classes,
            f"y must be class ids from 0 to {self.num_classes - 1}, or distributions over these, like the target dataset's.",
        )
        require(
            "train_mask" not in graph or bool(graph["train_mask"].any()),
            "train_mask must have a node to train on, got none: leave it out to train on all.",
        )
        labels = Batch(y, y, groups).to(self.device, self.dtype)
        nodes = self._constant(x, graph["edge_index"], graph.get("edge_weight"))
        batch = Batch(nodes, labels.targets, labels.groups)
        if "train_mask" in graph and not bool(graph["train_mask"].all()):
            return batch.take(graph["train_mask"].nonzero().squeeze(1).to(self.device))
        return batch

    def pick(self, index: Tensor) -> Any:
        """The graph of these training nodes and the edges among them, as a `Data`."""
        nodes = torch.cat(self._labelled)[index]
        graph = self._parts["train"].induced(nodes)
        return to_data(
            {
                "x": graph.features,
                "edge_index": graph.edge_index,
                "y": graph.labels,
                "train_mask": torch.ones(len(nodes), dtype=torch.bool),
                **({} if graph.edge_weight is None else {"edge_weight": graph.edge_weight}),
            }
        )

    def size(self, dataset: Any) -> Size:
        """Nodes, and bytes of its tensors; features count as coded where they are, else as dense or sparse rows, the lesser."""
        return stored_size(from_data(dataset))

    def stored_bytes(self, counts: Sequence[int], *, codec: str | None = None, **options: Any) -> int:
        """Bytes that a summary takes with the edges that it begins with, whatever entropy coding of its features saves."""
        plain = None if codec is None else Codec(codec).plain
        made = self.summary(counts, rng=generator("stored bytes"), codec=plain, **options).export()
        found = self.size(without_zeros(made)).nbytes
        return found + (codec != plain)  # entropy coding keeps what it does not shorten, behind one byte

    def shapes_decide_bytes(self, **options: Any) -> bool:
        """They do where no edges are learned."""
        return options.get("adjacency", "none") == "none"

    @staticmethod
    def pack(dataset: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a `Data` by attribute, without x where it is `coded`; then its shape is beside them."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in from_data(dataset).items()}
        if "coded" not in tensors:
            return tensors, {}
        return tensors, {"x": list(tensors.pop("x").shape)}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Any:
        """A `Data` of these tensors."""
        if "coded" in tensors:
            tensors = {"x": decoded_features(tensors["coded"], tuple(meta["x"])), **tensors}
        return to_data(tensors)
