"""Labelled texts, as users hold them and as summaries are exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from datastill.errors import InputError, require

Label: TypeAlias = int | str


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Texts and their labels: what a text summary is exported as.

    Attributes:
        texts: one text a point.
        labels: the class of each, as an integer or a string.
        soft_labels: (n, classes) float distributions over `classes`, where a summary has learned them; otherwise None.
        classes: what the columns of `soft_labels` stand for.
    """

    texts: list[str]
    labels: list[Label]
    soft_labels: Tensor | None = None
    classes: list[Label] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(
            len(self.texts) == len(self.labels),
            f"A TextDataset needs one label a text, got {len(self.texts)} texts and {len(self.labels)} labels.",
        )
        if self.soft_labels is not None:
            shape = (len(self.texts), len(self.classes))
            require(
                tuple(self.soft_labels.shape) == shape,
                f"soft_labels must have the shape (texts, classes) = {shape}, got {tuple(self.soft_labels.shape)}.",
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, position: int) -> tuple[str, Label]:
        return self.texts[position], self.labels[position]

    def __iter__(self) -> Iterator[tuple[str, Label]]:
        return iter(zip(self.texts, self.labels, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TextDataset):
            return NotImplemented
        return self.to_dict() == other.to_dict() and self.classes == other.classes

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns "text", "label" and, if learned, "soft_label", for `datasets.Dataset.from_dict` or a data frame."""
        columns: dict[str, list[Any]] = {"text": list(self.texts), "label": list(self.labels)}
        if self.soft_labels is not None:
            columns["soft_label"] = self.soft_labels.tolist()
        return columns


def labelled_texts(data: Any, labels: Any = None, *, name: str = "texts") -> TextDataset:
    """Check texts and labels, without changing them.

    Args:
        data: texts (then `labels` are needed), a pair (texts, labels), a `TextDataset`, or anything with columns "text"
            and "label": a dict, a Hugging Face `Dataset`, a pandas `DataFrame`.
        labels: one integer or string a text.
        name: of the argument, for error messages.

    Raises:
        InputError: no texts, empty or non-string ones, mismatched lengths, labels neither integers nor strings.
    """
    if isinstance(data, TextDataset):
        data = (data.texts, data.labels)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        require(labels is None, f"{name} already brings labels: leave out the labels argument.")
        data, labels = data
    elif labels is None:
        data, labels = _columns(data, name)
    texts, labels = _listed(data, name), _listed(labels, f"the labels of {name}")
    require(len(texts) > 0, f"{name} is empty; give at least one text.")
    require(
        len(texts) == len(labels),
        f"{name} needs one label a text, got {len(texts)} texts and {len(labels)} labels.",
    )
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name} must hold strings; entry {position} is of type {type(text).__name__}.")
        require(bool(text.strip()), f"{name} must not hold empty texts; entry {position} is {text!r}. Remove it.")
    return TextDataset(texts, [_label(label, position, name) for position, label in enumerate(labels)])


def _columns(data: Any, name: str) -> tuple[Any, Any]:
    try:
        return data["text"], data["label"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} came without labels: give labels, a pair (texts, labels), or a dataset with columns "
            "'text' and 'label'."
        ) from error


def _listed(column: Any, name: str) -> list[Any]:
    if isinstance(column, str) or not hasattr(column, "__iter__"):
        raise InputError(f"{name} must be a list with one entry a text, got {type(column).__name__}.")
    # Tensors, arrays and columns of data frames give Python values by `tolist`.
    return list(column.tolist() if hasattr(column, "tolist") else column)


def _label(label: Any, position: int, name: str) -> Label:
    if hasattr(label, "item"):
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise InputError(
            f"A label of {name} must be an integer or a string; entry {position} is {label!r} "
            f"of type {type(label).__name__}."
        )
    return label


def class_list(labels: Sequence[Label], name: str = "texts") -> list[Label]:
    """The distinct labels, sorted; at least two of one type."""
    distinct = set(labels)
    kinds = sorted({type(label).__name__ for label in distinct})
    require(len(kinds) == 1, f"The labels of {name} must all be integers or all be strings, got {' and '.join(kinds)}.")
    require(
        len(distinct) > 1,
        f"{name} needs at least two classes, got only {next(iter(distinct))!r}: there is nothing to tell apart.",
    )
    return sorted(distinct)  # type: ignore[type-var]


def class_ids(labels: Sequence[Label], classes: Sequence[Label], name: str) -> Tensor:
    """Labels as positions in `classes`, int64."""
    position = {label: index for index, label in enumerate(classes)}
    for label in labels:
        require(
            label in position,
            f"{name} holds the label {label!r}, which no training text has; the classes are {list(classes)!r}.",
        )
    return torch.tensor([position[label] for label in labels], dtype=torch.int64)


def split_off(labels: Tensor, fraction: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of a training and a validation part with equal class shares.

    Every class keeps at least one training point, and gives at least one to validation if it has two.

    Args:
        labels: (n,) class ids.
        fraction: the validation's share, in (0, 1).
        rng: which points.
    """
    kept, given = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=rng)]
        share = min(max(round(fraction * len(members)), 1), len(members) - 1)
        given.append(members[:share])
        kept.append(members[share:])
    return torch.cat(kept).sort().values, torch.cat(given).sort().values
