"""The adversary of HaBa: a network that learns to see the same in two styles of a base, while these learn to differ for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.convnet import ConvNet
from datastill.rng import isolated

_RATE, _MOMENTUM, _WEIGHT, _TEMPERATURE = 1e-3, 0.9, 0.1, 0.07  # those of HaBa's program
_PAIRS = 64  # pairs of images a step, at most


class StyleAdversary(nn.Module):
    """A ConvNet that classifies synthetic images and is drawn towards equal features of two styles of a base.

    It is state of the optimisation and no part of what is stored: its parameters need no gradients from outside. It sees images
    as they are and one set of pairs a step, where the paper's program augments them and draws another set for the penalty.

    Args:
        shape: (channels, height, width) of the images.
        classes: how many.
        styles: of each base, at least 2.
        weight: of the penalty.
        seed: of its first weights.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, styles: int, weight: float, seed: int) -> None:
        super().__init__()
        self.styles, self.weight = styles, weight
        with isolated(seed):
            self.net = ConvNet(shape, classes, width=32).requires_grad_(False)
        for number, value in enumerate(self.net.parameters()):
            self.register_buffer(f"velocity{number}", torch.zeros_like(value))

    def penalty(self, images: Tensor, groups: Tensor) -> Tensor:
        """The weight times the mean of (1 + cos) / 2 of the features of a random pair of styles of each base.

        The adversary makes a step of its own before, so this is called once a step of the outer loop. It draws from the global
        generator, which the loop seeds by the step.

        Args:
            images: (bases * styles, c, h, w), the styles of a base one after the other.
            groups: their classes.
        """
        styles = self.styles
        bases = torch.randperm(len(images) // styles)[:_PAIRS]
        pairs = torch.rand(len(bases), styles).argsort(1)[:, :2]
        first, second = ((bases * styles + pairs[:, column]).to(groups.device) for column in (0, 1))
        self._learn(images.detach()[torch.cat([first, second])], groups[torch.cat([first, second])])
        ours, theirs = self.net.embed(images[torch.cat([first, second])]).chunk(2)
        return self.weight * 0.5 * (1 + F.cosine_similarity(ours, theirs, dim=1)).mean()

    @torch.enable_grad()
    def _learn(self, images: Tensor, groups: Tensor) -> None:
        parameters = list(self.net.requires_grad_(True).parameters())
        features = self.net.embed(images)
        ours, theirs = features.chunk(2)
        alike = 0.5 * (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()
        loss = F.cross_entropy(self.net.head(features), groups) + _WEIGHT * (
            alike + supervised_contrast(features, groups)
        )
        grads = torch.autograd.grad(loss, parameters)
        self.net.requires_grad_(False)
        with torch.no_grad():
            for number, (value, grad) in enumerate(zip(parameters, grads)):
                velocity = self.get_buffer(f"velocity{number}").mul_(_MOMENTUM).add_(grad)
                value.sub_(_RATE * velocity)


def supervised_contrast(features: Tensor, groups: Tensor) -> Tensor:
    """SupCon (Khosla et al., NeurIPS 2020, arXiv 2004.11362, equation 2): points of a class against all others, by cosine.

    Points without another one of their class are left out; 0 if there are none.
    """
    unit = F.normalize(features, dim=1)
    logits = unit @ unit.T / _TEMPERATURE
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    chances = logits.masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(itself, 0.0)
    same = ((groups[:, None] == groups[None]) & ~itself).to(unit.dtype)
    mates = same.sum(1)
    if not bool(mates.any()):
        return features.sum() * 0.0
    return -((same * chances).sum(1)[mates > 0] / mates[mates > 0]).mean()
