"""Kernel ridge regression: train on the summary in closed form, and ask how well the result fits the target dataset.

KIP: Nguyen et al. (ICLR 2021; NeurIPS 2021, arXiv 2107.13034, equation 2). With random features of finite learners in place of
an infinite-width kernel it is RFAD's loss (arXiv 2210.12067); on users of a recommender it is Distill-CF's (arXiv 2206.02626).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from datastill import memory
from datastill.backbones.base import FeatureKernel, Kernel, Learner
from datastill.backbones.batch import Batch
from datastill.backbones.chunks import activations
from datastill.backbones.precision import Precision, check_precision
from datastill.backbones.ridge import ridge_solve
from datastill.errors import InputError, check_count, check_number, check_positive, require, unknown_name
from datastill.modalities.base import Modality, Summary
from datastill.objectives.base import (
    Objective,
    RealBatches,
    input_bytes,
    limit_of,
    network_bytes,
    real_sizes,
    sample,
)
from datastill.objectives.label_solve import NormalEquations
from datastill.processes import portion
from datastill.rng import fork, generator

_CHUNK = 1024  # real points that are compared at once where labels are solved, at most


@dataclass
class KernelRidge(Objective):
    """Loss on real points of K_ts (K_ss + ridge tr(K_ss)/n I)^-1 Y_s, the modality's `ridge_loss`.

    Attributes:
        kernel: a kernel of the modality ("ntk", "nngp", of images "cntk" and others), or "features" for random finite learners
            drawn at every step.
        depth: hidden layers of the infinite-width network; None is the kernel's own, one for "ntk". Unused by "features".
        ridge: at least 0, relative to the mean diagonal of K_ss. Small values fit the summary exactly, large ones smooth. Two
            numbers above 0 are the first and the last, which it reaches geometrically in `anneal` steps: one run then passes
            through all between them, and the moment that validation selects has the one that suits the data.
        anneal: steps from the first ridge to the last.
        retune: steps between choices of the ridge on the validation split, from the modality's `ridges`, the first before the
            first step, as in Distill-CF; None keeps to `ridge`. Not for "features".
        real_size: real points a group at each step; None takes all of them, as far as `real_limit` goes.
        real_limit: most real points of a step, all groups together: of more, each step draws a sample stratified by group.
        synthetic_limit: most synthetic points of a step: of more, each step trains on a stratified sample of them, KIP's support
            batches, because its cost is cubic in them. None sets no limit, here and above.
        real_precision: in what the convolutions of real points are multiplied, for "features": "full", "bfloat16", which is much
            faster where the hardware does it natively, or "auto", which is bfloat16 there and full elsewhere.
        augment: whether real and synthetic points get the same random augmentation.
        solve_labels: whether the summary's learned labels are not optimised by gradients but solved, KIP's label solve: those
            with which the regression has the least squared error, at each step on its real batch, and whenever the summary is
            used on `solve_size` real points a group. Gradients with respect to the points stay exact, since the labels are at
            their optimum. They are distributions, unless the summary has `signed_labels`.
        solve_size: real points a group; None takes all of them.
        learner: which learner, for "features"; None takes the modality's default.
        learners: how many random learners share their features, for "features".
        draw: of those learners: "own" is their own initialisation; "gaussian" has weights of variance 2 / fan-in and biases of
            standard deviation 0.1, with which wide learners give the kernel "nngp" of their architecture (RFAD).
        platt: whether the loss is the modality's training loss of exp(k) times the predictions, k learned from 0 (Platt
            scaling, as in RFAD), in place of `ridge_loss`.
    """

    kernel: str = "ntk"
    depth: int | None = None
    ridge: float | tuple[float, float] = 1e-6
    anneal: int = 100
    retune: int | None = None
    real_size: int | None = 500
    real_limit: int | None = 8192
    synthetic_limit: int | None = 2048
    real_precision: Precision = "full"
    augment: bool = False
    solve_labels: bool = False
    solve_size: int | None = 1000
    learner: str | None = None
    learners: int = 4
    draw: Literal["own", "gaussian"] = "own"
    platt: bool = False

    name: ClassVar[str] = "kernel-ridge"
    counted_in_steps: ClassVar[tuple[str, ...]] = ("anneal",)

    def __post_init__(self) -> None:
        check_precision("real_precision", self.real_precision)
        check_count("learners", self.learners)
        check_count("anneal", self.anneal)
        if isinstance(self.ridge, tuple | list) and len(self.ridge) == 2:
            for end, value in zip(("first", "last"), self.ridge):
                check_positive(f"The {end} ridge", value)
        else:
            said = "a number of at least 0, or two above 0, the first and the last"
            check_number("ridge", self.ridge, lambda ridge: ridge >= 0, said)
        for name, least in (
            ("depth", 0),
            ("real_size", 1),
            ("real_limit", 1),
            ("synthetic_limit", 1),
            ("retune", 1),
            ("solve_size", 1),
        ):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least=least)
        if self.draw not in ("own", "gaussian"):
            raise unknown_name("draw", self.draw, ("own", "gaussian"))
        require(
            not (self.solve_labels and self.platt),
            "solve_labels minimises the squared error: leave platt out.",
        )
        require(
            self.real_precision == "full" or self.kernel == "features",
            "real_precision is of networks that convolve: leave it out for a kernel that is not 'features'.",
        )
        require(
            self.retune is None or self.kernel != "features",
            "retune needs a kernel that stays; leave it out for 'features'.",
        )

    def start(self, modality: Modality, summary: Summary, *, seed: int = 0, workdir: Path | None = None) -> None:
        if self.kernel != "features" and not modality.is_kernel(self.kernel):
            raise unknown_name("kernel", self.kernel, ("features", *modality.kernels))
        super().start(modality, summary, seed=seed, workdir=workdir)
        if self.solve_labels and "labels" not in summary.parameter_groups():
            raise InputError(
                "solve_labels needs a summary that learns its labels: make it with labels='signed' or 'learned'."
            )
        self._seed = seed
        if self.retune is not None:
            modality.check_split("validation")
        limit = limit_of(self.real_limit, self.real_size, modality.num_groups)
        self._real = RealBatches(modality.real, self.real_size, limit)
        self._sharpness = nn.Parameter(torch.zeros((), device=modality.device, dtype=modality.dtype))
        self._step = 0
        self._tuned: float | None = None

    def current_ridge(self) -> float:
        """The ridge at this step."""
        if self._tuned is not None:
            return self._tuned
        if isinstance(self.ridge, int | float):
            return float(self.ridge)
        first, last = self.ridge
        return float(first * (last / first) ** min(1.0, self._step / self.anneal))

    def footprint(self, modality: Modality, summary: Summary) -> int:
        """The Gram matrices of real and synthetic points with what a kernel keeps on the way to them for its gradient."""
        real = sum(real_sizes(modality, self.real_size))
        real = real if self.real_limit is None else min(real, self.real_limit)
        ours = summary.num_points if self.synthetic_limit is None else min(summary.num_points, self.synthetic_limit)
        if self.kernel == "features":
            options: dict[str, Any] = {"real_size": self.real_size, "real_limit": self.real_limit, "points": ours}
            return self.learners * network_bytes(modality, summary, self.learner, **options)
        numbers = modality.kernel(self.kernel, depth=self.depth).kept((real + ours) * ours, modality.device)
        return numbers * modality.dtype.itemsize + input_bytes(modality, real + ours)

    def loss(self, rng: torch.Generator) -> Tensor:
        """The ridge regression's loss on real points."""
        kernel = self._draw_kernel(rng)
        if self.retune is not None and self._step % self.retune == 0:
            with torch.no_grad():
                self._tuned = self.modality.choose_ridge(self.summary().detach(), kernel)
        real, synthetic = self._real.share(rng), sample(self.summary(rng), self.synthetic_limit, rng)
        if self.augment:
            seed = fork(rng) % 2**31
            real, synthetic = self.modality.augment(real, seed), self.modality.augment(synthetic, seed)
        gram, cross = kernel.both(real.inputs, synthetic.inputs)
        ridge = self.current_ridge()
        targets = synthetic.targets
        if self.solve_labels:
            targets = self._solved(gram, [(cross, self.modality.encode(real.targets))], ridge)
        labels = self.modality.encode(targets)
        # The same product, solved for the side that has fewer columns: users of a recommender have thousands of labels each.
        if len(cross) < labels.shape[1]:
            predictions = ridge_solve(gram, cross.T, ridge).T @ labels
        else:
            predictions = cross @ ridge_solve(gram, labels, ridge)
        if self.platt:
            loss = self.modality.loss(self._sharpness.exp() * predictions, real.targets)
        else:
            loss = self.modality.ridge_loss(predictions, real.targets)
        return portion(loss, self.modality.weight(real))

    def after_step(self, rng: torch.Generator) -> None:
        self._step += 1

    def settle(self) -> None:
        """Solve the labels, if that is asked for."""
        if not self.solve_labels:
            return
        rng = generator(self._seed, "label solve")
        real = self.modality.real(self.solve_size, rng=rng)
        with torch.no_grad():
            kernel, inputs = self._draw_kernel(rng), self.summary().detach().inputs
            device = real.groups.device
            size = memory.chunk(self._bytes_of_a_real_point(kernel, real), device, most=_CHUNK)
            parts = (real.take(rows) for rows in torch.arange(len(real), device=device).split(size))
            crosses = ((kernel(part.inputs, inputs), self.modality.encode(part.targets)) for part in parts)
            self.summary.relabel_(self._solved(kernel(inputs, inputs), crosses, self.current_ridge()))

    def _bytes_of_a_real_point(self, kernel: Kernel, real: Batch) -> int:
        """Bytes that a row of K_ts takes where labels are solved, with what is on the way to it and its encoded target."""
        one = real.take(torch.zeros(1, dtype=torch.int64, device=real.groups.device))
        width, size = self.summary.num_points, self.modality.dtype.itemsize
        found = (8 * size + 2 * 8) * width + (size + 8) * self.modality.encode(one.targets).shape[1]
        if isinstance(kernel, FeatureKernel):  # one learner after the other
            found += 2 * max(activations(learner, one.inputs)[1] for learner in kernel.learners)
        return found + input_bytes(self.modality, 1)

    @torch.no_grad()
    def _solved(self, gram: Tensor, crosses: Iterable[tuple[Tensor, Tensor]], ridge: float) -> Tensor:
        """The best labels, (n, c), for K_ss and parts of (K_ts, encoded targets)."""
        equations = NormalEquations.of(gram, crosses, ridge)
        encode, decode = self.modality.encode, self.modality.decode
        found = (
            decode(equations.solve()) if self.summary.signed_labels else equations.solve_distributions(encode, decode)
        )
        return found.to(self.modality.dtype)

    def learnables(self) -> dict[str, nn.Parameter]:
        return {"sharpness": self._sharpness} if self.platt else {}

    def learned(self) -> dict[str, Any]:
        return {"sharpness": float(self._sharpness.detach().exp())} if self.platt else {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "tuned": self._tuned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._tuned = state["step"], state["tuned"]

    def _draw_kernel(self, rng: torch.Generator) -> Kernel:
        if self.kernel != "features":
            return self.modality.kernel(self.kernel, depth=self.depth)
        nets = [self.modality.learner(self.learner, rng=rng).requires_grad_(False) for _ in range(self.learners)]
        if self.draw == "gaussian":
            for net in nets:
                draw_gaussian_(net, rng)
        return FeatureKernel(nets, real_precision=self.real_precision)


@torch.no_grad()
def draw_gaussian_(net: Learner, rng: torch.Generator) -> None:
    """Draw the linear and convolution layers of `net` anew, in place: weights of variance 2 / fan-in, biases of 0.01.

    These are the variances of `FeatureKernel`'s last layer and, by default, of `InfiniteReLU`.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            deviation = (2.0 / layer.weight[0].numel()) ** 0.5
            layer.weight.copy_(deviation * torch.randn(layer.weight.shape, generator=rng, dtype=torch.float64))
            if layer.bias is not None:
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=rng, dtype=torch.float64))
