"""Head gradients that stay factored against the products themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from datastill.backbones import convnet
from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.convnet import ConvNet
from datastill.backbones.fast import CHUNK
from datastill.backbones.outer import Outer, dense
from datastill.modalities.image import ImageModality
from datastill.objectives.gradient_distances import gradient_distances
from datastill.objectives.gradient_matching import GradientMatching
from datastill.rng import generator, isolated


def outer(sizes: list[int], classes: int, width: int, seed: int) -> Outer:
    rng = generator(seed)
    slopes, features = (torch.randn(sum(sizes), d, generator=rng, dtype=torch.float64) for d in (classes, width))
    return Outer(slopes, features, sizes)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_inner_products_are_those_of_the_products(
    mine: int, theirs: int, groups: int, classes: int, width: int
) -> None:
    a, b = outer([mine] * groups, classes, width, 0), outer([theirs] * groups, classes, width, 1)
    assert torch.allclose(a.inner(b), torch.linalg.vecdot(a.dense(), b.dense()))


@pytest.mark.parametrize("theirs", [[2, 2], [1, 3]], ids=["factors", "products"])
def test_angles_and_their_derivatives_are_those_of_the_products(theirs: list[int]) -> None:
    a, b = outer([3, 3], 4, 6, 0), outer(theirs, 4, 6, 1)
    leaves = [a.slopes.requires_grad_(), a.features.requires_grad_()]
    results = []
    for ours, target in (([a], [b]), ([a.dense()], [b.dense()])):
        found = gradient_distances(ours, target, "rows")
        results.append([found, *torch.autograd.grad(found.square().sum(), leaves)])
    for factored, whole in zip(*results):
        assert torch.allclose(factored, whole)


def test_a_row_of_nothing_has_a_derivative() -> None:
    slopes = torch.zeros(2, 3, requires_grad=True)
    a, b = Outer(slopes, torch.ones(2, 4), [1, 1]), Outer(torch.ones(2, 3), torch.ones(2, 4), [1, 1])
    (found,) = torch.autograd.grad(gradient_distances([a], [b], "rows").sum(), slopes)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("classes", "sizes", "stays"),
    [(5, [2, 2, 2], True), (5, [1, 5, 3], True), (5, [6, 6], False), (2 * CHUNK, [CHUNK + 3, 2], None)],
    ids=["few points", "unequal", "more than classes", "more than a pass"],
)
def test_a_convnet_leaves_its_head_factored(
    classes: int, sizes: list[int], stays: bool | None, create_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convnet, "_MAPS", 0)  # so that no more than CHUNK go together
    with isolated(0):
        net = ConvNet((1, 8, 8), classes, width=4).double().eval()
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator("order"))]
    images = torch.randn(len(labels), 1, 8, 8, generator=generator("images"), dtype=torch.float64, requires_grad=True)
    batch, groups = Batch(images, labels, labels), list(range(len(sizes)))
    found = net.factored_gradients(batch, groups, F.cross_entropy, create_graph=create_graph)
    expected = Learner.group_gradients(net, batch, groups, F.cross_entropy, create_graph=create_graph)
    # A group of more than one pass is cut up without a graph, and gradients of its parts are added up as they come.
    assert any(isinstance(part, Outer) for part in found) is (create_graph if stays is None else stays)
    assert all(torch.allclose(dense(a), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("settings", [{}, {"augment": True}, {"contrast_matches": 0}, {"distance": "squared"}], ids=str)
def test_gradient_matching_is_the_same_factored_or_not(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.arange(6).repeat_interleave(4)
    pixels = torch.rand(len(labels), 1, 8, 8, generator=generator("pixels"), dtype=torch.float64)
    results = []
    for factored in (True, False):
        if not factored:
            monkeypatch.setattr(ConvNet, "factored_gradients", ConvNet.group_gradients)
        modality = ImageModality(pixels, labels).to(dtype=torch.float64)
        summary = modality.summary([2] * 6, rng=generator("summary"))
        objective = GradientMatching(learner="convnet-d2-w4", real_size=3, **settings)
        objective.start(modality, summary)
        loss = objective.loss(generator("loss"))
        (parameter,) = summary.parameter_groups()["points"]
        results.append((loss.detach(), torch.autograd.grad(loss, parameter)[0]))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1])
