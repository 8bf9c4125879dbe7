"""A summary of texts: sentences whose token vectors are free, decoded to words at export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.text import Tokens
from datastill.errors import require, unknown_name
from datastill.modalities.base import Batch
from datastill.modalities.classification import SoftLabelSummary
from datastill.modalities.text_data import Label, TextDataset
from datastill.modalities.text_decode import nearest_row, nearest_rows
from datastill.modalities.text_table import Embeddings

TokenForm = Literal["free", "nearest"]
LabelForm = Literal["hard", "learned"]
_CERTAINTY = 0.9


class TextSummary(SoftLabelSummary):
    """Sentences as (n, length, d) free token vectors under a fixed mask.

    Two forms of tokens:

    - "free": learners read the vectors themselves, which lie between words. `pull` draws them towards words as they are
      optimised, so that less is lost in decoding.
    - "nearest": learners read the table's row nearest to each vector, so decoding loses nothing; the gradient passes
      straight through to the vector (Bengio et al. 2013, arXiv 1308.3432), and so is not the derivative of `forward`.

    Args:
        tokens: initial sentences, on the CPU.
        groups: (n,) class ids.
        classes: the class names.
        embeddings: the table that decodes.
        form: "free" or "nearest".
        labels: "hard" (the class) or "learned" (a distribution, the softmax of free logits, at first 0.9 on the class).
        pull: fraction of the way to the nearest decodable row that a vector moves after every step, in [0, 1].
    """

    exact_export = False

    def __init__(
        self,
        tokens: Tokens,
        groups: Tensor,
        classes: Sequence[Label],
        embeddings: Embeddings,
        *,
        form: TokenForm = "free",
        labels: LabelForm = "hard",
        pull: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in ("free", "nearest"):
            raise unknown_name("form of tokens", form, ("free", "nearest"))
        if labels not in ("hard", "learned"):
            raise unknown_name("form of labels", labels, ("hard", "learned"))
        require(0 <= pull <= 1, f"pull must be in [0, 1], got {pull!r}.")
        self.form = form
        self.pull = pull
        self.classes = list(classes)
        self.embeddings = embeddings
        self.vectors = nn.Parameter(tokens.vectors.detach().clone())
        self.mask: Tensor
        self.groups: Tensor
        self.register_buffer("mask", tokens.mask.clone())
        self.register_buffer("groups", groups.clone())
        self.label_logits: nn.Parameter | None = None
        if labels == "learned":
            count = len(self.classes)
            sure = F.one_hot(groups, count).to(tokens.vectors.dtype)
            start = sure * _CERTAINTY + (1 - sure) * (1 - _CERTAINTY) / (count - 1)
            self.label_logits = nn.Parameter(start.log())
        # Plain attributes, so that the table does not count as part of the summary.
        self._rows: Tensor | None = None
        self._unit: Tensor | None = None

    def forward(self, rng: torch.Generator | None = None) -> Batch:
        vectors: Tensor = self.vectors
        if self.form == "nearest":
            vectors = vectors + (self._nearest() - vectors).detach()
        targets = self.groups if self.label_logits is None else self.label_logits.softmax(1)
        return Batch(Tokens(vectors, self.mask), targets, self.groups)

    @torch.no_grad()
    def project_(self) -> None:
        """Pull each vector towards its nearest decodable row."""
        if self.pull > 0:
            self.vectors.lerp_(self._nearest(), self.pull)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """ "points": the token vectors; "labels": the label logits, if learned."""
        groups = {"points": [self.vectors]}
        if self.label_logits is not None:
            groups["labels"] = [self.label_logits]
        return groups

    @torch.no_grad()
    def export(self) -> TextDataset:
        """Readable texts: each token is the decodable word whose vector is nearest by cosine."""
        texts = []
        table = self.embeddings
        for vectors, mask in zip(self.vectors.detach().cpu(), self.mask.cpu()):
            _, rows = nearest_rows(vectors[mask], table.vectors, table.decodable)
            texts.append(table.tokenizer.decode(rows.squeeze(1).tolist()))
        labels = [self.classes[group] for group in self.groups.tolist()]
        if self.label_logits is None:
            return TextDataset(texts, labels)
        return TextDataset(texts, labels, self.label_logits.detach().softmax(1).float().cpu(), list(self.classes))

    @property
    def num_points(self) -> int:
        """Sentences."""
        return len(self.groups)

    @torch.no_grad()
    def _nearest(self) -> Tensor:
        """The table's row nearest to each vector, (n, length, d)."""
        vectors = self.vectors.detach()
        stale = self._rows is None or self._rows.device != vectors.device or self._rows.dtype != vectors.dtype
        if stale or self._rows is None or self._unit is None:
            self._rows = self.embeddings.vectors[self.embeddings.decodable].to(vectors)
            self._unit = F.normalize(self._rows, dim=1)
        return self._rows[nearest_row(vectors.flatten(0, 1), self._unit)].view_as(vectors)
