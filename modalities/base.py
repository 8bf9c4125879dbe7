"""The contract of data: `Modality` (one kind of data, seen through its target dataset) and `Summary` (what is synthesised).

Objectives see data through this file only. A new kind of data is one new file beside it that passes
`datastill.checks.check_modality`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from datastill import processes
from datastill.backbones.base import Kernel, KernelMachine, Learner, Predictor, VectorKernel
from datastill.backbones.batch import Batch, joined, take
from datastill.backbones.infinite import InfiniteReLU
from datastill.backbones.ridge import ridge_solve
from datastill.backbones.training import Centred, Protocol, train
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.published import Published
from datastill.rng import fork, generator, isolated

__all__ = ["Batch", "Modality", "Published", "Size", "Split", "Summary"]

Split: TypeAlias = Literal["validation", "test"]


@dataclass(frozen=True)
class Size:
    """Both budgets of the survey: how many points, and how many bytes they take when stored."""

    points: int
    nbytes: int


class Summary(nn.Module, ABC):
    """D_syn: a tiny dataset whose free parameters are optimised.

    `forward` gives it as a batch, differentiable in every parameter. A stochastic summary draws a reparameterised sample
    from `rng`; without `rng` it gives its mean.
    """

    exact_export: bool = True
    """Whether `modality.read(summary.export())` equals `summary()`, up to the rounding of the dataset's number type.

    If not, evaluation reports both."""
    signed_labels: bool = False
    """Whether learned labels may have negative entries: rows of sum one, targets of regression, in place of distributions."""
    coded: bool = False
    """Whether it is stored by a code, in fewer bytes than its parameters take."""
    versions: int = 1
    """How many points are versions of one (a base in several styles); they follow each other."""
    folds: bool = False
    """Whether it has parameters for optimisation alone, which `export` folds into the points, so that nothing can be put in the
    place of one of its parameters."""

    @abstractmethod
    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """All points, in a fixed order of groups."""

    @abstractmethod
    def export(self) -> Any:
        """The summary as the dataset type that users of this modality hold: detached, discrete, in the input's scale."""

    def plan(self, steps: int) -> None:
        """Told before the first step how many there will be in all, for what is annealed over a run. Default: nothing."""
        return

    def project_(self) -> None:
        """Put the parameters back into their allowed set, in place. Called after every step. Default: nothing."""

    def penalty(self) -> Tensor | None:
        """A prior on the parameters (sparsity, cardinality ...), added to any objective's loss. Default: none.

        Called once a step; one that learns itself (an adversary) makes its own step here and keeps its state in buffers.
        """
        return None

    def relabel_(self, targets: Tensor) -> None:
        """Make the learned labels these distributions (n, c), in place; rows of sum one if the summary has `signed_labels`.

        Raises:
            InputError: if labels are not learned.
        """
        raise InputError("This summary has no learned labels that could be set; make it with labels='learned'.")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role (for example "features", "adjacency"), so that each can have its own learning rate."""
        return {"points": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    @property
    @abstractmethod
    def num_points(self) -> int:
        """How many synthetic points: images, sentences, nodes, users."""

    @property
    def nbytes(self) -> int:
        """Bytes that storing the summary itself takes: those of its parameters and buffers, unless it is `coded`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())


class Modality(ABC):
    """One kind of data, seen through its target dataset D.

    It holds the training points and held-out splits, and knows how learners read, train on and are scored on them. All its
    randomness comes from generators that the caller passes.
    """

    kind: ClassVar[str]
    """The modality's name, for example "image"."""
    metric: ClassVar[str] = "accuracy"
    """The key of `score` by which summaries are selected; higher is better."""
    learners: ClassVar[tuple[str, ...]]
    """Names that `learner` accepts; the first is the default."""
    further: ClassVar[tuple[str, ...]] = ()
    """Learners that have to be asked for by name: nothing that goes through all of `learners` takes them."""
    kernels: ClassVar[tuple[str, ...]] = ("ntk", "nngp")
    """Names that `kernel` accepts; `fit` accepts them beside the learners'. A modality may know more, see `is_kernel`."""
    fitted: ClassVar[tuple[str, ...]] = ()
    """Further names that `fit` accepts: models that are trained in their own way, and that no objective can draw."""
    evaluator: ClassVar[str | None] = None
    """The learner or kernel that evaluation trains by default; None is the first of `learners`."""
    ridges: ClassVar[tuple[float, ...]] = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
    """Ridges that `fit` tries for a kernel; the best on the validation split is kept."""
    kernel_limit: ClassVar[int] = 12_000
    """Training points, at most, for which evaluation forms the Gram matrix of the full data."""
    kernel_numbers: ClassVar[int] = 10**10
    """Numbers, at most, that this may go through; convolutional kernels have many for each pair of points."""
    on_device: ClassVar[bool] = False
    """Whether the target dataset lies on `device` as a whole; else it stays in the computer's memory, and batches go there."""
    published: ClassVar[Mapping[str, Published]] = {}
    """The protocols of published tables, by the names that `evaluate(protocol=...)` takes."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Hand out batches and learners on `device` and in `dtype` from now on. Returns self."""
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        return self

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def group_sizes(self) -> list[int]:
        """Training points of each group; a single number where data have no classes."""

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.group_sizes)

    @abstractmethod
    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        """What `real` does, on the CPU and in the modality's own precision. `rng` is None only if `size` is."""

    def draw_share(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        """This process's share of what `draw` gives, see `processes.share`. For a modality that need not read the rest of it."""
        batch = self.draw(size, groups, rng)
        return batch.take(processes.share(len(batch)).to(batch.groups.device))

    def real(
        self,
        size: int | None = None,
        *,
        groups: Sequence[int] | None = None,
        rng: torch.Generator | None = None,
        share: bool = False,
    ) -> Batch:
        """Training points of the target dataset.

        Args:
            size: points of each group, drawn without replacement (all, where a group has fewer); None takes every point.
            groups: which groups, in this order; None takes all of them.
            rng: needed if `size` is given.
            share: whether, under torchrun, this process's share of them is enough.
        """
        require(size is None or rng is not None, "real() needs rng, a torch.Generator, when size is given.")
        draw = self.draw_share if share and processes.size() > 1 else self.draw
        return draw(size, range(self.num_groups) if groups is None else groups, rng).to(self.device, self.dtype)

    def scope(self) -> str:
        """What part of the target dataset is distilled and scored, in words, where it is not all of it. Default: "", all."""
        return ""

    def full(self) -> Batch:
        """What "full data" means as a baseline of evaluation: all of `real`, unless `real` adds points that users lack.

        The points are in order of groups; their positions here are how `pick` names them.
        """
        return self.real()

    @property
    def full_sizes(self) -> list[int]:
        """Points of each group in `full`."""
        return self.group_sizes

    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 hex digest of the target dataset, by which an artifact names what it was distilled from."""

    def identity(self) -> dict[str, str]:
        """What of this target decides a run on it beside the data of `fingerprint`, by name. Default: nothing."""
        return {}

    def describe(self) -> dict[str, Any]:
        """JSON-able facts of the target dataset that a report draws beside a summary. Default: none."""
        return {}

    # --- learners and kernels -----------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, name: str) -> Learner:
        """A learner called `name`, one of `learners`, initialised from the global generator."""

    def knows(self, name: str) -> bool:
        """Whether `fit` can train what is called `name`. A modality may know more names than it lists, with options in them."""
        return name in (*self.learners, *self.fitted) or self.is_kernel(name)

    def is_kernel(self, name: str) -> bool:
        """Whether `kernel` accepts `name`."""
        return name in self.kernels

    def learner(self, name: str | None = None, *, rng: torch.Generator) -> Learner:
        """A fresh draw from P_theta, in eval mode; `rng` decides its initial parameters."""
        name = name or self.learners[0]
        if name in self.fitted or self.is_kernel(name) or not self.knows(name):
            raise unknown_name(f"{self.kind} learner", name, (*self.learners, *self.further))
        with isolated(fork(rng)):
            return self.build(name).to(self.device, self.dtype).eval()

    def kernel(self, name: str = "ntk", *, depth: int | None = None) -> Kernel:
        """The infinite-width learner of `depth` hidden layers on this modality's inputs; None is one for "ntk" and "nngp"."""
        if name not in self.kernels:
            raise unknown_name(f"{self.kind} kernel", name, self.kernels)
        return self.over_inputs(InfiniteReLU(1 if depth is None else depth, "nngp" if name == "nngp" else "ntk"))

    def compares_full(self, name: str) -> bool:
        """Whether evaluation forms that kernel's Gram matrix of the full data: `kernel_limit` and `kernel_numbers` allow it."""
        points = self.full_size().points
        return points <= self.kernel_limit and points**2 * self.kernel(name).numbers_per_pair <= self.kernel_numbers

    @abstractmethod
    def vectors(self, inputs: Any) -> Tensor:
        """Inputs of `n` points as a matrix (n, d), dense or sparse CSR, as kernels see them (flatten, pool, propagate ...).

        Differentiable in synthetic inputs.
        """

    def over_inputs(self, kernel: Kernel) -> Kernel:
        """`kernel`, which compares vectors, as a kernel of this modality's inputs."""
        return VectorKernel(self.vectors, kernel)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Mean training loss of outputs (n, c), a scalar, twice differentiable.

        One whose slopes are known, see `datastill.backbones.losses.sloped`, spares learners autograd.
        """

    def losses(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss of each point by itself, (n,)."""
        places = torch.arange(len(outputs), device=outputs.device).split(1)
        return torch.stack([self.loss(outputs[place], take(targets, place)) for place in places])

    @abstractmethod
    def encode(self, targets: Any) -> Tensor:
        """Targets as real vectors (n, c) for ridge regression, differentiable where targets are learned."""

    def decode(self, vectors: Tensor) -> Tensor:
        """The inverse of `encode`: vectors (n, c) as learned labels.

        Raises:
            InputError: where targets are not labels that could be learned.
        """
        raise InputError(f"The targets of {self.kind} data are no labels that could be solved for.")

    def trains_by_regression(self, targets: Any) -> bool:
        """Whether learners are trained on these targets with the squared loss, whatever the protocol says. Default: no."""
        return False

    def ridge_loss(self, predictions: Tensor, targets: Any) -> Tensor:
        """Loss of a kernel machine's predictions (n, c) on real targets; half the mean squared error unless overridden."""
        return 0.5 * (predictions - self.encode(targets)).square().mean()

    def correct(self, outputs: Tensor, targets: Any) -> Tensor:
        """Whether each point's output is right, (n,) bool: the class, or what comes nearest to it.

        Raises:
            InputError: where outputs are never simply right or wrong.
        """
        raise InputError(f"Outputs on {self.kind} data are not right or wrong, so forgetting cannot be counted.")

    def weight(self, batch: Batch) -> float:
        """What `loss` and `ridge_loss` of these real points are a mean over. Default: the points.

        With several processes each has a share of a batch, and their losses are averaged by this weight.
        """
        return float(len(batch))

    def augment(self, batch: Batch, seed: int) -> Batch:
        """Differentiable augmentation; equal seeds apply equal transformations to any two batches (siamese). Default: none.

        Matching asks `group_augmenter` for the same by group: a modality that has both has to keep them in step.
        """
        return batch

    def augment_each(self, batch: Batch, seed: int) -> Batch:
        """Augmentation for ordinary training, where every point may get a transformation of its own. Default: `augment`."""
        return self.augment(batch, seed)

    def augmenter(self, strategy: bool | str) -> Callable[[Batch, int], Batch]:
        """The augmentation that a name such as `Protocol.augment` means; True is `augment_each`.

        Raises:
            InputError: for a name that this modality does not have.
        """
        if not isinstance(strategy, str):
            return self.augment_each
        raise InputError(f"{self.kind} data have no augmentation {strategy!r}; Protocol.augment must be True or False.")

    def group_augmenter(self, strategy: bool | str) -> Callable[[Batch, Mapping[int, int]], Batch]:
        """What augments the points of every group by a seed of the group's own, given by its number: True is by `augment`.

        The points of these groups come back, one group after the other; all of them, by the first seed, where inputs or targets
        are not plain tensors.

        Raises:
            InputError: for a name that this modality does not have.
        """
        self.augmenter(strategy)

        def augment(batch: Batch, seeds: Mapping[int, int]) -> Batch:
            if not batch.plain:
                return self.augment(batch, next(iter(seeds.values())))
            order, sizes = batch.in_blocks(list(seeds))
            own = batch if order is None else batch.take(order)
            present = [(group, seed) for (group, seed), size in zip(seeds.items(), sizes) if size]
            return joined([self.augment(own.of_group(group), seed) for group, seed in present]) if present else own

        return augment

    def mirrored(self, batch: Batch) -> Batch:
        """`batch` and, where a mirror image means the same, the mirror images of its points after them. Default: `batch`."""
        return batch

    # --- training and scores ------------------------------------------------------------------------------------------

    @abstractmethod
    def protocol(self, learner: str) -> Protocol:
        """How evaluation trains the learner of that name."""

    def published_protocol(self, name: str) -> Published:
        """The protocol of `published` called `name`; an `InputError` suggests the nearest name if there is none."""
        require(bool(self.published), f"{self.kind} data have no published protocols: leave the protocol {name!r} out.")
        if name not in self.published:
            raise unknown_name(f"{self.kind} protocol", name, self.published)
        return self.published[name]

    def fit(
        self,
        batch: Batch,
        learner: str | None = None,
        *,
        rng: torch.Generator,
        protocol: Protocol | None = None,
        ridges: Sequence[float] = (),
    ) -> Predictor:
        """Train a fresh learner, or a kernel, on `batch` as evaluation does.

        Args:
            batch: training points, real or synthetic.
            learner: one of `learners`, `kernels` or `fitted`; None takes the default of evaluation.
            rng: of initialisation, shuffling and dropout.
            protocol: in place of `self.protocol(learner)`; unused by kernels.
            ridges: in place of `self.ridges`; unused by learners.
        """
        name = learner or self.evaluator or self.learners[0]
        if self.is_kernel(name):
            return self.fit_kernel(batch, self.kernel(name), ridges)
        protocol = protocol or self.protocol(name)
        squared = protocol.loss == "squared" or self.trains_by_regression(batch.targets)
        model = self.learner(name, rng=rng)
        return train(
            Centred(model) if protocol.centred else model,
            batch,
            loss=self.squared_loss(protocol.target_scale) if squared else self.loss,
            protocol=protocol,
            seed=fork(rng),
            augment=self.augmenter(protocol.augment),
            validate=lambda predictor: self.score(predictor, "validation")[self.metric],
        )

    def squared_loss(self, scale: float = 1.0) -> Callable[[Tensor, Any], Tensor]:
        """Half the squared distance of outputs to `scale * encode(targets)`, summed over outputs, a mean over points."""
        return lambda outputs, targets: 0.5 * (outputs - scale * self.encode(targets)).square().sum(1).mean()

    @torch.no_grad()
    def fit_kernel(self, batch: Batch, kernel: Kernel, ridges: Sequence[float] = ()) -> Predictor:
        """Ridge regression with the ridge of `ridges` (or of the modality's) that is best on the validation split.

        Ridges too small for the points are passed over.

        Raises:
            InputError: if all are.
        """
        targets = self.encode(batch.targets)
        gram = kernel(batch.inputs, batch.inputs)
        machines = []
        for ridge in ridges or self.ridges:
            try:
                machines.append(KernelMachine(kernel, batch.inputs, ridge_solve(gram, targets, ridge), ridge))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                continue
        if not machines:
            raise InputError(
                f"No ridge of {tuple(ridges or self.ridges)} makes the Gram matrix of these {len(batch)} points positive "
                "definite, as too many of them are alike: take fewer points, or a larger ridge."
            )
        if len(machines) == 1:
            return machines[0]
        return max(machines, key=lambda machine: self.score(machine, "validation")[self.metric])

    def choose_ridge(self, batch: Batch, kernel: Kernel) -> float:
        """The ridge of `ridges` with which regression on `batch` is best on the validation split."""
        ridge: float = self.fit_kernel(batch, kernel).ridge  # type: ignore[attr-defined]
        return ridge

    @abstractmethod
    def score(self, predictor: Predictor, split: Split) -> dict[str, float]:
        """Metrics of a trained predictor on held-out real data, each in [0, 1]; `metric` is among the keys."""

    def check_split(self, split: Split) -> None:
        """Raise `InputError` if there is nothing to `score` on in that split. Default: there always is."""
        return

    # --- summaries and native datasets --------------------------------------------------------------------------------

    def allocate(self, points: int) -> list[int]:
        """Points of each group for a budget of `points` in all: equal shares, the first groups taking the rest."""
        check_count("points", points, least=0)
        if points < self.num_groups:
            raise InputError(
                f"A budget of {points} points is below one point for each of the {self.num_groups} groups; "
                f"ask for at least {self.num_groups}."
            )
        share, rest = divmod(points, self.num_groups)
        return [share + (group < rest) for group in range(self.num_groups)]

    @abstractmethod
    def summary(
        self, counts: Sequence[int], *, rng: torch.Generator, init: str | Tensor = "real", **options: Any
    ) -> Summary:
        """A summary with `counts[g]` points of each group, in group order.

        Args:
            counts: points of each group, as `allocate` gives them.
            rng: of the initial values.
            init: "real" (random real points), "noise", or a further name that the modality documents; or the real points to
                begin from: (sum of counts,) positions in `full`, in group order; or what `best` gives.
            options: the modality's own parametrisations.
        """

    def check_options(self, counts: Sequence[int], **options: Any) -> None:
        """Raise `InputError` for options that `summary` refuses for so many points, before points are chosen, which may take a
        training. Default: `summary` alone says so."""
        return

    def best(
        self,
        counts: Sequence[int],
        score: Callable[[Batch], Tensor],
        *,
        rng: torch.Generator,
        pool: int | None = 300,
        **options: Any,
    ) -> Tensor:
        """What `summary` may begin from, as its `init`: of random real points of each group those with the lowest score.

        A modality whose points have parts may put points together from the best parts, as images do.

        Args:
            counts: points of each group.
            score: of a batch, (n,).
            rng: of the draw.
            pool: real points of each group that are looked at, or as many as are needed; None takes all.
            options: of the modality's own; there are none by default.

        Raises:
            InputError: for an unknown option, or if a group has too few points.
        """
        for option in options:
            raise InputError(
                f"{self.kind} data have no parts to choose, so there is no option {option!r}: leave it out."
            )
        places = self.pools(counts, pool, rng=rng)
        full = self.full()
        scores = score(full.take(torch.cat(places).to(full.groups.device))).cpu()
        parts = zip(places, scores.split([len(part) for part in places]), counts)
        return torch.cat([place[part.argsort(stable=True)[:count]] for place, part, count in parts])

    def pools(self, counts: Sequence[int], pool: int | None, *, rng: torch.Generator) -> list[Tensor]:
        """Positions in `full` of `pool` random points of each group (`counts[g]` where that is more; all, if None)."""
        self.check_supply(counts)
        sizes = [size if pool is None else min(size, max(pool, count)) for size, count in zip(self.full_sizes, counts)]
        return list(self.random_points(sizes, rng=rng).split(sizes))

    @abstractmethod
    def read(self, dataset: Any) -> Batch:
        """A native dataset (what `export` or `subset` gives) as training points, on `device`."""

    @abstractmethod
    def pick(self, index: Tensor) -> Any:
        """The real training points at `index`, (n,) positions in `full`, in this order, as a native dataset."""

    def subset(self, counts: Sequence[int], *, rng: torch.Generator) -> Any:
        """Random real training points, `counts[g]` of each group, as a native dataset: the baseline of equal size."""
        return self.pick(self.random_points(counts, rng=rng))

    def random_points(self, counts: Sequence[int], *, rng: torch.Generator) -> Tensor:
        """Positions in `full` of random real points, `counts[g]` different ones of each group, in group order."""
        self.check_supply(counts)
        picked, first = [], 0
        for count, size in zip(counts, self.full_sizes):
            picked.append(first + torch.randperm(size, generator=rng)[:count])
            first += size
        return torch.cat(picked)

    def check_supply(self, counts: Sequence[int]) -> None:
        """Raise `InputError` unless `full` has `counts[g]` points of each group."""
        sizes = self.full_sizes
        require(
            len(counts) == len(sizes),
            f"counts must have one number for each of the {len(sizes)} groups, got {len(counts)}.",
        )
        for group, (count, size) in enumerate(zip(counts, sizes)):
            require(
                check_count(f"counts[{group}]", count, least=0) <= size,
                f"counts[{group}] is {count}, but group {group} has only {size} training points: lower the budget.",
            )

    def check_chosen(self, index: Tensor, counts: Sequence[int]) -> Tensor:
        """`index` as `summary` may begin from it: `counts[g]` positions in `full` of each group, in group order.

        Raises:
            InputError: if it is not that.
        """
        bounds = torch.tensor([0, *self.full_sizes]).cumsum(0)
        index = index.cpu()
        require(
            index.dim() == 1 and not index.is_floating_point(),
            f"init must be a name or a vector of positions of real points, got a tensor of shape {tuple(index.shape)}.",
        )
        inside = bool((index >= 0).all()) and bool((index < bounds[-1]).all())
        require(inside, f"Positions of real points must be from 0 to {int(bounds[-1]) - 1}.")
        groups = torch.bucketize(index, bounds[1:], right=True)
        wanted = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
        require(
            torch.equal(groups, wanted), f"init must give {list(counts)} real points of the groups, in order of groups."
        )
        return index

    @abstractmethod
    def size(self, dataset: Any) -> Size:
        """Points and stored bytes of a native dataset."""

    def stored_bytes(self, counts: Sequence[int], **options: Any) -> int:
        """Bytes that a summary of `counts[g]` points of each group takes when it is exported, before anything is optimised.

        Args:
            counts: points of each group.
            options: of `summary`, but for `init`.
        """
        return self.size(self.summary(counts, rng=generator("stored bytes"), **options).export()).nbytes

    def shapes_decide_bytes(self, **options: Any) -> bool:
        """Whether a summary with these options of `summary`, entropy coding apart, takes as many bytes whatever its content is.

        Default: no, so that what a run begins from has to be measured.
        """
        return False

    @abstractmethod
    def full_size(self) -> Size:
        """Points and stored bytes of the training part of the target dataset, in its usual form."""

    @staticmethod
    @abstractmethod
    def pack(dataset: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A native dataset as named tensors and a JSON-able dict, from which `unpack` rebuilds it without the modality."""

    @staticmethod
    @abstractmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Any:
        """The inverse of `pack`."""
