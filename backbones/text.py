"""Learners of token sequences: a convolutional network over word windows, and a classifier of mean-pooled embeddings.

Both read embeddings rather than token ids, so that a summary's sentences can be free vectors. Neither uses fused attention
or cuDNN's recurrent kernels, which have no second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datastill.backbones.base import Learner
from datastill.errors import check_count, require


@dataclass(frozen=True)
class Tokens:
    """Sentences as embedded tokens.

    Attributes:
        vectors: (n, length, d), one vector a token; rows behind a sentence's end are ignored.
        mask: (n, length) bool, true on the tokens of the sentence: a prefix of at least one token.
    """

    vectors: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)


def mean_pool(tokens: Tokens) -> Tensor:
    """The mean token vector of each sentence, (n, d)."""
    return _without_padding(tokens).sum(1) / tokens.mask.sum(1, keepdim=True).clamp(min=1)


def _without_padding(tokens: Tokens) -> Tensor:
    """The vectors with zeros behind the ends. By `where`, not by a product: padding may hold anything, even infinities."""
    return torch.where(tokens.mask[:, :, None], tokens.vectors, 0.0)


class TextCNN(Learner):
    """Word-window convolutions, each maximised over time, then a linear head (Kim 2014, arXiv 1408.5882).

    A window starts at every token of the sentence and reads zeros behind its end. Sentences of any length are therefore
    accepted, and padding never changes an output.

    Args:
        width: d, the length of a token vector.
        outputs: classes.
        windows: tokens that a filter reads, one size each.
        channels: filters of each size.
        dropout: of the pooled features, in training mode only; in [0, 1).
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        windows: Sequence[int] = (3, 4, 5),
        channels: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("width", width)
        check_count("outputs", outputs)
        check_count("channels", channels)
        require(len(windows) > 0, "windows must name at least one filter size, got none.")
        for window in windows:
            check_count("windows", window)
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout!r}.")
        self.windows = tuple(windows)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, window) for window in windows)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(windows), outputs)

    def layers(self, inputs: Tokens) -> list[Tensor]:
        """Features (n, channels) of each window size, then all of them."""
        length, longest = inputs.mask.shape[1], max(self.windows)
        vectors = F.pad(_without_padding(inputs), (0, 0, 0, longest - 1))
        # Windows side by side make each convolution one matrix product: for the few short sentences of a summary that is
        # several times faster than conv1d, above all in second derivatives.
        windows = torch.cat([vectors[:, offset : offset + length] for offset in range(longest)], dim=2)
        pooled = []
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            assert convolution.bias is not None
            filters = convolution.weight.permute(2, 1, 0).flatten(0, 1)
            answers = (windows[:, :, : len(filters)] @ filters).masked_fill(~inputs.mask[:, :, None], -torch.inf)
            pooled.append(F.relu(answers.max(1).values + convolution.bias))
        return [*pooled, torch.cat(pooled, dim=1)]

    def embed(self, inputs: Tokens) -> Tensor:
        """Features (n, channels * number of windows)."""
        features: Tensor = self.dropout(self.layers(inputs)[-1])
        return features


class MeanPool(Learner):
    """A ReLU network on the mean token vector (a deep averaging network; Iyyer et al. 2015).

    Args:
        width: d, the length of a token vector.
        outputs: classes.
        hidden: units of each hidden layer, at least one layer.
    """

    def __init__(self, width: int, outputs: int, *, hidden: Sequence[int] = (128,)) -> None:
        super().__init__()
        check_count("width", width)
        check_count("outputs", outputs)
        require(len(hidden) > 0, "hidden must name the units of at least one layer, got none.")
        sizes = [width, *(check_count("hidden", units) for units in hidden)]
        self.body = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], outputs)

    def layers(self, inputs: Tokens) -> list[Tensor]:
        """Features of each hidden layer, (n, units)."""
        features, found = mean_pool(inputs), []
        for layer in self.body:
            features = F.relu(layer(features))
            found.append(features)
        return found

    def embed(self, inputs: Tokens) -> Tensor:
        """Features (n, units of the last hidden layer)."""
        return self.layers(inputs)[-1]
