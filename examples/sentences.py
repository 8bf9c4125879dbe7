"""A few readable sentences a class: SST-2's files, or which library a docstring is from.

python examples/sentences.py                                                 docstrings of installed packages, no download
python examples/sentences.py --sst data/sst/stsa.binary.train --vectors glove.json
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import numpy as np
import torch

from datastill import condense_text


def sentiments(path: str) -> tuple[list[str], list[str]]:
    """Lines of "0 a sentence" or "1 a sentence"."""
    lines = [line.split(" ", 1) for line in Path(path).read_text(encoding="latin-1").splitlines()]
    return [text for _, text in lines], [("negative", "positive")[int(label)] for label, _ in lines]


def docstrings() -> tuple[list[str], list[str]]:
    """First lines of docstrings, with the package that they are from."""
    texts, labels = [], []
    for name, modules in (("numpy", (np, np.linalg, np.ma)), ("torch", (torch.nn, torch.nn.functional, torch.optim))):
        for module in modules:
            for value in vars(module).values():
                first = (inspect.getdoc(value) or "").split("\n")[0] if callable(value) else ""
                if len(first.split()) >= 4 and first not in texts:
                    texts.append(first)
                    labels.append(name)
    return texts, labels


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--sst", help="a file of SST-2 sentences")
parser.add_argument("--vectors", help="a file of word vectors; the default builds them from the texts")
parser.add_argument("--steps", type=int, help="outer steps; the default is the recipe's")
options = parser.parse_args()
texts, labels = sentiments(options.sst) if options.sst else docstrings()

small = condense_text(texts, labels, per_class=3, embeddings=options.vectors, steps=options.steps)
print(f"{len(texts)} texts -> {len(small)}")
for text, label in small:
    print(f"{label}: {text}")
