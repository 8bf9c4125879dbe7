"""Plain loops of objectives on images, in the style of the papers' programs: what `objectives.py` measures the library against.

Written from the papers: one class at a time, PyTorch's own modules, the graphs of all classes kept until one backward pass, the
graph of real features built though nobody needs it, autograd through the whole of an unrolled training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from datastill.modalities.augmentation import Augmentation
from datastill.modalities.image import ImageModality

Step = Callable[[int], None]


def network(width: int, classes: int) -> nn.Sequential:
    """ConvNet-3 of PyTorch's modules."""
    parts: list[nn.Module] = []
    for fan_in in (1, width, width):
        parts += [nn.Conv2d(fan_in, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(inplace=True)]
        parts.append(nn.AvgPool2d(2, ceil_mode=True))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(width * 16, classes))


def plain(what: str, modality: ImageModality, *, width: int, per_class: int, real: int, inner_steps: int) -> Step:
    """A step of the plain loop of a method, on 28 x 28 grey images, `per_class` synthetic and `real` real ones of each class."""
    device, classes, ipc, real_size = modality.device, modality.num_groups, per_class, real
    images = modality.real().inputs
    of_class = [images[modality.real().groups == number] for number in range(classes)]
    labels = torch.arange(classes, device=device).repeat_interleave(ipc)
    synthetic = torch.cat([found[:ipc] for found in of_class]).clone().requires_grad_()
    optimizer = torch.optim.SGD([synthetic], lr=1e-3, momentum=0.5)
    augmentation = Augmentation.parse("color_crop_cutout_scale_rotate")

    def draw(number: int) -> Tensor:
        return of_class[number][torch.randperm(len(of_class[number]), device=device)[:real_size]]

    def fresh() -> nn.Sequential:
        return network(width, classes).to(device)

    def centred(each: int) -> Tensor:
        return F.one_hot(torch.arange(classes, device=device).repeat_interleave(each), classes) - 1 / classes

    def matching_means(seed: int) -> None:
        net = fresh().requires_grad_(False)
        embed = net[:-1]
        loss = torch.zeros((), device=device)
        for number in range(classes):
            real = augmentation(draw(number), seed * classes + number)
            ours = augmentation(synthetic[number * ipc : (number + 1) * ipc], seed * classes + number)
            loss = loss + (embed(real).detach().mean(0) - embed(ours).mean(0)).square().sum()
        update(loss)

    def matching_gradients(seed: int) -> None:
        net = fresh()
        parameters = list(net.parameters())
        loss = torch.zeros((), device=device)
        for number in range(classes):
            real, ours = draw(number), synthetic[number * ipc : (number + 1) * ipc]
            if what == "dsa":
                real, ours = (augmentation(x, seed * classes + number) for x in (real, ours))
            target = torch.full((len(real),), number, device=device)
            real_grads = [
                g.detach().clone() for g in torch.autograd.grad(F.cross_entropy(net(real), target), parameters)
            ]
            ours_loss = F.cross_entropy(net(ours), target[:1].expand(ipc))
            for a, b in zip(real_grads, torch.autograd.grad(ours_loss, parameters, create_graph=True)):
                if a.dim() > 1:
                    x, y = a.flatten(1), b.flatten(1)
                    loss = loss + (1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-6)).sum()
        update(loss)

    def matching_trajectories(seed: int) -> None:
        net = fresh()
        theta = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
        goal = {name: value + 0.01 * torch.randn_like(value) for name, value in theta.items()}
        start = theta
        for _ in range(inner_steps):
            loss = F.cross_entropy(functional_call(net, theta, (synthetic,)), labels)
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: value - 0.01 * grad for (name, value), grad in zip(theta.items(), grads)}
        none = torch.zeros((), device=device)
        gap = sum(((theta[name] - goal[name].detach()).square().sum() for name in goal), none)
        whole = sum(((start[name] - goal[name]).detach().square().sum() for name in goal), none)
        update(gap / whole)

    pool: list[Any] = []

    def regression(seed: int) -> None:
        if not pool:
            pool.append(fresh())
            pool.append(torch.optim.Adam(pool[0].parameters(), lr=3e-4))
        net, inner = pool
        real = torch.cat([draw(number) for number in range(classes)])
        ours, theirs = (
            net[:-1](synthetic),
            net[:-1](real),
        )  # the graph of the real features is built, though nobody needs it
        update(_ridge(ours @ ours.T, theirs @ ours.T, centred(ipc), centred(real_size)))
        inner.zero_grad()
        (net(synthetic.detach()) - centred(ipc)).square().mean().backward()
        inner.step()

    def kernel(seed: int) -> None:
        real = torch.cat([draw(number) for number in range(classes)]).flatten(1).double()
        ours = synthetic.flatten(1).double()
        update(_ridge(_ntk(ours, ours), _ntk(real, ours), centred(ipc).double(), centred(real_size).double()))

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        "dm": matching_means,
        "dc": matching_gradients,
        "dsa": matching_gradients,
        "mtt": matching_trajectories,
        "frepo": regression,
        "kip": kernel,
    }[what]


def _ridge(gram: Tensor, cross: Tensor, ours: Tensor, wanted: Tensor) -> Tensor:
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + 1e-6 * gram.trace() / len(gram) * eye, ours.to(gram.dtype))
    return 0.5 * (cross @ weights - wanted).square().mean()


def _ntk(a: Tensor, b: Tensor) -> Tensor:
    """Of one hidden ReLU layer, from the arc-cosine kernels (Cho & Saul 2009)."""
    lengths = a.norm(dim=1)[:, None] * b.norm(dim=1)[None]
    cosine = (a @ b.T / lengths).clamp(-1 + 1e-7, 1 - 1e-7)
    angle = torch.acos(cosine)
    slope = (torch.pi - angle) / torch.pi
    value = lengths * (torch.sin(angle) + (torch.pi - angle) * cosine) / torch.pi
    return (value + lengths * cosine * slope) / a.shape[1]
