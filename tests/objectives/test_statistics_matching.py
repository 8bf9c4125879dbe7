"""Statistics matching and its teachers, against values computed another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datastill import distill
from datastill.backbones.convnet import ConvNet
from datastill.checks import ToyModality
from datastill.errors import InputError
from datastill.modalities.image import ImageModality
from datastill.objectives.statistics_matching import StatisticsMatching, moments, real_moments, watched
from datastill.objectives.teachers import Teachers
from datastill.rng import generator


def images() -> ImageModality:
    labels = torch.arange(3).repeat_interleave(20)
    pixels = 0.3 * torch.rand(60, 1, 8, 8, generator=generator("statistics"))
    pixels[torch.arange(60), 0, labels * 2] += 0.7
    return ImageModality(pixels, labels)


def test_moments_are_those_of_batch_normalisation() -> None:
    features = torch.randn(6, 4, 3, 5, generator=generator("features"))
    norm = torch.nn.BatchNorm2d(4, momentum=None, affine=False)
    norm(features)
    mean, variance = moments(features)
    places = 6 * 3 * 5
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(variance * places / (places - 1), norm.running_var)


def test_the_statistics_of_a_network_with_batch_normalisation_are_its_own_in_the_order_of_its_layers() -> None:
    net = ConvNet((1, 8, 8), 3, depth=2, width=4, norm="batch")
    data = torch.randn(32, 1, 8, 8, generator=generator("data"))
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # an average of all it has seen
    net.train()(data)
    net.eval()
    found = real_moments(net, _batch(data))
    kept = [value for name, value in net.named_buffers() if "running" in name]  # a mean and a variance for each
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip([value for pair in found for value in pair], kept, strict=True))
    block = net.get_submodule("blocks.0")
    first = block.get_submodule("0")(data)  # what the first normalisation reads
    features, outputs = watched(net, data)
    torch.testing.assert_close(features[0], first)
    torch.testing.assert_close(outputs, net(data))
    torch.testing.assert_close(moments(first)[0], found[0][0])
    assert not block.get_submodule("1")._forward_pre_hooks


def test_the_statistics_of_other_networks_are_those_of_all_real_points(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ConvNet((1, 8, 8), 3, depth=2, width=4)
    data = torch.randn(37, 1, 8, 8, generator=generator("data"))
    monkeypatch.setenv("DATASTILL_MEMORY", "80KB")
    for (mean, variance), layer in zip(real_moments(net, _batch(data)), net.layers(data), strict=True):
        flat = layer.detach().double().transpose(0, 1).reshape(4, -1).numpy()
        torch.testing.assert_close(mean.double(), torch.from_numpy(flat.mean(1)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance.double(), torch.from_numpy(flat.var(1)), rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_published_one() -> None:
    """Cross-entropy and, for each layer, the norms of the gaps of means and variances, the first ten times."""
    modality = ToyModality()
    summary = modality.summary([3, 3, 3], rng=generator("summary"))
    objective = StatisticsMatching(teacher_steps=20, weight=0.3, augment=False)
    objective.start(modality, summary, seed=4)
    teacher = Teachers(modality, steps=20, seed=4).networks[0]
    hidden = teacher.layers(modality.real().inputs)[0]
    ours = teacher.layers(summary().inputs)[0]
    gap = (ours.mean(0) - hidden.mean(0)).norm() + (ours.var(0, correction=0) - hidden.var(0, correction=0)).norm()
    expected = F.cross_entropy(teacher(summary().inputs), summary().targets) + 0.3 * 10 * gap
    torch.testing.assert_close(objective.loss(generator("loss")), expected)


def test_real_points_have_almost_no_gap_and_steps_close_that_of_noise() -> None:
    modality = ToyModality(points=40)
    summary = modality.summary([30, 30, 30], rng=generator("summary"), init="noise")
    objective = StatisticsMatching(teacher_steps=50, weight=1.0, augment=False)

    @torch.no_grad()
    def gap() -> float:
        net = objective._teachers.networks[0]
        found = moments(net.layers(summary().inputs)[0])
        return float(sum((a - b).norm() for a, b in zip(found, objective._real[0][0])))

    distill(modality, summary, objective, steps=1, lr=0.0, validate_every=0, progress=False)
    before = gap()
    distill(modality, summary, objective, steps=150, lr=0.05, validate_every=0, progress=False)
    assert gap() < 0.1 * before


def test_labels_are_what_the_teachers_say_of_the_points_as_they_are() -> None:
    modality = images()
    summary = modality.summary([2, 2, 2], rng=generator("summary"), init="noise", labels="learned")
    objective = StatisticsMatching(learner="mlp", teachers=2, teacher_steps=30, temperature=2.0)
    seen: list[Tensor] = []

    def note(event: object) -> None:
        seen.append(summary().targets.detach().clone())

    result = distill(modality, summary, objective, steps=4, lr=0.1, validate_every=2, callbacks=[note], progress=False)
    one, other = (net(summary().inputs) for net in objective._teachers.networks)
    expected = ((one / 2).softmax(1) + (other / 2).softmax(1)) / 2
    torch.testing.assert_close(summary().targets, expected)
    labels = result.export().tensors[1]
    torch.testing.assert_close(labels, expected.detach())
    # Soft labels are in the bytes: three float32 an image beside its pixels, which are the parameters; groups are int64.
    assert modality.size(result.export()).nbytes == 6 * 8 * 8 * 4 + 6 * 3 * 4
    assert any(not torch.equal(seen[0], later) for later in seen)


def test_the_loss_keeps_the_labels_that_the_summary_began_with() -> None:
    modality = images()
    losses = []
    for labels in ("hard", "learned"):
        summary = modality.summary([2, 2, 2], rng=generator("summary"), init="noise", labels=labels)
        objective = StatisticsMatching(learner="mlp", teacher_steps=10)
        objective.start(modality, summary)
        objective.settle()
        losses.append(objective.loss(generator("loss")))
    torch.testing.assert_close(*losses)


def test_teachers_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality = ToyModality()
    alone = Teachers(modality, steps=5, seed=1)
    kept = Teachers(modality, steps=5, seed=1, folder=tmp_path)
    monkeypatch.setattr(modality, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = Teachers(modality, steps=5, seed=1, folder=tmp_path)
    points = modality.real()
    for found in (kept, again):
        assert torch.equal(found.outputs(points)[0], alone.outputs(points)[0])
    monkeypatch.undo()
    other = Teachers(modality, steps=6, seed=1, folder=tmp_path)
    assert not torch.equal(other.outputs(points)[0], alone.outputs(points)[0])


def test_losses_of_points_average_to_the_loss() -> None:
    modality = ToyModality()
    teachers = Teachers(modality, steps=5, seed=1)
    points = modality.real()
    losses = teachers.losses(points)
    assert losses.shape == (len(points),)
    torch.testing.assert_close(losses.mean(), modality.loss(teachers.outputs(points)[0], points.targets))
    torch.testing.assert_close(
        torch.stack(
            [modality.loss(teachers.outputs(points)[0][i : i + 1], points.targets[i : i + 1]) for i in range(9)]
        ),
        losses[:9],
    )


def test_refusals() -> None:
    with pytest.raises(InputError, match="temperature must be a positive number"):
        StatisticsMatching(temperature=0)
    with pytest.raises(InputError, match="weight must be a number of at least 0"):
        StatisticsMatching(weight=-1)
    with pytest.raises(InputError, match="Unknown toy learner 'ntk'"):
        Teachers(ToyModality(), "ntk", seed=0)


def _batch(data: Tensor):  # type: ignore[no-untyped-def]
    from datastill.backbones.batch import Batch

    return Batch(data, torch.zeros(len(data), dtype=torch.int64), torch.zeros(len(data), dtype=torch.int64))
