"""`save` and `load`: a data summary on disk, with all that says where it came from and how good it is."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datastill import registry
from datastill.bundle import has_bundle, read_bundle, write_bundle
from datastill.errors import ArtifactError, InputError, MissingExtraError, require
from datastill.nested import META_MARK, encode

if TYPE_CHECKING:
    from datastill.evaluation import Evaluation
    from datastill.loop import Result

CONTENT = "artifact"
RUN_SUBFOLDER = "artifact"


@dataclass(frozen=True)
class Artifact:
    """A data summary as it is stored: the dataset that users train on, and its provenance.

    Attributes:
        kind: of data, a registered modality such as "image".
        dataset: the summary as the native dataset of its kind.
        points: synthetic points.
        nbytes: stored bytes of `dataset`.
        fingerprint: sha256 of the target dataset.
        recipe: the recipe's name, if one was used.
        objective: the objective's name.
        settings: the objective's hyper-parameters.
        seed: of the run.
        steps: outer steps of the run.
        best_step: the step whose summary this is.
        metric: by which it was selected.
        validation_score: of the selected summary; None if the run did not validate.
        seconds: the run took.
        learned: what the objective learned beside the summary, such as an inner learning rate; and what is to be known of the
            run: the "scope" of the target dataset, the bytes of "memory" that it was expected to take.
        evaluation: scores on the test split beside the baselines, as `Evaluation.to_json` gives them.
        versions: of datastill and of what it computed with.
    """

    kind: str
    dataset: Any
    points: int
    nbytes: int
    fingerprint: str
    objective: str
    seed: int
    steps: int
    best_step: int
    metric: str
    seconds: float
    recipe: str | None = None
    validation_score: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Result, evaluation: Evaluation | None = None) -> Artifact:
        """What there is to store of a run."""
        dataset = result.export()
        size = result.modality.size(dataset)
        return cls(
            kind=result.modality.kind,
            dataset=dataset,
            points=size.points,
            nbytes=size.nbytes,
            fingerprint=result.modality.fingerprint(),
            objective="coreset" if result.objective is None else result.objective.name,
            seed=result.seed,
            steps=max((record["step"] for record in result.history), default=result.best_step),
            best_step=result.best_step,
            metric=result.modality.metric,
            seconds=float(result.seconds),
            recipe=result.recipe,
            validation_score=result.best_score,
            settings=_storable({} if result.objective is None else result.objective.config()),
            learned=_storable(result.learned),
            evaluation=None if evaluation is None else evaluation.to_json(),
            versions=current_versions(),
            target=result.modality.describe(),
        )

    def export(self) -> Any:
        """The summary as the native dataset of its kind."""
        return self.dataset


def save(data: Result | Artifact, path: str | os.PathLike[str], *, evaluation: Evaluation | None = None) -> Artifact:
    """Write a summary as an artifact: a folder of safetensors and JSON, replaced atomically if it is one already.

    Args:
        data: a `Result` of `distill` or `condense_*`, or an `Artifact`.
        path: the artifact's folder.
        evaluation: scores to store with it, from `evaluate`.

    Returns:
        What was written.

    Raises:
        InputError: if `data` is neither, or `path` holds anything but an artifact.
    """
    if isinstance(data, Artifact):
        artifact = data if evaluation is None else dataclasses.replace(data, evaluation=evaluation.to_json())
    else:
        from datastill.loop import Result

        require(
            isinstance(data, Result),
            "data must be a Result, as `distill` or the `.job(...).run()` of a `condense_*` function give it, or an Artifact, "
            f"got {type(data).__name__}.",
        )
        artifact = Artifact.of(data, evaluation)
    tensors, packed = registry.find("modalities", artifact.kind).pack(artifact.dataset)
    record = {name: getattr(artifact, name) for name in _FIELDS}
    write_bundle(path, tensors, {"content": CONTENT, "artifact": record, "dataset": packed})
    return artifact


def load(path: str | os.PathLike[str]) -> Artifact:
    """Read an artifact, or the artifact of a run folder, after checking every one of its bytes.

    Raises:
        ArtifactError: if there is none, or it is corrupted, truncated, foreign or from a newer version.
        MissingExtraError: if its kind of dataset needs a package that is not installed.
    """
    folder = find_artifact(path)
    tensors, meta = read_bundle(folder)
    record, packed = meta.get("artifact"), meta.get("dataset")
    if meta.get("content") != CONTENT or not isinstance(record, dict) or not isinstance(packed, dict):
        raise ArtifactError(
            f"{folder} is a datastill bundle but not an artifact (its content: {meta.get('content')!r})."
        )
    if set(record) != set(_FIELDS):
        other = ", ".join(sorted(set(record) ^ set(_FIELDS)))
        raise ArtifactError(f"{folder} is not an artifact as datastill writes it; it differs in: {other}.")
    for name, kinds in _FIELDS.items():
        if not isinstance(record[name], kinds):
            raise ArtifactError(f"{folder} is not an artifact as datastill writes it: {name} is {record[name]!r}.")
    try:
        modality = registry.find("modalities", record["kind"])
    except InputError as error:
        raise ArtifactError(f"{folder} holds a kind of data that is not installed here: {error}") from error
    try:
        dataset = modality.unpack(tensors, packed)
    except (ArtifactError, MissingExtraError):
        raise
    except Exception as error:  # the checksums are right, so somebody forged it: anything may be wrong
        raise ArtifactError(f"{folder} does not hold a {record['kind']} dataset: {error!r}.") from error
    return Artifact(dataset=dataset, **record)


def find_artifact(path: str | os.PathLike[str]) -> Path:
    """`path`, or its subfolder `artifact` if it is a run folder."""
    inner = Path(path) / RUN_SUBFOLDER
    return inner if has_bundle(inner) and not has_bundle(path) else Path(path)


def current_versions() -> dict[str, str]:
    """Versions of datastill and of what decides its numbers."""
    from datastill import __version__

    return {"datastill": __version__, "torch": torch.__version__, "python": platform.python_version()}


# Stored fields and their types; the dataset is stored beside them.
_FIELDS: dict[str, Any] = {
    "kind": str,
    "points": int,
    "nbytes": int,
    "fingerprint": str,
    "objective": str,
    "seed": int,
    "steps": int,
    "best_step": int,
    "metric": str,
    "seconds": float,
    "recipe": str | None,
    "validation_score": float | None,
    "settings": dict,
    "learned": dict,
    "evaluation": dict | None,
    "versions": dict,
    "target": dict,
}


def _storable(values: dict[str, Any]) -> dict[str, Any]:
    """`values`, with what JSON cannot hold (a learner given as a function) by its name."""
    kept = {}
    for name, value in values.items():
        try:
            encode(value, META_MARK)
            kept[name] = value
        except InputError:
            kept[name] = getattr(value, "__qualname__", repr(value))
    return kept
