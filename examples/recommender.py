"""A log of interactions in, rows of 50 synthetic users out, and an item-item model trained on them.

python examples/recommender.py                             which pixels each of scikit-learn's digits inks, no download
python examples/recommender.py --log data/ml-100k.inter    parquet, CSV, TSV or RecBole's .inter
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import scipy.sparse as sp

from datastill import condense_interactions


def embedded() -> Any:
    """Digits as users, whose items are the pixels that they ink."""
    from sklearn.datasets import load_digits

    return sp.csr_matrix(load_digits().data >= 8)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--log", help="a log of (user, item) rows")
parser.add_argument("--steps", type=int, help="outer steps; the default is the recipe's")
options = parser.parse_args()

small = condense_interactions(options.log or embedded(), users=50, steps=options.steps)
print(small)
print(f"first rows: {list(zip(small.users, small.items, np.round(small.weights, 2)))[:3]}")
small.save("small.parquet")

# EASE in three lines: what goes with what, by the synthetic users alone.
matrix, _, items = small.to_csr()
precision = np.linalg.inv((matrix.T @ matrix).toarray() + 10 * np.eye(len(items)))
weights = precision / -np.diag(precision)
np.fill_diagonal(weights, 0)
history = matrix[0].toarray()[0]
best = np.argsort(np.where(history > 0, -np.inf, history @ weights))[::-1][:5]
print(f"for a user with {int((history > 0).sum())} items, recommend {items[best].tolist()}")
