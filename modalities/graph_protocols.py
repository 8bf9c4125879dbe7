"""How the papers on graphs trained the networks by which they scored their summaries, as data."""

from __future__ import annotations

from datastill.backbones.training import Protocol
from datastill.modalities.base import Published

PUBLISHED: dict[str, Published] = {
    "gcond": Published(
        paper="Jin et al., ICLR 2022, arXiv 2110.07580",
        learner="gcn",
        training=Protocol(
            steps=600,
            optimizer="adam",
            lr=0.01,
            weight_decay=5e-4,
            batch_size=None,
            schedule="drop",
            restart=True,
            validate_every=10,
        ),
        selection="best on the validation nodes, asked after every step",
        trainings=10,
        differs="validation is asked after every tenth step; dropout is the modality's (0.5, as in the program that distils; the "
        "program that re-tests stored graphs has 0)",
    ),
}
