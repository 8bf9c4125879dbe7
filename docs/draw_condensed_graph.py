"""Draws docs/condensed-graph.png: the neighbour graph of digits, and the thirty nodes that it is condensed to.

python docs/draw_condensed_graph.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.collections import LineCollection
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn.manifold import TSNE

from datastill import condense_graph
from datastill.demo import neighbour_graph
from datastill.modalities.graph import GraphModality
from datastill.sources import load_digits, split_by_class

pixels, labels = load_digits()
_, held = split_by_class(labels, seed=0)
data = neighbour_graph(pixels, labels, held, seed=0)
small = condense_graph(data, nodes=30, progress=False)

# Real nodes in a plane, by their features after two propagations, which is what a network of two layers reads; a synthetic node
# is drawn amid the real ones of its class that are most like it.
whole = GraphModality(data).real().inputs
propagated = whole.at(torch.arange(len(data.x))).propagated(2)
real = TSNE(init="pca", random_state=0).fit_transform(propagated.numpy())
apart = torch.cdist(small.x, propagated)
apart[small.y[:, None] != data.y[None]] = torch.inf
synthetic = real[apart.topk(7, largest=False).indices.numpy()].mean(1)

colours = plt.get_cmap("tab10")
figure, axes = plt.subplots(figsize=(7.6, 6.0), dpi=100)
edges = data.edge_index[:, data.edge_index[0] < data.edge_index[1]].T.numpy()
axes.add_collection(LineCollection(real[edges], colors="#9aa5b1", linewidths=0.3, alpha=0.25))
axes.scatter(*real.T, s=5, c=[colours(int(label)) for label in data.y], alpha=0.6, linewidths=0)
for node, place in enumerate(synthetic):
    image = OffsetImage(small.x[node].reshape(8, 8).numpy(), cmap="gray_r", zoom=1.9)
    frame = {"edgecolor": colours(int(small.y[node])), "linewidth": 1.6}
    axes.add_artist(AnnotationBbox(image, place, pad=0.1, bboxprops=frame))
axes.autoscale_view()
axes.axis("off")
figure.savefig(Path(__file__).with_name("condensed-graph.png"), bbox_inches="tight", metadata={"Software": None})
