"""Coresets: real points chosen instead of synthetic ones, by methods that know no modality.

They are what distillation has to beat (survey, section 2), and what a summary may begin from. Every method chooses in each group
by itself, as many points as asked for. All but "forgetting" choose by the place of the points in a space of features: the
modality's vectors, which its kernels see, or the embedding of a learner that was trained on all points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from datastill.backbones.batch import Batch
from datastill.backbones.kmeans import k_means, nearest_members
from datastill.backbones.training import train
from datastill.errors import check_count, require, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.remembered import once
from datastill.objectives.teachers import Teachers, in_chunks
from datastill.rng import fork, generator

VECTORS = "vectors"
# Numbers in a dense matrix of features; sparse vectors that would take more are projected. That changes what is chosen, so it
# does not depend on how much memory there is.
_DENSE = 2**27
_PROJECTED = 512  # dimensions of the projection (Johnson & Lindenstrauss 1984), which keeps distances to a few percent


def coreset(
    modality: Modality,
    counts: int | Sequence[int],
    *,
    method: str = "herding",
    space: str = VECTORS,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A few real points in place of the target dataset.

    Args:
        modality: the target dataset.
        counts: points of each group, or how many in all, which `modality.allocate` shares out.
        method: one of `METHODS` or `COMPOSED`, or "kmeans" for centres of k-means instead of real points, where the modality can
            make points of them.

            - "random": drawn without replacement.
            - "herding": greedily, so that the mean of the chosen stays as near as it can to the group's mean (Welling 2009, as
              in iCaRL, arXiv 1611.07725). The first one is the point nearest to the mean.
            - "k-center": the point nearest to the group's mean, then always the one farthest from all chosen (Gonzalez 1985;
              Sener & Savarese, arXiv 1708.00489).
            - "kmeans-real": the real point nearest to each centre of k-means.
            - "forgetting": those that a learner forgets most often while it trains on all points; those that it never gets
              right count as forgotten most (Toneva et al., arXiv 1812.05159).
            - "correct": random among those that a learner gets right after training on all points (as DATM begins, arXiv
              2310.05773); among the others where these are too few.
            - "confident": those at which a learner has the lowest loss after training on all points.
            - "rded": the same among 300 random points of each group and, on images, among crops of them, each resized to an
              image, or four side by side in one from 128 pixels on (RDED, arXiv 2312.03526; see `Modality.best`).
        space: of features: "vectors" (what the modality's kernels see), or the name of a learner, whose embedding after training
            on all points is taken. For "forgetting", "correct", "confident" and "rded" the learner that is trained; "vectors" is
            then the modality's default one.
        seed: of everything random.
        options: of `Modality.best`, for "rded": `pool`, and of images `crops`, `factor` and `area`.

    Returns:
        A native dataset of the modality, in order of groups.

    Raises:
        InputError: for an unknown name, or if a group has fewer points than asked for.
    """
    shares = modality.allocate(counts) if isinstance(counts, int) else list(counts)
    rng = generator(seed, "coreset", method)
    if method == "kmeans" and not options:
        require(
            space == VECTORS,
            f"method='kmeans' averages the data's own vectors, so space has to be left out, got {space!r}.",
        )
        return modality.summary(shares, rng=rng, init="kmeans").export()
    chosen = choose(modality, shares, method=method, space=space, rng=rng, **options)
    if chosen.is_floating_point():
        return modality.summary(shares, rng=rng, init=chosen).export()
    return modality.pick(chosen)


def choose(
    modality: Modality,
    counts: Sequence[int],
    *,
    method: str,
    space: str = VECTORS,
    rng: torch.Generator,
    teachers: Teachers | None = None,
    **options: Any,
) -> Tensor:
    """Positions in `modality.full()` of the points of a coreset, in order of groups; see `coreset`.

    They may be handed to `modality.summary` as `init`. So may what a method of `COMPOSED` gives, which need not be positions.
    Methods that ask a trained learner ask `teachers`, if given.
    """
    if method not in METHODS and method not in COMPOSED:
        raise unknown_name("coreset method", method, (*METHODS, *COMPOSED))
    check_space(modality, space)
    modality.check_supply(counts)
    if method not in COMPOSED:
        require(not options, f"method={method!r} of coresets has no options, got {', '.join(options)}.")
    if method in _TAUGHT:
        name = learner_of(modality, space)
        options["teachers"] = teachers or once(
            f"teachers {name}", modality, rng, lambda: Teachers(modality, name, seed=fork(rng))
        )
    chooser: Callable[..., Tensor] = {**METHODS, **COMPOSED}[method]
    return chooser(modality, counts, space, rng, **options)


def check_space(modality: Modality, space: str) -> None:
    """Raise `InputError` if `space` is not one that `coreset` takes on this modality."""
    learns = modality.knows(space) and not modality.is_kernel(space) and space not in modality.fitted
    if space != VECTORS and not learns:
        raise unknown_name("space of a coreset", space, (VECTORS, *modality.learners))


def learner_of(modality: Modality, space: str) -> str:
    """The learner that a method trains which needs one: that of the space, or the modality's default."""
    return modality.learners[0] if space == VECTORS else space


class RealPoints(Summary):
    """A native dataset of real points as a summary that has nothing to optimise.

    Args:
        modality: whose dataset it is.
        dataset: as `modality.pick` gives it.
    """

    def __init__(self, modality: Modality, dataset: Any) -> None:
        super().__init__()
        self._modality = modality
        self._dataset = dataset

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        """The points, as the modality reads them."""
        return self._modality.read(self._dataset)

    def export(self) -> Any:
        """The dataset."""
        return self._dataset

    @property
    def num_points(self) -> int:
        """How many points."""
        return self._modality.size(self._dataset).points

    @property
    def nbytes(self) -> int:
        """Bytes of the dataset, as the modality counts them."""
        return self._modality.size(self._dataset).nbytes


# --- methods ------------------------------------------------------------------------------------------------------------


def herd(points: Tensor, count: int) -> Tensor:
    """Positions of `count` of `points` (n, d): the k-th makes the sum of the chosen nearest to k times the mean of all."""
    squares, mean = points.square().sum(1), points.mean(0)
    gap = mean.clone()
    chosen: list[int] = []
    for _ in range(count):
        distances = squares - 2 * points @ gap  # || gap - x ||^2, up to what all points share
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        gap += mean - points[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)


def spread(points: Tensor, count: int) -> Tensor:
    """Positions of `count` of `points` (n, d): the nearest to their mean, then always the farthest from all chosen."""
    chosen: list[int] = []
    reach = -(points - points.mean(0)).square().sum(1)
    for _ in range(count):
        reach[chosen] = -torch.inf
        chosen.append(int(reach.argmax()))
        gaps = (points - points[chosen[-1]]).square().sum(1)
        reach = gaps if len(chosen) == 1 else torch.minimum(reach, gaps)
    return torch.tensor(chosen, dtype=torch.int64)


def count_forgetting(
    modality: Modality, learner: str | None = None, *, epochs: int = 10, rng: torch.Generator
) -> Tensor:
    """How often each point of `full` turned from right to wrong between two visits of it in training, (n,).

    Infinite for points that were never right. The learner is trained by the protocol of evaluation, for at least `epochs` passes.

    Args:
        modality: the target dataset.
        learner: its name; None takes the modality's default.
        epochs: visits of each point, at least.
        rng: of initialisation and the order of points.
    """
    check_count("epochs", epochs)
    full = modality.full()
    points = len(full)
    events = torch.zeros(points)
    was, ever = torch.zeros(points, dtype=torch.bool), torch.zeros(points, dtype=torch.bool)

    def watched(outputs: Tensor, targets: tuple[Any, Tensor]) -> Tensor:
        wanted, index = targets
        place = index.cpu()
        right = modality.correct(outputs.detach(), wanted).cpu()
        events[place] += (was[place] & ~right).float()
        ever[place] |= right
        was[place] = right
        return modality.loss(outputs, wanted)

    name = learner or modality.learners[0]
    protocol = modality.protocol(name)
    size = points if protocol.batch_size is None else min(protocol.batch_size, points)
    protocol = dataclasses.replace(
        protocol, steps=max(protocol.steps, epochs * -(-points // size)), validate_every=None
    )
    index = torch.arange(points, device=full.groups.device)
    train(
        modality.learner(name, rng=rng),
        Batch(full.inputs, (full.targets, index), full.groups),
        loss=watched,
        protocol=protocol,
        seed=fork(rng),
        augment=modality.augment_each,
    )
    return torch.where(ever, events, torch.inf)


def _random(modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator) -> Tensor:
    return modality.random_points(counts, rng=rng)


def _in_space(choose_in_group: Callable[[Tensor, int, torch.Generator], Tensor]) -> Callable[..., Tensor]:
    def choose_all(modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator) -> Tensor:
        parts = once(f"features {space}", modality, rng, lambda: features(modality, space, rng)).split(
            modality.full_sizes
        )
        starts = torch.tensor([0, *modality.full_sizes]).cumsum(0)
        picked = [
            start + choose_in_group(part.double(), count, rng)
            for start, part, count in zip(starts, parts, counts)
            if count
        ]
        return torch.cat(picked)

    return choose_all


def _most_forgotten(modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator) -> Tensor:
    name = learner_of(modality, space)
    events = once(f"forgetting {name}", modality, rng, lambda: count_forgetting(modality, name, rng=rng))
    return _lowest(modality, counts, -events, rng)


def _lowest(modality: Modality, counts: Sequence[int], scores: Tensor, rng: torch.Generator) -> Tensor:
    """The points of each group with the lowest scores; ties are drawn, so that no order of the data decides them."""
    starts = torch.tensor([0, *modality.full_sizes]).cumsum(0)
    picked = []
    for start, part, count in zip(starts, scores.split(modality.full_sizes), counts):
        shuffled = torch.randperm(len(part), generator=rng)
        picked.append(start + shuffled[part[shuffled].argsort(stable=True)[:count]])
    return torch.cat(picked)


def _correct(
    modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator, *, teachers: Teachers
) -> Tensor:
    full = modality.full()
    (said,) = teachers.outputs(full)
    return _lowest(modality, counts, (~modality.correct(said, full.targets).cpu()).float(), rng)


def _confident(
    modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator, *, teachers: Teachers
) -> Tensor:
    return _lowest(modality, counts, teachers.losses(modality.full()).cpu(), rng)


def _best(
    modality: Modality, counts: Sequence[int], space: str, rng: torch.Generator, *, teachers: Teachers, **options: Any
) -> Tensor:
    return modality.best(counts, teachers.losses, rng=rng, **options)


METHODS: dict[str, Callable[..., Tensor]] = {
    "random": _random,
    "herding": _in_space(lambda points, count, rng: herd(points, count)),
    "k-center": _in_space(lambda points, count, rng: spread(points, count)),
    "correct": _correct,
    "confident": _confident,
    "kmeans-real": _in_space(
        lambda points, count, rng: nearest_members(points, k_means(points, count, rng)),
    ),
    "forgetting": _most_forgotten,
}
"""How real points can be chosen, by name."""

COMPOSED: dict[str, Callable[..., Tensor]] = {"rded": _best}
"""How points can be put together from parts of real ones, by name."""

_TAUGHT = ("correct", "confident", "rded")
_ASKING = ("forgetting", *_TAUGHT)


def asked(modality: Modality, method: str, space: str = VECTORS) -> str | None:
    """The learner that `choose` trains on all points for this method and space; None if it needs none."""
    if (method not in METHODS and method not in COMPOSED) or method == "random":
        return None
    check_space(modality, space)
    return learner_of(modality, space) if space != VECTORS or method in _ASKING else None


@torch.no_grad()
def features(modality: Modality, space: str, rng: torch.Generator) -> Tensor:
    """The points of `full` in a space of features, (n, d), dense, on the CPU; see `coreset`."""
    full = modality.full()
    if space == VECTORS:
        return _dense(modality.vectors(full.inputs), rng).cpu()
    (learner,) = Teachers(modality, space, seed=fork(rng)).networks
    return in_chunks(learner.embed, learner, full).flatten(1).cpu()


def _dense(vectors: Tensor, rng: torch.Generator) -> Tensor:
    if vectors.layout == torch.strided:
        return vectors
    if vectors.numel() <= _DENSE:
        return vectors.to_dense()
    mix = torch.randn(vectors.shape[1], _PROJECTED, generator=rng) / _PROJECTED**0.5
    return torch.sparse.mm(vectors, mix.to(vectors.device, vectors.dtype))
