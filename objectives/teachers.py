"""Teachers: networks trained on the target dataset, which say of any points how well they fit and what their labels are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.backbones.base import Learner, Predictor
from datastill.backbones.batch import Batch
from datastill.backbones.chunks import parts_of
from datastill.errors import check_count
from datastill.modalities.base import Modality
from datastill.objectives.shelf import digest_of, shelved
from datastill.rng import derive_seed, generator, isolated

_PASSES = 10  # over the target dataset, at least


class Teachers:
    """Networks that were trained on the target dataset by the protocol of evaluation, frozen.

    Each is a function of the target dataset, the seed and its number alone, so that with a folder a resumed run finds it there.

    Args:
        modality: the target dataset.
        learner: name of the networks; None takes the modality's default.
        count: how many.
        steps: optimiser steps of each; None takes those of evaluation's protocol, and at least ten passes over the dataset.
        seed: of all of them.
        folder: where they are kept; None keeps them in memory.
    """

    def __init__(
        self,
        modality: Modality,
        learner: str | None = None,
        *,
        count: int = 1,
        steps: int | None = None,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        self.modality = modality
        self.name = learner or modality.learners[0]
        full = modality.full()
        protocol = modality.protocol(self.name)
        if steps is None:
            size = len(full) if protocol.batch_size is None else min(protocol.batch_size, len(full))
            steps = max(protocol.total_steps(len(full)), _PASSES * -(-len(full) // size))
        self.protocol = dataclasses.replace(protocol, steps=check_count("steps", steps), epochs=None)
        self.networks: list[Learner] = []
        for number in range(check_count("count", count)):
            key = derive_seed(seed, "teacher", number)
            net = modality.learner(self.name, rng=generator(key))
            identity = {
                "learner": self.name,
                "protocol": repr(self.protocol),
                "seed": key,
                "target": modality.fingerprint(),
                **modality.identity(),
                "dtype": str(modality.dtype),
            }
            if folder is None:
                state = self._trained(full, key)
            else:
                place = folder / f"teacher-{digest_of(identity)}"
                state = shelved(place, identity, functools.partial(self._trained, full, key))
            net.load_state_dict(state)
            self.networks.append(net.requires_grad_(False))

    def _trained(self, full: Batch, seed: int) -> dict[str, Tensor]:
        with torch.enable_grad(), isolated(seed):
            net = self.modality.fit(full, self.name, rng=generator(seed, "fit"), protocol=self.protocol)
        assert isinstance(net, Learner)
        return dict(net.state_dict())

    @torch.no_grad()
    def outputs(self, batch: Batch) -> list[Tensor]:
        """Outputs (n, c) of each network."""
        return [in_chunks(net, net, batch) for net in self.networks]

    def labels(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The distributions (n, c) that the networks give points on average: softmax(outputs / temperature)."""
        return torch.stack([(said / temperature).softmax(1) for said in self.outputs(batch)]).mean(0)

    def losses(self, batch: Batch) -> Tensor:
        """The networks' loss at each point, on average: (n,); the lower, the more typical is the point of its target."""
        found = [self.modality.losses(said, batch.targets) for said in self.outputs(batch)]
        return torch.stack(found).mean(0)


def in_chunks(function: Callable[[Any], Tensor], predictor: Predictor, batch: Batch) -> Tensor:
    """`function` of all inputs, as many at a time as fit into memory unless the predictor has to see them together."""
    return torch.cat([function(part.inputs) for part in parts_of(predictor, batch)])
