"""Mult-VAE: the variational autoencoder of users with a multinomial likelihood (Liang et al., WWW 2018, arXiv 1802.05814)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from datastill.backbones.base import Learner
from datastill.backbones.batch import Batch
from datastill.backbones.infinite import squared_norms
from datastill.backbones.ranking import Holdout
from datastill.backbones.recommender import SparseRows, UserRows, matrix
from datastill.backbones.recommenders import Recommender
from datastill.backbones.training import Protocol, train
from datastill.errors import check_count, require
from datastill.rng import isolated


class VariationalAutoencoder(Learner):
    """items -> hidden -> latent -> hidden -> items with tanh between, on rows of unit length.

    In training the row goes through dropout and the latent code is drawn from its normal distribution; in eval mode the code is
    the mean. `divergence` is KL(q(z | x) || N(0, I)) of the last forward pass, a mean over users.

    Args:
        items: width of the rows.
        hidden: units of the encoder and of the decoder.
        latent: dimensions of the code.
        dropout: of the entries of a row, in [0, 1).
    """

    def __init__(self, items: int, hidden: int = 600, latent: int = 200, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.reader = nn.Linear(items, hidden)
        self.code = nn.Linear(hidden, 2 * latent)
        wide, last = nn.Linear(latent, hidden), nn.Linear(hidden, items)
        self.head = nn.Sequential(wide, nn.Tanh(), last)
        for layer in (self.reader, self.code, wide, last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.trunc_normal_(layer.bias, std=0.001)
        self.divergence = torch.zeros(())

    def embed(self, inputs: UserRows) -> Tensor:
        """Codes (n, latent)."""
        lengths = (squared_norms(matrix(inputs)) + 1e-12).sqrt()[:, None]
        if self.training and isinstance(inputs, SparseRows):
            kept = nn.functional.dropout(inputs.values, self.dropout)
            inputs = SparseRows(inputs.starts, inputs.columns, kept, inputs.width)
        elif self.training and isinstance(inputs, Tensor):
            inputs = nn.functional.dropout(inputs, self.dropout)
        rows, weight = matrix(inputs), self.reader.weight
        summed = rows @ weight.T if rows.layout == torch.strided else torch.sparse.mm(rows, weight.T)
        mean, spread = self.code((summed / lengths + self.reader.bias).tanh()).chunk(2, dim=1)
        self.divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1).mean()
        if not self.training:
            return mean
        return mean + (0.5 * spread).exp() * torch.randn_like(mean)


class MultVAE(Recommender):
    """Mult-VAE trained with dropout and an annealed KL term; the moment that is best on `validate` is kept.

    The loss is the mean over users of -sum_i x_ui log p_ui + beta KL, where p_u is the softmax of the scores and beta grows from
    0 to its largest value over the first half of the steps.

    Args:
        hidden, latent, dropout: see `VariationalAutoencoder`.
        beta: largest weight of the KL term, at least 0.
        steps: of Adam.
        lr: its learning rate.
        batch_size: users a step.
        validate_every: steps between validations.
    """

    def __init__(
        self,
        hidden: int = 600,
        latent: int = 200,
        dropout: float = 0.5,
        beta: float = 0.2,
        steps: int = 600,
        lr: float = 1e-3,
        batch_size: int = 256,
        validate_every: int = 20,
    ) -> None:
        self.hidden, self.latent = check_count("hidden", hidden), check_count("latent", latent)
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout!r}.")
        require(beta >= 0, f"beta must be at least 0, got {beta!r}.")
        self.dropout, self.beta = dropout, beta
        self.protocol = Protocol(
            steps=check_count("steps", steps),
            lr=lr,
            batch_size=check_count("batch_size", batch_size),
            schedule="constant",
            validate_every=check_count("validate_every", validate_every),
        )

    def fit(self, users: Any, validate: Holdout | None = None, *, seed: int = 0) -> Self:
        """Train; without `validate` the last step is kept."""
        rows = self._start(users)
        with isolated(seed):
            net = VariationalAutoencoder(self.items, self.hidden, self.latent, self.dropout)
        values = rows.values if isinstance(rows, SparseRows) else rows
        net.to(values)
        beta = 0.0

        def loss(outputs: Tensor, wanted: UserRows) -> Tensor:
            return _multinomial(outputs, wanted) + beta * net.divergence

        def anneal(step: int, _: Learner) -> None:
            nonlocal beta
            beta = self.beta * min(1.0, 2 * step / self.protocol.steps)

        self.net = train(
            net,
            Batch(rows, rows, torch.zeros(len(rows), dtype=torch.int64, device=values.device)),
            loss=loss,
            protocol=self.protocol,
            seed=seed,
            validate=None
            if validate is None
            else lambda found: validate.score(found, [validate.cutoff])[validate.metric],
            after_step=anneal,
        )
        return self

    @torch.no_grad()
    def __call__(self, histories: UserRows) -> Tensor:
        """Scores (users, items): logits of the items."""
        scores: Tensor = self.net(histories)
        return scores


def _multinomial(outputs: Tensor, wanted: UserRows) -> Tensor:
    logs = outputs.log_softmax(1)
    if isinstance(wanted, SparseRows):
        return -(logs[wanted.owners, wanted.columns] * wanted.values).sum() / len(wanted)
    return -(logs * wanted).sum(1).mean()
