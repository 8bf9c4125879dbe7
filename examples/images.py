"""Ten images a class instead of a dataset: scikit-learn's digits, which need no download.

python examples/images.py
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from datastill import condense_images

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, help="outer steps; the default is the recipe's")
steps = parser.parse_args().steps

digits = load_digits()
train, test, train_labels, test_labels = train_test_split(
    digits.images.astype("float32") / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)

small = condense_images(train, train_labels, per_class=10, steps=steps)
images, labels = small.tensors
print(tuple(images.shape), images.dtype, tuple(labels.shape))

# From here on it is a dataset like any other. This network is scikit-learn's; the summary was made for none in particular.
chosen = np.concatenate([np.flatnonzero(train_labels == digit)[:10] for digit in range(10)])
for name, inputs, targets in (
    ("100 real images", train[chosen], train_labels[chosen]),
    ("100 synthetic images", images.numpy(), labels.numpy()),
    (f"all {len(train)} images", train, train_labels),
):
    network = MLPClassifier((256,), max_iter=500, random_state=0).fit(inputs.reshape(len(inputs), -1), targets)
    print(f"{name}: {network.score(test.reshape(len(test), -1), test_labels):.1%}")
