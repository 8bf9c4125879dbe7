"""What can be trained: a `Learner` of finite width, or a `Kernel`, the same network at infinite width.

Neither knows a modality or an objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from datastill.backbones.batch import Batch, Inputs, take
from datastill.backbones.losses import Loss, slopes_of
from datastill.backbones.outer import Outer, by_block
from datastill.backbones.precision import Precision, convolved_in
from datastill.backbones.ridge import linear_gram, ridge_solve
from datastill.backbones.steps import stepper

Predictor: TypeAlias = Callable[[Inputs], Tensor]
"""Anything trained: inputs of `n` points to outputs (n, c)."""


_FEW = 16
"""Outputs, up to which it is cheaper to compute them a row for each output than a row for each point, if without autograd."""


class Learner(nn.Module, ABC):
    """Phi_theta of finite width: outputs are `head(embed(inputs))`.

    A subclass sets `self.head` and defines `embed`. It must be twice differentiable in its parameters and inputs almost
    everywhere, must not change its buffers in `forward`, and must draw nothing at random in eval mode.
    """

    head: nn.Module
    couples_points: ClassVar[bool] = False
    """Whether the output of one point depends on the other points of its batch, as in a graph network."""

    def points_at_a_time(self) -> int | None:
        """Points that `embed` and `group_gradients` look at together where no graph is kept. Default: None, all of them."""
        return None

    @abstractmethod
    def embed(self, inputs: Inputs) -> Tensor:
        """Features (n, width) of the last layer before the head."""

    def layers(self, inputs: Inputs) -> list[Tensor]:
        """Features of each layer, first to last, every one with points as its first dimension."""
        return [self.embed(inputs)]

    def forward(self, inputs: Inputs) -> Tensor:
        """Outputs (n, c)."""
        outputs: Tensor = self.head(self.embed(inputs))
        return outputs

    def differentiate(self, batch: Batch, loss: Loss) -> None:
        """Leave the gradient of the loss of all points in `grad` of the parameters, for an optimiser's step.

        The batch is constant: it gets no gradient. A learner that has its gradient in closed form overrides this.
        """
        self.zero_grad()
        loss(self(batch.inputs), batch.targets).backward()

    def descend(self, batch: Batch, loss: Loss, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """So many steps of `optimizer`, which is of this learner's parameters, each on the loss of all points."""
        for _ in range(steps):
            self.differentiate(batch, loss)
            optimizer.step()

    def group_gradients(self, batch: Batch, groups: Sequence[int], loss: Loss, *, create_graph: bool) -> list[Tensor]:
        """Gradients of each group's own loss, by autograd. A learner that has them in closed form overrides this.

        Args:
            batch: points of several groups.
            groups: which groups' points, each by itself.
            loss: of one group.
            create_graph: whether the gradients are to be differentiable in the inputs and targets of `batch`.

        Returns:
            For each of `parameters()`, in that order, a tensor (len(groups), *shape of the parameter).
        """
        parameters = list(self.parameters())
        outputs = self(batch.inputs) if self.couples_points else None
        found = []
        for position, group in enumerate(groups):
            if outputs is None:
                points = batch.of_group(group)
                value = loss(self(points.inputs), points.targets)
            else:
                rows = (batch.groups == group).nonzero().squeeze(1)
                value = loss(outputs[rows], take(batch.targets, rows))
            keep = create_graph or (outputs is not None and position + 1 < len(groups))
            found.append(
                torch.autograd.grad(
                    value, parameters, create_graph=create_graph, retain_graph=keep, materialize_grads=True
                )
            )
        return [torch.stack(parts) for parts in zip(*found)]

    def factored_gradients(
        self, batch: Batch, groups: Sequence[int], loss: Loss, *, create_graph: bool
    ) -> Sequence[Tensor | Outer]:
        """As `group_gradients`, but that of a layer may be left as its factors where they are smaller than their product."""
        return self.group_gradients(batch, groups, loss, create_graph=create_graph)


class LinearLearner(Learner):
    """A learner whose only parameters are those of its linear head: `embed` is a fixed map of the inputs."""

    head: nn.Linear

    def differentiate(self, batch: Batch, loss: Loss) -> None:
        """As every learner's, in closed form."""
        self._differentiation(batch, loss)()

    def descend(self, batch: Batch, loss: Loss, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """As every learner's: the features are the same at every step."""
        differentiate, step = self._differentiation(batch, loss), stepper(optimizer)
        for number in range(steps):
            differentiate()
            step()
            if number == 0:  # the optimiser has its state now
                step = stepper(optimizer)

    @torch.no_grad()
    def _differentiation(self, batch: Batch, loss: Loss) -> Callable[[], None]:
        """What `differentiate` does, to be called again and again while the parameters move."""
        features, weight, bias = self.embed(batch.inputs), self.head.weight, self.head.bias
        outputs, sizes = constant(self.head), [len(features)]

        @torch.no_grad()
        def differentiate() -> None:
            slopes = slopes_of(loss, outputs(features), batch.targets, sizes, differentiable=False)
            weight.grad = slopes.T @ features
            if bias is not None:
                bias.grad = slopes.sum(0)

        return differentiate

    def group_gradients(self, batch: Batch, groups: Sequence[int], loss: Loss, *, create_graph: bool) -> list[Tensor]:
        """As every learner's, in closed form: with S the slopes d loss / d outputs and F the features, S^T F and sum S.

        So what autograd keeps is of the outputs' size and not of the inputs', and the result is of first order in the features.
        """
        order, sizes = batch.in_blocks(groups)
        with torch.set_grad_enabled(create_graph):
            features, targets = self.embed(batch.inputs), batch.targets
            if order is not None:
                features, targets = features[order], take(targets, order)
            outputs = constant(self.head)(features)
            slopes = slopes_of(loss, outputs, targets, sizes, differentiable=create_graph)
            gradients = [by_block(slopes, features, sizes)]
            if self.head.bias is not None:
                gradients.append(by_block(slopes, None, sizes))
        return gradients


def constant(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What `layer` does to its inputs, with parameters that autograd does not follow."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if len(weight) > _FEW or torch.is_grad_enabled():
        return lambda values: F.linear(values, weight, bias)
    if bias is None:
        return lambda values: (weight @ values.T).T
    return lambda values: torch.addmm(bias[:, None], weight, values.T).T


def call_with(learner: Learner, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Outputs of `learner` with `parameters` in place of its own, differentiable in both arguments."""
    outputs: Tensor = functional_call(learner, dict(parameters), (inputs,))
    return outputs


def parameters_of(learner: Learner) -> dict[str, Tensor]:
    """Detached copies of a learner's parameters by name."""
    return {name: value.detach().clone() for name, value in learner.named_parameters()}


class Kernel(ABC):
    """A positive semi-definite similarity of inputs: a learner at infinite width, or a fixed feature map."""

    numbers_per_pair: int = 1
    """As many numbers it goes through for a pair of points; 1 if it makes nothing larger than the Gram matrix."""

    @abstractmethod
    def __call__(self, a: Inputs, b: Inputs) -> Tensor:
        """The Gram matrix (n_a, n_b), differentiable in both."""

    def both(self, real: Inputs, ours: Inputs) -> tuple[Tensor, Tensor]:
        """The Gram matrices of `ours` with itself, (n, n), and of `real` with `ours`, (m, n)."""
        return self(ours, ours), self(real, ours)

    def kept(self, pairs: int, device: torch.device) -> int:
        """About how many numbers are in memory for Gram matrices of so many pairs in all, and for their gradient."""
        return 8 * pairs

    def fit(self, inputs: Inputs, targets: Tensor, ridge: float) -> KernelMachine:
        """Ridge regression of `targets` (n, c) on `inputs`; `ridge` is relative to the mean diagonal of the Gram matrix."""
        return KernelMachine(self, inputs, ridge_solve(self(inputs, inputs), targets, ridge), ridge)


class KernelMachine:
    """A trained kernel: `inputs -> kernel(inputs, support) @ coefficients`."""

    def __init__(self, kernel: Kernel, support: Inputs, coefficients: Tensor, ridge: float | None = None) -> None:
        self.kernel = kernel
        self.support = support
        self.coefficients = coefficients
        self.ridge = ridge

    def __call__(self, inputs: Inputs) -> Tensor:
        return self.kernel(inputs, self.support).to(self.coefficients.dtype) @ self.coefficients


class FeatureKernel(Kernel):
    """The NNGP of networks whose last layer is random and whose other layers are these learners (RFAD, arXiv 2210.12067).

    K = weight_variance * F F^T / width + bias_variance, with F the learners' features side by side.

    Args:
        learners: at least one, whose parameters need no gradients.
        weight_variance: of the last layer, times its width.
        bias_variance: of the last layer.
        real_precision: in what `both` multiplies the convolutions of real points (`convolved_in`).
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        weight_variance: float = 2.0,
        bias_variance: float = 0.01,
        real_precision: Precision = "full",
    ) -> None:
        self.learners = learners
        self.weight_variance = weight_variance
        self.bias_variance = bias_variance
        self.real_precision = real_precision

    def __call__(self, a: Inputs, b: Inputs) -> Tensor:
        left = self._features(a)
        return self._gram(left) if a is b else self._products(left, self._features(b))

    def both(self, real: Inputs, ours: Inputs) -> tuple[Tensor, Tensor]:
        """As every kernel's, with the features of `ours` made once, and without gradients with respect to `real`."""
        mine = self._features(ours)
        with torch.no_grad(), convolved_in(self.real_precision):
            theirs = self._features(real)
        return self._gram(mine), self._products(theirs, mine)

    def _gram(self, features: Tensor) -> Tensor:
        return self.weight_variance / features.shape[1] * linear_gram(features) + self.bias_variance

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        return self.weight_variance / left.shape[1] * left @ right.T + self.bias_variance

    def _features(self, inputs: Inputs) -> Tensor:
        return torch.cat([learner.embed(inputs) for learner in self.learners], 1)


class VectorKernel(Kernel):
    """A kernel of vectors, applied to any inputs through a `vectorise` map.

    Args:
        vectorise: inputs of `n` points to a matrix (n, d), dense or sparse CSR; differentiable where the kernel has to be.
        kernel: the kernel of rows of two such matrices.
    """

    def __init__(self, vectorise: Callable[[Inputs], Tensor], kernel: Kernel) -> None:
        self.vectorise = vectorise
        self.kernel = kernel

    def __call__(self, a: Inputs, b: Inputs) -> Tensor:
        return self.kernel(self.vectorise(a), self.vectorise(b))

    def kept(self, pairs: int, device: torch.device) -> int:
        return self.kernel.kept(pairs, device)
