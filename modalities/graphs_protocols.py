"""How DosCond trained the networks by which it scored its sets of graphs, as data."""

from __future__ import annotations

from datastill.backbones.training import Protocol
from datastill.modalities.base import Published

DOSCOND = Protocol(steps=500, optimizer="adam", lr=1e-3, batch_size=128, schedule="drop", validate_every=25)

PUBLISHED: dict[str, Published] = {
    "doscond": Published(
        paper="Jin et al., KDD 2022, arXiv 2206.07746",
        learner="gcn",
        training=DOSCOND,
        selection="best on the validation graphs, asked after every epoch",
        trainings=10,
        differs="steps are counted instead of epochs, which is the same on up to 128 graphs; validation is asked after every "
        "25th step; the two outputs of a softmax stand for the one logit that DosCond has on OGB's sets",
    ),
}
