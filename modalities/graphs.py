"""Sets of small graphs with a class each, such as molecules: PyG graphs in, a few synthetic PyG graphs out.

The real side is sparse and in one piece, with A X and the pooled A^k X of every graph computed once; the synthetic side is a
dense batch, so that edges can be learned. Learners read both, see `datastill.backbones.graph_batch.Graphs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from datastill import memory
from datastill.backbones.base import Learner, Predictor
from datastill.backbones.batch import map_tensors, tensors_of
from datastill.backbones.chunks import parts_of
from datastill.backbones.graph_batch import Graphs, Pool, owners_of
from datastill.backbones.graphs import PooledGCN, ProfileMLP
from datastill.backbones.nodes import normalised
from datastill.backbones.training import Protocol
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Batch, Size, Split, Summary
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.codec import Codec
from datastill.modalities.graph_adjacency import BernoulliEdges
from datastill.modalities.graph_initial import pick_nodes, separate
from datastill.modalities.graph_native import decoded_features, without_zeros
from datastill.modalities.graphs_data import GraphSet, Splits, read_graphs, read_parts
from datastill.modalities.graphs_features import Integers, features_for
from datastill.modalities.graphs_initial import INITS, central_graphs, cut, fitting
from datastill.modalities.graphs_metrics import roc_auc
from datastill.modalities.graphs_native import StoredGraphs, set_of_tensors, size_of, tensors_of_set, to_list
from datastill.modalities.graphs_protocols import DOSCOND, PUBLISHED
from datastill.modalities.graphs_summary import GraphsSummary, RoundedGraphsSummary
from datastill.rng import generator

ADJACENCIES = ("none", "bernoulli")
METRICS = ("accuracy", "roc_auc")
_CHUNK = 1024  # held-out graphs scored at a time, at most
_KEPT = 2**30  # bytes of held-out graphs whose batches are kept, at most


class GraphsModality(ClassificationModality):
    """Graph classification.

    Args:
        data: a PyG dataset (TUDataset, OGB's PygGraphPropPredDataset) or a list of `torch_geometric.data.Data`, each with
            edge_index, one class in y, and x unless no graph has any: then a node is its degree, one-hot. Floating x is
            taken as it is. Attributes of edges are not read. Nothing is changed.
        split: {"train": ..., "valid": ..., "test": ...}, positions or masks of graphs; None is the dataset's own
            `get_idx_split`, or a tenth for testing and a tenth for validation at random.
        metric: "accuracy" or "roc_auc" (two classes); None is what an OGB dataset says, else accuracy.
        integers: what integer x, such as OGB's atom features, is: "onehot" (categories, each column one-hot over the values
            in the training graphs; synthetic nodes are exported as categories) or "number" (as floats, as DosCond has it).
        hops: K >= 0 of the profile mean A^k X, k = 0, ..., K, that kernels and the learner "profile" read.
        hidden: units of the learners.
        pool: "mean" or "sum" over the nodes, of the GCN.
        seed: of a split that has to be made.

    Raises:
        InputError: for an argument that is not allowed, or a graph in which anything is missing or wrong.
    """

    kind = "graphs"
    learners = ("gcn", "profile")
    published = PUBLISHED
    # Many molecules share their profile with another one, which leaves their Gram matrix singular without a ridge.
    ridges = (1e-3, 1e-2, 1e-1, 1.0)

    def __init__(
        self,
        data: Any,
        *,
        split: Splits | None = None,
        metric: Literal["accuracy", "roc_auc"] | None = None,
        integers: Integers = "onehot",
        hops: int = 2,
        hidden: int = 128,
        pool: Pool = "mean",
        seed: int = 0,
    ) -> None:
        self.hops = check_count("hops", hops, least=0)
        self.hidden = check_count("hidden", hidden)
        if pool not in ("mean", "sum"):
            raise unknown_name("pool", pool, ("mean", "sum"))
        self.pool: Pool = pool
        if metric is None:
            metric = "roc_auc" if getattr(data, "eval_metric", None) == "rocauc" else "accuracy"
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        self.graphs = read_graphs(data)
        self.parts = read_parts(data, split, self.graphs.labels, seed)
        classes = int(self.graphs.labels.max()) + 1
        require(metric == "accuracy" or classes == 2, f"metric='roc_auc' needs two classes, the data have {classes}.")
        self.integers = integers
        self.metric = metric  # type: ignore[misc]  # OGB's datasets name theirs, so it is not the class's
        train = self.parts["train"]
        nodes = torch.isin(owners_of(self.graphs.sizes), train)
        x = None if self.graphs.x is None else self.graphs.x[nodes]
        self.codec = features_for(x, self.graphs.degrees[nodes], integers)
        self._everything = self._encoded(self.graphs)
        self._members = [train[self.graphs.labels[train] == label] for label in range(classes)]
        self._held: dict[str, list[Batch]] = {}
        self._here: Graphs | None = None
        profile = self._everything.take(train).profile(self.hops)
        self._centre = profile.mean(0)
        self._spread = (profile - self._centre).square().mean((0, 2)).sqrt().clamp(min=1e-6)[:, None]
        self.scale = float(self._everything.features[nodes].square().mean().sqrt()) or 1.0
        self.mean_nodes = max(1, round(float(self.graphs.sizes[train].double().mean())))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Hand out batches and learners on `device` and in `dtype` from now on. Returns self."""
        before = self.device, self.dtype
        super().to(device, dtype)
        if (self.device, self.dtype) != before:
            self._held, self._here = {}, None
        return self

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    def group_sizes(self) -> list[int]:
        """Training graphs of each class."""
        return [len(members) for members in self._members]

    def _encoded(self, graphs: GraphSet) -> Graphs:
        """Graphs as learners read them, with what is constant about them."""
        features = self.codec.encode(graphs.x, graphs.degrees)
        bare = Graphs(features, owners_of(graphs.sizes), len(graphs))
        if graphs.edge_index.numel() == 0:
            return bare
        return replace(bare, adjacency=normalised(graphs.edge_index, None, len(features))).constant(self.hops)

    def _batch(self, index: Tensor) -> Batch:
        if self._here is None:  # all graphs, on the device
            self._here = map_tensors(self._moved, self._everything)
        labels = self.graphs.labels[index].to(self.device)
        return Batch(self._here.take(index.to(self.device)), labels, labels)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        """Training graphs, in one sparse piece."""
        chosen = []
        for group in groups:
            members = self._members[group]
            if size is not None and size < len(members):
                members = members[torch.randperm(len(members), generator=rng)[:size]]
            chosen.append(members)
        return self._batch(torch.cat(chosen))

    def held_out(self, split: Split) -> Iterable[Batch]:
        """The graphs of a held-out part, 1024 at a time, or as many as fit into memory."""
        if split not in self._held:
            everything = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(self._everything))
            bytes_each = everything // len(self.graphs)
            chunks = self.parts[split].split(memory.chunk(2 * bytes_each, self.device, most=_CHUNK))
            batches = (self._batch(chunk) for chunk in chunks)
            if not memory.fits(bytes_each * len(self.parts[split]), self.device, most=_KEPT):
                return batches
            self._held[split] = list(batches)
        return self._held[split]

    def fingerprint(self) -> str:
        """A sha256 hex digest of the graphs, their labels and the split."""
        return self.graphs.fingerprint(self.parts)

    def identity(self) -> dict[str, str]:
        """What is scored, and what integer features mean."""
        return {"metric": self.metric, "integers": self.integers}

    # --- learners, kernels, scores ------------------------------------------------------------------------------------

    def build(self, name: str) -> Learner:
        """By name: "gcn" (three pooled convolutions, DosCond's) or "profile" (one hidden layer on mean A^k X)."""
        if name == "profile":
            return ProfileMLP(self.codec.width, self.num_classes, hops=self.hops, hidden=self.hidden)
        return PooledGCN(self.codec.width, self.num_classes, hidden=self.hidden, pool=self.pool)

    def vectors(self, inputs: Graphs) -> Tensor:
        """The profile of a graph, centred, each hop scaled so that its mean square in training is 1."""
        profile = inputs.profile(self.hops)
        return ((profile - self._centre.to(profile)) / self._spread.to(profile)).flatten(1)

    _PROTOCOLS: ClassVar[dict[str, Protocol]] = {
        "gcn": DOSCOND,
        "profile": Protocol(500, "adam", 1e-2, batch_size=128, schedule="drop", validate_every=25),
    }

    def protocol(self, learner: str) -> Protocol:
        """500 steps of Adam on at most 128 graphs, from half way at a tenth of the rate; the best of every 25th is kept.

        On up to 128 graphs these are the 500 epochs of DosCond's protocol, at its learning rate for "gcn", 1e-3.
        """
        return self._PROTOCOLS[learner]

    @torch.no_grad()
    def score(self, predictor: Predictor, split: Split) -> dict[str, float]:
        """Accuracy on the held-out graphs and, of two classes, the area under the ROC curve of the second; in [0, 1]."""
        batches = [part for whole in self.held_out(split) for part in parts_of(predictor, whole, most=len(whole))]
        outputs = torch.cat([predictor(batch.inputs) for batch in batches])
        labels = torch.cat([batch.targets for batch in batches])
        found = {"accuracy": float((outputs.argmax(1) == labels).double().mean())}
        if self.metric == "roc_auc":
            found["roc_auc"] = roc_auc(outputs[:, 1] - outputs[:, 0], labels == 1)
        return found

    # --- summaries and native datasets --------------------------------------------------------------------------------

    def summary(
        self,
        counts: Sequence[int],
        *,
        rng: torch.Generator,
        init: str | Tensor = "real",
        adjacency: str = "bernoulli",
        nodes: int | None = None,
        padding: str = "drop",
        temperature: tuple[float, float] = (1.0, 0.01),
        anneal: int = 200,
        sparsity_weight: float = 0.1,
        start: float = 5.0,
        codec: str | None = None,
        **unknown: Any,
    ) -> Summary:
        """`counts[c]` synthetic graphs of each class, in blocks by class.

        Args:
            counts: graphs of each class, at least one.
            rng: of the initial values.
            init: "real" (random training graphs that fit), "central" (those nearest to class-wise k-means centres of the
                profiles), "noise" (normal features of the data's scale, random edges of the data's density), or positions
                of training graphs in `full`, which are cut where they are too large.
            adjacency: "bernoulli" (a free probability for each pair of nodes, DosCond's) or "none" (learners read features
                as already propagated).
            nodes: N', nodes of the largest synthetic graph; None is the mean of the training graphs. Real graphs that are
                larger are not taken, or cut where a class has no others.
            padding: of a graph that starts from one with fewer nodes: "drop" leaves it at that, "keep" (DosCond) fills it
                up with nodes whose features and edges are zero at first.
            temperature: of "bernoulli": first and last temperature of the relaxed sample.
            anneal: steps between the two, and until categories are nearly one-hot.
            sparsity_weight: of "bernoulli": how much more edges than at the start are penalised.
            start: of "bernoulli": logit of an initial edge, and minus that of the other pairs.
            codec: how features that are numbers are stored: None in full, or one of `codec.NAMES`. The rounding is part of
                what is optimised.
        """
        if unknown:
            options = ("adjacency", "nodes", "padding", "temperature", "anneal", "sparsity_weight", "start", "codec")
            raise unknown_name("graphs summary option", next(iter(unknown)), options)
        for what, value, known in (
            ("init", init if isinstance(init, str) else "real", INITS),
            ("adjacency", adjacency, ADJACENCIES),
            ("padding", padding, ("drop", "keep")),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        require(
            len(counts) == self.num_groups,
            f"counts must have one number for each of the {self.num_groups} classes, got {len(counts)}.",
        )
        for label, count in enumerate(counts):
            check_count(f"counts[{label}]", count)
        numbers = None if codec is None else Codec(codec)
        require(
            numbers is None or self.codec.exact,
            f"codec={codec!r} is for features that are numbers; the nodes of these graphs are of categories, which are integers.",
        )
        most = self.mean_nodes if nodes is None else check_count("nodes", nodes)
        if isinstance(init, str):
            how = init
            chosen = torch.cat([self._pick(how, label, count, most, rng) for label, count in enumerate(counts)])
        else:
            how, chosen = "real", torch.cat(self._members)[self.check_chosen(init, counts)]
        sizes = self.graphs.sizes[chosen].clamp(max=most)
        if padding == "keep" or how == "noise":
            sizes = torch.full_like(sizes, most)
        features, links = self._initial(how, chosen, most, rng)
        edges = None
        if adjacency == "bernoulli":
            edges = BernoulliEdges(links, temperature, anneal, sparsity_weight, start)
        kind = GraphsSummary if edges is None and self.codec.exact else RoundedGraphsSummary
        labels = torch.repeat_interleave(torch.arange(self.num_groups), torch.tensor(counts))
        shape = self.graphs.label_shape
        scale = self.scale if self.codec.exact else 1.0  # of logits there is no scale in the data
        made = kind(
            features,
            sizes,
            labels,
            scale=scale,
            codec=self.codec,
            label_shape=shape,
            anneal=anneal,
            edges=edges,
            numbers=numbers,
        )
        return made.to(self.device, self.dtype)

    def _pick(self, init: str, label: int, count: int, most: int, rng: torch.Generator) -> Tensor:
        members = fitting(self._members[label], self.graphs.sizes, most)
        if init == "central":
            return central_graphs(members, self.vectors(self._everything.take(members)), count, rng)
        return pick_nodes(members, count, rng)

    def _initial(self, init: str, chosen: Tensor, most: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features (b, most, d) and edges (b, most, most) to start from; graphs that repeat differ by a little noise."""
        real = self._everything.take(chosen)
        parts = real.features.split(real.sizes.tolist())
        blocks = [cut(part, graph.edge_index, most) for part, graph in zip(parts, to_list(self.graphs, chosen))]
        features, links = (torch.stack(column) for column in zip(*blocks))
        if init == "noise":
            density = float(links.mean())
            drawn = (torch.rand(links.shape, generator=rng) < density).float().triu(1)
            noise = torch.randn(features.shape, generator=rng) * self.scale
            return self.codec.relax(noise.flatten(0, 1)).reshape(noise.shape), drawn + drawn.mT
        return separate(features.flatten(1), self.scale, rng).reshape(features.shape), links

    def read(self, dataset: list[Any]) -> Batch:
        """A list of `Data` like those of `export` and `subset`."""
        graphs = read_graphs(dataset)
        return Batch(self._encoded(graphs), graphs.labels, graphs.labels).to(self.device, self.dtype)

    def pick(self, index: Tensor) -> list[Any]:
        """Training graphs, as they were given."""
        return to_list(self.graphs, torch.cat(self._members)[index])

    def size(self, dataset: list[Any]) -> Size:
        """Graphs, and bytes of their tensors; features are coded, or count as dense or as sparse rows, whichever takes less."""
        return size_of(read_graphs(dataset), getattr(dataset, "coded", None))

    def stored_bytes(self, counts: Sequence[int], *, codec: str | None = None, **options: Any) -> int:
        """Bytes that a summary takes with the edges that it begins with, whatever entropy coding of its features saves."""
        plain = None if codec is None else Codec(codec).plain
        made = self.summary(counts, rng=generator("stored bytes"), codec=plain, **options).export()
        for graph in made:
            without_zeros(graph)
        found = self.size(made).nbytes
        return found + (codec != plain)  # entropy coding keeps what it does not shorten, behind one byte

    def full_size(self) -> Size:
        """Training graphs, and their bytes."""
        return size_of(read_graphs(to_list(self.graphs, self.parts["train"])))

    @staticmethod
    def pack(dataset: list[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of all graphs end to end, without x where it is coded; then its shape is beside them."""
        tensors, meta = tensors_of_set(read_graphs(dataset))
        if not isinstance(dataset, StoredGraphs):
            return tensors, meta
        return {**tensors, "coded": dataset.coded}, {**meta, "x": list(tensors.pop("x").shape)}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> list[Any]:
        """The inverse of `pack`."""
        if "coded" not in tensors:
            return to_list(set_of_tensors(tensors, meta))
        x = decoded_features(tensors["coded"], tuple(meta["x"]))
        return StoredGraphs(to_list(set_of_tensors({**tensors, "x": x}, meta)), tensors["coded"])
