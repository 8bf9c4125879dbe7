"""Does a modality keep the contract of `datastill.modalities.base`?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch, tensors_of
from datastill.checks.tools import (
    CheckFailed,
    check_derivatives,
    check_resume,
    demand,
    global_random_state_untouched,
    refused,
    same,
    small_summary,
)
from datastill.modalities.base import Modality
from datastill.objectives.distribution_matching import DistributionMatching
from datastill.rng import generator


def check_modality(modality: Modality, *, on_fail: str = "raise", **options: Any) -> list[str]:
    """Run every check on a modality that holds a small dataset.

    Args:
        modality: at least two points of each group, and a validation and a test split.
        on_fail: "raise" stops at the first failure; "report" runs all checks and gives back what failed.
        options: passed to `modality.summary`, to check a certain parametrisation.

    Returns:
        One sentence for each failure.

    Raises:
        CheckFailed: if a check fails and `on_fail` is "raise".
    """
    failures = []
    for check in MODALITY_CHECKS:
        try:
            check(modality, **options)
        except CheckFailed as error:
            if on_fail == "raise":
                raise
            failures.append(f"{check.__name__}: {error}")
    return failures


def check_real_batches(modality: Modality, **options: Any) -> None:
    """`real` gives the asked number of each group, in order, the same for equal generators."""
    sizes = modality.group_sizes
    everything = modality.real()
    demand(isinstance(everything, Batch), f"real() must give a Batch, got {type(everything).__name__}.")
    demand(
        torch.bincount(everything.groups.cpu(), minlength=len(sizes)).tolist() == sizes,
        f"real() must give every training point once, by group_sizes {sizes}.",
    )
    with global_random_state_untouched("real()"):
        first = modality.real(2, rng=generator("checks", 1))
        second = modality.real(2, rng=generator("checks", 1))
        other = [modality.real(2, rng=generator("checks", seed)) for seed in range(2, 8)]
    expected = [min(2, size) for size in sizes]
    demand(
        torch.bincount(first.groups.cpu(), minlength=len(sizes)).tolist() == expected,
        "real(2) must give two points of each group (all, where a group has fewer).",
    )
    demand(
        bool((first.groups.diff() >= 0).all()), "real(2) must give the groups in the order asked for; they are mixed."
    )
    demand(same(first, second), "real() gives different points for equal generators.")
    if max(sizes) > 4:
        demand(any(not same(first, batch) for batch in other), "real(2) gives the same points whatever the generator.")
    last = len(sizes) - 1
    only = modality.real(1, groups=[last], rng=generator("checks", 1))
    demand(only.groups.tolist() == [last], f"real(1, groups=[{last}]) must give one point of group {last}.")
    part = first.take(torch.tensor([0]))
    demand(len(part) == 1, "batch.take([0]) must be a batch of one point.")


def check_learners(modality: Modality, **options: Any) -> None:
    """Every learner is a fresh seeded draw, reads real batches, and is twice differentiable."""
    batch = modality.real(2, rng=generator("checks"))
    for name in modality.learners:
        with global_random_state_untouched(f"learner({name!r})"):
            net = modality.learner(name, rng=generator("checks", 1))
            twin = modality.learner(name, rng=generator("checks", 1))
            other = modality.learner(name, rng=generator("checks", 2))
        demand(isinstance(net, Learner), f"learner({name!r}) must give a Learner, got {type(net).__name__}.")
        demand(not net.training, f"learner({name!r}) must come in eval mode.")
        demand(
            same(list(net.parameters()), list(twin.parameters())), f"learner({name!r}) differs for equal generators."
        )
        demand(
            not same(list(net.parameters()), list(other.parameters())),
            f"learner({name!r}) is the same draw for different generators.",
        )
        outputs = net(batch.inputs)
        demand(len(outputs) == len(batch), f"learner({name!r}) gives {len(outputs)} outputs for {len(batch)} points.")
        demand(torch.equal(outputs, net(batch.inputs)), f"learner({name!r}) draws at random in eval mode.")
        loss = modality.loss(outputs, batch.targets)
        demand(loss.dim() == 0 and bool(loss.isfinite()), f"loss of learner({name!r}) must be a finite scalar.")
        parameters = list(net.parameters())
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        square = sum((grad.square().sum() for grad in grads), torch.zeros((), dtype=modality.dtype))
        try:
            torch.autograd.grad(square, parameters, allow_unused=True)
        except RuntimeError as error:
            raise CheckFailed(f"loss of learner({name!r}) cannot be differentiated twice: {error}") from error
        for features in (net.embed(batch.inputs), *net.layers(batch.inputs)):
            demand(
                len(features) == len(batch),
                f"embed and layers of learner({name!r}) must have points as their first dimension.",
            )


def check_kernels(modality: Modality, **options: Any) -> None:
    """Every kernel gives a symmetric positive semi-definite Gram matrix."""
    batch = modality.real(3, rng=generator("checks"))
    for name in modality.kernels:
        gram = modality.kernel(name)(batch.inputs, batch.inputs).double()
        demand(gram.shape == (len(batch), len(batch)), f"kernel({name!r}) must give one row for each point.")
        demand(torch.allclose(gram, gram.T, rtol=1e-4, atol=1e-6), f"kernel({name!r}) is not symmetric.")
        lowest = float(torch.linalg.eigvalsh(0.5 * (gram + gram.T))[0])
        demand(lowest > -1e-4 * float(gram.diagonal().max()), f"kernel({name!r}) has the eigenvalue {lowest:.3g} < 0.")


def check_budgets(modality: Modality, **options: Any) -> None:
    """A summary has the points asked for, in groups as asked for, and says so in both budgets."""
    counts = [1 + (group == 0) for group in range(modality.num_groups)]
    summary = modality.summary(counts, rng=generator("checks"), **options)
    batch = summary(generator("checks", "draw"))
    demand(summary.num_points == sum(counts), f"num_points is {summary.num_points} where {sum(counts)} were asked for.")
    demand(len(batch) == summary.num_points, f"forward() gives {len(batch)} points, num_points says otherwise.")
    demand(
        torch.bincount(batch.groups.cpu(), minlength=len(counts)).tolist() == counts,
        f"forward() does not hold {counts} points of the groups.",
    )
    held = sum(value.numel() * value.element_size() for value in summary.parameters())
    demand(
        summary.coded or summary.nbytes >= held,
        f"nbytes is {summary.nbytes}, less than the {held} bytes of its parameters.",
    )
    share = modality.allocate(3 * modality.num_groups)
    demand(
        sum(share) == 3 * modality.num_groups and min(share) >= 1,
        f"allocate({3 * modality.num_groups}) gives {share}: not that many, or a group without any.",
    )
    subset = modality.subset(counts, rng=generator("checks"))
    demand(
        modality.size(subset).points == sum(counts),
        f"subset({counts}) has {modality.size(subset).points} points by size().",
    )
    demand(
        torch.bincount(modality.read(subset).groups.cpu(), minlength=len(counts)).tolist() == counts,
        f"subset({counts}), read back, does not have these counts.",
    )
    demand(
        modality.full_size().points == sum(modality.group_sizes), "full_size().points is not the sum of group_sizes."
    )


def check_chosen_points(modality: Modality, **options: Any) -> None:
    """`pick` gives the points of `full` at the positions asked for, and a summary can begin from them."""
    full, sizes = modality.full(), modality.full_sizes
    demand(
        torch.bincount(full.groups.cpu(), minlength=len(sizes)).tolist() == sizes
        and bool((full.groups.diff() >= 0).all()),
        f"full() must give the points of full_sizes {sizes}, in order of groups.",
    )
    ends = torch.tensor(sizes).cumsum(0) - 1
    for index in (ends, ends.flip(0)):
        there = modality.read(modality.pick(index))
        wanted = full.take(index.to(full.groups.device))
        demand(same(there.groups, wanted.groups), f"pick({index.tolist()}) gives points of other groups.")
        ours, theirs = (modality.vectors(batch.inputs).shape[0] for batch in (there, wanted))
        demand(ours == theirs, f"pick({index.tolist()}) gives {ours} points.")
        # A node is not the same without its neighbours, so its inputs cannot be compared.
        targets = [[tensor.to_dense() for tensor in tensors_of(batch.targets)] for batch in (there, wanted)]
        demand(same(*targets), f"pick({index.tolist()}) gives the targets of other points.")
    started = modality.summary([1] * len(sizes), rng=generator("checks"), **{**options, "init": ends})
    demand(
        started().groups.tolist() == list(range(len(sizes))),
        "summary(init=positions) does not hold a point of each group.",
    )
    refused(
        lambda: modality.summary([1] * len(sizes), rng=generator("checks"), **{**options, "init": ends + 1}),
        "summary(init=positions) with a position outside full()",
    )


def check_gradients(modality: Modality, **options: Any) -> None:
    """Gradients of a learner's loss reach every parameter of the summary and agree with finite differences."""
    before = modality.dtype
    modality.to(dtype=torch.float64)
    try:
        summary = small_summary(modality, **options).double()
        parameters = [parameter for members in summary.parameter_groups().values() for parameter in members]
        demand(bool(parameters), "The summary has no trainable parameter in parameter_groups().")
        # Off the initial point, which may be special (equal logits, saturated adjacency).
        rng = generator("checks", "shift")
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(
                    0.01 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter.device)
                )
        net = modality.learner(rng=generator("checks", "net"))

        def loss() -> torch.Tensor:
            batch = summary(generator("checks", "draw"))
            return modality.loss(net(batch.inputs), batch.targets)

        check_derivatives(loss, summary, "The summary's forward()")
    finally:
        modality.to(dtype=before)


def check_same_seed(modality: Modality, **options: Any) -> None:
    """Equal seeds give equal summaries, samples and trained predictors; nothing touches the global random state."""
    with global_random_state_untouched("summary() or fit()"):
        first, second = small_summary(modality, **options), small_summary(modality, **options)
        demand(same(list(first.parameters()), list(second.parameters())), "summary() differs for equal generators.")
        batches = [summary(generator("checks", "draw")) for summary in (first, second)]
        demand(same(*batches), "forward(rng) differs for equal generators.")
        scores = []
        for _ in range(2):
            predictor = modality.fit(first().detach(), rng=generator("checks", "fit"))
            scores.append(modality.score(predictor, "validation"))
        demand(scores[0] == scores[1], f"fit() differs for equal generators: {scores[0]} and {scores[1]}.")


def check_score(modality: Modality, **options: Any) -> None:
    """`score` gives the modality's metric, in [0, 1], on both splits."""
    predictor = modality.fit(small_summary(modality, **options)().detach(), rng=generator("checks"))
    for split in ("validation", "test"):
        found = modality.score(predictor, split)  # type: ignore[arg-type]
        demand(modality.metric in found, f"score(..., {split!r}) lacks the modality's metric {modality.metric!r}.")
        for name, value in found.items():
            demand(0 <= value <= 1, f"score(..., {split!r})[{name!r}] is {value}, outside [0, 1].")


def check_export(modality: Modality, **options: Any) -> None:
    """An export is detached, of the stated size, independent of the summary, and survives packing."""
    summary = small_summary(modality, **options)
    exported = summary.export()
    demand(
        modality.size(exported).points == summary.num_points,
        f"export() has {modality.size(exported).points} points by size(), the summary {summary.num_points}.",
    )
    tensors, meta = modality.pack(exported)
    demand(not any(tensor.requires_grad for tensor in tensors.values()), "export() still hangs on the autograd graph.")
    try:
        text = json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"pack() gives metadata that JSON cannot hold: {error}.") from error
    batch = modality.read(exported)
    demand(len(batch) == summary.num_points, "read(export()) has another number of points than the summary.")
    # A second summary, trained away, must not change what was exported.
    copies = [tensor.clone() for tensor in tensors.values()]
    with torch.no_grad():
        for parameter in summary.parameters():
            parameter.add_(1.0)
    demand(
        same(copies, list(modality.pack(exported)[0].values())),
        "export() shares memory with the summary: training on changes what was exported.",
    )
    again = modality.unpack(tensors, json.loads(text))
    demand(same(modality.read(again), batch), "unpack(pack(x)) is not x: read() gives other points.")
    if summary.exact_export:
        fresh = small_summary(modality, **options)
        ours, theirs = tensors_of(fresh().detach()), tensors_of(modality.read(fresh.export()))
        close = len(ours) == len(theirs) and all(
            a.shape == b.shape and torch.allclose(a.to_dense().double(), b.to_dense().double(), rtol=1e-4, atol=1e-4)
            for a, b in zip(ours, theirs)
        )
        demand(close, "read(export()) is not forward(), though the summary claims exact_export.")


def check_target_unchanged(modality: Modality, **options: Any) -> None:
    """Using a modality does not change its target dataset."""
    before = modality.fingerprint()
    everything = modality.real()
    copies = [tensor.clone() for tensor in tensors_of(everything)]
    summary = small_summary(modality, **options)
    modality.augment(everything, 5)
    summary.project_()
    modality.fit(summary().detach(), rng=generator("checks"))
    modality.subset([1] * modality.num_groups, rng=generator("checks"))
    demand(modality.fingerprint() == before, "The fingerprint of the target dataset changes with use.")
    demand(same(copies, tensors_of(everything)), "A batch of the target dataset was changed in place.")


def check_augmentation(modality: Modality, **options: Any) -> None:
    """`augment` is a pure function of the batch and the seed, and keeps targets and groups; `group_augmenter` is it by group."""
    batch = modality.real(2, rng=generator("checks"))
    with global_random_state_untouched("augment()"):
        first, second = modality.augment(batch, 11), modality.augment(batch, 11)
    demand(same(first, second), "augment() differs for equal seeds.")
    demand(same((first.targets, first.groups), (batch.targets, batch.groups)), "augment() changes targets or groups.")
    if batch.plain:
        seeds = {group: 11 + group for group in range(modality.num_groups)}
        if modality.num_groups > 1:  # groups may be without points
            batch = batch.take((batch.groups > 0).nonzero().squeeze(1))
        together = modality.group_augmenter(True)(batch, seeds)
        for group in batch.groups.unique().tolist():
            seed = seeds[group]
            alone, found = modality.augment(batch.of_group(group), seed), together.of_group(group)
            agree = len(found) == len(alone) and torch.allclose(found.inputs, alone.inputs, rtol=1e-4, atol=1e-5)
            demand(agree, f"group_augmenter() gives group {group} other points than augment() with its seed.")


def check_bad_input(modality: Modality, **options: Any) -> None:
    """Unknown names and impossible budgets are refused with a sentence."""
    name = modality.learners[0]
    message = refused(lambda: modality.learner(name + "x", rng=generator("checks")), "An unknown learner name")
    demand(name in message, f"The error for the unknown learner {name + 'x'!r} does not suggest {name!r}.")
    refused(
        lambda: modality.summary([1] * modality.num_groups, rng=generator("checks"), init="no-such-init"),
        "An unknown init",
    )
    refused(lambda: modality.allocate(0), "A budget of 0 points")
    refused(lambda: modality.real(2), "real(size) without a generator")
    too_many = [size + 1 for size in modality.group_sizes]
    refused(lambda: modality.subset(too_many, rng=generator("checks")), "A subset larger than the target dataset")


def check_resumed_run(modality: Modality, **options: Any) -> None:
    """A stopped and resumed run equals an uninterrupted one."""
    check_resume(modality, lambda: DistributionMatching(real_size=2, refresh=2), **options)


MODALITY_CHECKS: tuple[Callable[..., None], ...] = (
    check_real_batches,
    check_learners,
    check_kernels,
    check_budgets,
    check_chosen_points,
    check_gradients,
    check_same_seed,
    check_score,
    check_export,
    check_target_unchanged,
    check_augmentation,
    check_bad_input,
    check_resumed_run,
)
