"""Text classification: sentences as sequences of embedded tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datastill import memory
from datastill.backbones.base import Learner
from datastill.backbones.text import MeanPool, TextCNN, Tokens, mean_pool
from datastill.backbones.training import Protocol
from datastill.errors import InputError, check_count, require, unknown_name
from datastill.modalities.base import Batch, Size, Split
from datastill.modalities.classification import ClassificationModality
from datastill.modalities.text_data import Label, TextDataset, class_ids, class_list, labelled_texts, split_off
from datastill.modalities.text_embeddings import load_embeddings
from datastill.modalities.text_init import central_members, noise_like, random_members
from datastill.modalities.text_summary import LabelForm, TextSummary, TokenForm
from datastill.modalities.text_table import Embeddings
from datastill.rng import generator

__all__ = ["Embeddings", "TextDataset", "TextModality", "TextSummary", "Tokens"]

MAX_LENGTH_CAP = 64
_LENGTH_QUANTILE = 0.95
_VALIDATION_SHARE = 0.1
_CHUNK = 1024  # sentences whose vectors are gathered at a time, at most
_KEPT = 2**30  # bytes of held-out vectors that are kept, at most
_NOISE_SAMPLE = 20_000
_INITS = ("real", "central", "noise")


class TextModality(ClassificationModality):
    """Sentences with a class.

    Args:
        texts: training texts (with `labels`), a pair (texts, labels), a `TextDataset`, or a dataset with columns "text"
            and "label", such as those of Hugging Face.
        labels: one integer or string a text.
        embeddings: the fixed table of token vectors: None builds one from the training texts (PPMI and an SVD); or a file
            of word vectors (JSON or GloVe's text form), a mapping of words to vectors, a Hugging Face model's name or
            folder, or an `Embeddings`. It is centred and scaled to the training texts.
        validation: the share of the training texts that is set apart, in (0, 1), or validation texts in any form of
            `texts`; None is a tenth.
        test: test texts in any form of `texts`; without them `score(..., "test")` is refused.
        max_length: tokens at which a text is cut; None takes the 95 % quantile of the training texts, at most 64.
        keep_unknown: whether tokens outside the table are kept as one "unknown" vector; otherwise they are dropped.
        download: whether a Hugging Face model that is not on this machine may be fetched.
        seed: of the validation split and of a table built from the texts.

    Raises:
        InputError: for texts, labels or embeddings that cannot be used; the message says what to mend.
    """

    kind: ClassVar[str] = "text"
    learners: ClassVar[tuple[str, ...]] = ("textcnn", "pool")

    def __init__(
        self,
        texts: Any,
        labels: Any = None,
        *,
        embeddings: Embeddings | Mapping[str, Any] | str | Path | None = None,
        validation: Any = None,
        test: Any = None,
        max_length: int | None = None,
        keep_unknown: bool = False,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        data = labelled_texts(texts, labels)
        self.classes: list[Label] = class_list(data.labels)
        ids = class_ids(data.labels, self.classes, "texts")
        if max_length is not None:
            check_count("max_length", max_length)
        held: dict[Split, tuple[list[str], Tensor]] = {}
        if validation is None:
            validation = _VALIDATION_SHARE
        if isinstance(validation, int | float):
            require(
                not isinstance(validation, bool) and 0 < validation < 1,
                f"validation must be a share in (0, 1) or a set of labelled texts, got {validation!r}.",
            )
            kept, given = split_off(ids, float(validation), generator(seed, "validation"))
            require(
                len(given) > 0,
                "No class has two texts, so none can be set apart for validation; give more, or validation texts.",
            )
            held["validation"] = [data.texts[i] for i in given.tolist()], ids[given]
            train_texts, ids = [data.texts[i] for i in kept.tolist()], ids[kept]
        else:
            held["validation"] = self._checked(validation, "validation")
            train_texts = data.texts
        if test is not None:
            held["test"] = self._checked(test, "test")

        self._texts, self._labels, self._validation = train_texts, ids, held["validation"]
        table = load_embeddings(embeddings, train_texts, keep_unknown=keep_unknown, download=download, seed=seed)
        rows = [table.encode(text) for text in train_texts]
        if max_length is None:
            lengths = torch.tensor([len(row) for row in rows], dtype=torch.float64)
            max_length = min(math.ceil(lengths.quantile(_LENGTH_QUANTILE).item()), MAX_LENGTH_CAP)
        self.max_length: int = max_length
        self._rows, self._mask = self._padded(rows)
        self.embeddings: Embeddings = table.standardised(
            torch.bincount(self._rows[self._mask], minlength=len(table.vectors))
        )
        self._held = {
            split: (*self._padded([table.encode(text) for text in split_texts]), split_ids)
            for split, (split_texts, split_ids) in held.items()
        }
        self._members = [(ids == group).nonzero().squeeze(1) for group in range(len(self.classes))]
        parts = torch.arange(len(ids)).split(self._at_once(self.embeddings.vectors.dtype))
        self._pooled = torch.cat([mean_pool(self._tokens(part)) for part in parts])
        power = self._pooled.square().mean().sqrt().item()
        self._pool_scale = 1.0 / power if power > 0 else 1.0
        self._moved: dict[Split, list[Batch]] = {}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        self._moved = {}
        return super().to(device, dtype)

    # --- the target dataset -------------------------------------------------------------------------------------------

    @property
    def group_sizes(self) -> list[int]:
        return [len(members) for members in self._members]

    def draw(self, size: int | None, groups: Sequence[int], rng: torch.Generator | None) -> Batch:
        picks = []
        for group in groups:
            members = self._members[group]
            if size is not None:
                members = members[torch.randperm(len(members), generator=rng)[:size]]
            picks.append(members)
        index = torch.cat(picks)
        return Batch(self._tokens(index), self._labels[index], self._labels[index])

    def held_out(self, split: Split) -> Iterable[Batch]:
        if split not in self._held:
            raise InputError("This text modality has no test texts; give them as test=(texts, labels).")
        if split not in self._moved:
            rows, mask, ids = self._held[split]
            vectors = self.embeddings.vectors
            parts = torch.arange(len(ids)).split(self._at_once(self.dtype))
            made = (Batch(Tokens(vectors[rows[p]], mask[p]), ids[p], ids[p]).to(self.device, self.dtype) for p in parts)
            if not memory.fits(self.dtype.itemsize * rows.numel() * self.embeddings.width, self.device, most=_KEPT):
                return made
            self._moved[split] = list(made)
        return self._moved[split]

    def fingerprint(self) -> str:
        """Digest of the training and validation texts, their labels, and the name of the embeddings."""
        digest = hashlib.sha256()

        def add(part: str) -> None:
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "big") + raw)

        add(self.embeddings.name)
        for texts, labels in ((self._texts, self._labels), self._validation):
            add(str(len(texts)))
            for text, label in zip(texts, labels.tolist()):
                add(text)
                add(repr(self.classes[label]))
        return digest.hexdigest()

    def identity(self) -> dict[str, str]:
        """The table of vectors, which `fingerprint` has by name alone, and the length of texts."""
        vectors = self.embeddings.vectors.detach().cpu().contiguous()
        digest = hashlib.sha256(vectors.numpy().tobytes()).hexdigest()
        return {"embeddings": digest, "max_length": str(self.max_length)}

    # --- learners and kernels -----------------------------------------------------------------------------------------

    def build(self, name: str) -> Learner:
        if name == "textcnn":
            return TextCNN(self.embeddings.width, self.num_classes)
        return MeanPool(self.embeddings.width, self.num_classes)

    def vectors(self, inputs: Tokens) -> Tensor:
        """Mean-pooled sentences, scaled to a mean square of one a coordinate over the training texts."""
        return mean_pool(inputs) * self._pool_scale

    def protocol(self, learner: str) -> Protocol:
        return Protocol(steps=300, optimizer="adam", lr=1e-3, batch_size=128)

    # --- summaries and native datasets --------------------------------------------------------------------------------

    def summary(
        self,
        counts: Sequence[int],
        *,
        rng: torch.Generator,
        init: str | Tensor = "real",
        tokens: TokenForm = "free",
        labels: LabelForm = "hard",
        pull: float = 0.0,
        fill: bool = False,
        **options: Any,
    ) -> TextSummary:
        """Sentences of free token vectors.

        Args:
            counts: sentences of each class.
            rng: of the initial values.
            init: "real" (random training sentences), "central" (those nearest to the k-means centres of their class),
                "noise" (normal vectors with the tokens' mean and covariance), or positions of training sentences in `full`.
            tokens: "free" vectors, or always "nearest" rows of the table (see `TextSummary`).
            labels: "hard" or "learned".
            pull: towards the nearest words, after every step.
            fill: whether sentences are filled up to `max_length`, real ones by further sentences of their class;
                otherwise lengths are those of real sentences.
            options: none; an unknown one is refused by name.
        """
        if options:
            raise unknown_name("option of a text summary", next(iter(options)), ("tokens", "labels", "pull", "fill"))
        if not isinstance(init, str):
            chosen = torch.cat(self._members)[self.check_chosen(init, counts)]
        elif init not in _INITS:
            raise unknown_name("init of a text summary", init, _INITS)
        else:
            chosen = torch.cat([self._first(group, count, init, rng) for group, count in enumerate(counts)])
        rows = [self._rows[index][self._mask[index]] for index in chosen.tolist()]
        groups = self._labels[chosen]
        if fill:
            rows = [self._filled(row, self._members[int(group)], rng) for row, group in zip(rows, groups)]
        ids, mask = _pad(rows)
        vectors = self.embeddings.vectors[ids]
        if isinstance(init, str) and init == "noise":
            known = self._rows[self._mask]
            sample = known[torch.randint(len(known), (min(len(known), _NOISE_SAMPLE),), generator=rng)]
            vectors = noise_like(self.embeddings.vectors[sample], (ids.shape[0], ids.shape[1]), rng)
        start = Tokens(vectors, mask)
        made = TextSummary(start, groups, self.classes, self.embeddings, form=tokens, labels=labels, pull=pull)
        return made.to(self.device, self.dtype)

    def read(self, dataset: Any) -> Batch:
        """A `TextDataset`, or labelled texts in any form that the constructor takes."""
        data = labelled_texts(dataset, name="dataset")
        ids = class_ids(data.labels, self.classes, "dataset")
        rows, mask = self._padded([self.embeddings.encode(text) for text in data.texts])
        targets = ids
        if isinstance(dataset, TextDataset) and dataset.soft_labels is not None:
            require(
                set(dataset.classes) == set(self.classes),
                f"The soft labels of dataset are over the classes {dataset.classes!r}, not over {self.classes!r}.",
            )
            order = [dataset.classes.index(label) for label in self.classes]
            targets = dataset.soft_labels[:, order]
        batch = Batch(Tokens(self.embeddings.vectors[rows], mask), targets, ids)
        return batch.to(self.device, self.dtype)

    def pick(self, index: Tensor) -> TextDataset:
        chosen = torch.cat(self._members)[index].tolist()
        return TextDataset([self._texts[i] for i in chosen], [self.classes[int(self._labels[i])] for i in chosen])

    def size(self, dataset: Any) -> Size:
        """Points, and the bytes of texts and labels in UTF-8 (four for each entry of a soft label)."""
        data = labelled_texts(dataset, name="dataset")
        nbytes = sum(len(f"{text}{label}".encode("utf-8", "surrogatepass")) for text, label in data)
        if isinstance(dataset, TextDataset) and dataset.soft_labels is not None:
            nbytes += 4 * dataset.soft_labels.numel()
        return Size(len(data), nbytes)

    def full_size(self) -> Size:
        return self.size(TextDataset(self._texts, [self.classes[label] for label in self._labels.tolist()]))

    @staticmethod
    def pack(dataset: TextDataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {} if dataset.soft_labels is None else {"soft_labels": dataset.soft_labels}
        return tensors, {"texts": dataset.texts, "labels": dataset.labels, "classes": dataset.classes}

    @staticmethod
    def unpack(tensors: dict[str, Tensor], meta: dict[str, Any]) -> TextDataset:
        return TextDataset(list(meta["texts"]), list(meta["labels"]), tensors.get("soft_labels"), list(meta["classes"]))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _checked(self, data: Any, name: str) -> tuple[list[str], Tensor]:
        checked = labelled_texts(data, name=name)
        return checked.texts, class_ids(checked.labels, self.classes, name)

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        return _pad([torch.tensor(row[: self.max_length], dtype=torch.int64) for row in rows])

    def _at_once(self, dtype: torch.dtype) -> int:
        """Sentences whose vectors are gathered at a time: they are there twice, as found and as moved or masked."""
        return memory.chunk(2 * dtype.itemsize * self.max_length * self.embeddings.width, most=_CHUNK)

    def _tokens(self, index: Tensor) -> Tokens:
        return Tokens(self.embeddings.vectors[self._rows[index]], self._mask[index])

    def _first(self, group: int, count: int, init: str, rng: torch.Generator) -> Tensor:
        """Training sentences that a class's points start from; for noise, only their lengths are used."""
        members = self._members[group]
        if init == "noise":
            return members[torch.randint(len(members), (count,), generator=rng)]
        if init == "central":
            return central_members(members, self._pooled[members], count, rng)
        return random_members(members, count, rng)

    def _filled(self, row: Tensor, members: Tensor, rng: torch.Generator) -> Tensor:
        while len(row) < self.max_length:
            further = int(members[int(torch.randint(len(members), (), generator=rng))])
            row = torch.cat([row, self._rows[further][self._mask[further]]])
        return row[: self.max_length]


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Row ids (n, longest) with zeros behind the ends, and the mask of what is not padding."""
    ids = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
