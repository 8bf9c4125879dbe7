"""Draws docs/condensed-graph.png: thirty nodes condensed from the neighbour graph of digits, with learned edges.

python docs/draw_condensed_graph.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from datastill import condense_graph
from datastill.demo import neighbour_graph
from datastill.sources import load_digits, split_by_class

STRONGEST = 120  # edges that are drawn

pixels, labels = load_digits()
_, held = split_by_class(labels, seed=0)
small = condense_graph(neighbour_graph(pixels, labels, held, seed=0), nodes=30, recipe="gcond", progress=False)

weights = np.zeros((30, 30))
weights[small.edge_index[0], small.edge_index[1]] = small.edge_weight
weights = np.triu(weights)
angle = 2 * np.pi * np.arange(30) / 30  # nodes come in blocks of classes
places = np.stack([1.5 * np.cos(angle), np.sin(angle)], 1)

figure, axes = plt.subplots(figsize=(7.6, 5.2), dpi=110)
for place in np.argsort(weights, axis=None)[-STRONGEST:]:
    a, b = divmod(place, 30)
    shade = weights[a, b] / weights.max()
    axes.plot(*places[[a, b]].T, color="#2f6db3", alpha=0.1 + 0.7 * shade**2, linewidth=1.0, zorder=1)
for node, place in enumerate(places):
    image = OffsetImage(small.x[node].reshape(8, 8).numpy(), cmap="gray_r", zoom=2.5)
    axes.add_artist(AnnotationBbox(image, place, pad=0.1, bboxprops={"edgecolor": "#d9dee3"}))
    axes.text(*(1.2 * place), str(int(small.y[node])), ha="center", va="center", fontsize=9, color="#66727f")
axes.set_xlim(-1.85, 1.85)
axes.set_ylim(-1.3, 1.3)
axes.axis("off")
figure.savefig(Path(__file__).with_name("condensed-graph.png"), bbox_inches="tight", metadata={"Software": None})
