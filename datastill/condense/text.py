"""`condense_text`: labelled texts in, a few readable texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from datastill.budget import most_points, one_budget
from datastill.condense.common import Job, condenser, find_recipe
from datastill.modalities.text import Embeddings, TextDataset, TextModality
from datastill.recipe import Recipe


@condenser
def condense_text(
    texts: Any,
    labels: Any = None,
    *,
    per_class: int | None = None,
    nbytes: int | None = None,
    embeddings: Embeddings | Mapping[str, Any] | str | Path | None = None,
    recipe: str | Recipe | None = None,
    validation: Any = None,
    test: Any = None,
    max_length: int | None = None,
    download: bool = False,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> Job[TextDataset]:
    """Distil labelled texts into `per_class` readable texts of each class, on which a classifier trains almost as well.

    Args:
        texts: training texts (with `labels`), a pair (texts, labels), or a dataset with columns "text" and "label".
        labels: one integer or string a text.
        per_class: texts of each class in the result, at least 1; None is 5, or as many as fit into `nbytes`.
        nbytes: most bytes that the result may take, in place of `per_class`. Lengths of words are those of the texts that it
            begins from; where words that come out are longer, so that it takes more, it is not selected. Real texts that a recipe
            takes as they are may be longer; a warning says so.
        embeddings: token vectors: None builds them from the texts; or a file of word vectors, a mapping of words to vectors,
            a Hugging Face model's name or folder.
        recipe: one of `datastill.recipes` for text, or None for the default.
        validation: the share of the texts that is set apart to select the summary, in (0, 1), or validation texts in any form
            of `texts`; None is a tenth.
        test: test texts in any form of `texts`, never used in distillation; `evaluate` scores a job's result on them.
        max_length: tokens at which a text is cut; None takes the 95 % quantile of the texts, at most 64.
        download: whether a Hugging Face model that is not on this machine may be fetched.
        seed: of everything random.
        steps: outer steps, in place of the recipe's.
        out: run folder for the artifact, the metrics and checkpoints from which a killed run goes on. None writes nothing.
        device: where to compute; None is the CPU.
        memory: bytes that the run may use, such as "4GiB": chunks are made to fit, which changes numbers by rounding alone. None
            is the environment variable DATASTILL_MEMORY, or what is free.
        progress: whether a progress bar is shown on stderr.

    Returns:
        Texts with their labels, and soft labels if the recipe learns them.

    Raises:
        InputError: for data or arguments that cannot be used, before work starts.
    """
    one_budget(per_class=per_class, nbytes=nbytes)
    chosen = find_recipe(recipe, "text")
    modality = TextModality(
        texts,
        labels,
        embeddings=embeddings,
        validation=validation,
        test=test,
        max_length=max_length,
        download=download,
        seed=seed,
    )
    counts: Sequence[int] = [per_class or 5] * modality.num_groups
    if nbytes is not None:
        most = min(modality.group_sizes)
        counts = most_points(
            modality, chosen, nbytes, lambda count: [count] * modality.num_groups, most=most, seed=seed
        )
    options = {"seed": seed, "steps": steps, "out": out, "device": device, "progress": progress, "nbytes": nbytes}
    return Job(modality, counts, chosen, options)
