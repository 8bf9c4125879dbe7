"""A PyG `Data` in, a `Data` with 35 nodes out, and a GAT trained on it.

python examples/graph.py                           the neighbour graph of scikit-learn's digits, no download
python examples/graph.py --planetoid data/planetoid  Cora, by torch-geometric's loader
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GAT

from datastill import condense_graph


def accuracy_of_gat(graph: Any, whole: Any) -> float:
    """Train PyG's GAT on `graph`; its accuracy on the test nodes of `whole`."""
    torch.manual_seed(0)
    gat = GAT(whole.num_features, 16, num_layers=2, out_channels=int(whole.y.max()) + 1, dropout=0.5)
    optimizer = torch.optim.Adam(gat.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(200):
        optimizer.zero_grad()
        outputs = gat(graph.x, graph.edge_index)
        cross_entropy(outputs[graph.train_mask], graph.y[graph.train_mask]).backward()
        optimizer.step()
    gat.eval()
    with torch.no_grad():
        predicted = gat(whole.x, whole.edge_index).argmax(1)
    return float((predicted == whole.y)[whole.test_mask].float().mean())


def embedded() -> Any:
    """Digits as nodes, each linked to those that look most alike."""
    from datastill.demo import neighbour_graph
    from datastill.sources import load_digits, split_by_class

    pixels, labels = load_digits()
    _, held = split_by_class(labels, seed=0)
    return neighbour_graph(pixels, labels, held, seed=0)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--planetoid", help="where torch-geometric's Planetoid finds Cora, or puts it")
parser.add_argument("--steps", type=int, help="outer steps; the default is the recipe's")
options = parser.parse_args()
data = Planetoid(options.planetoid, "Cora")[0] if options.planetoid else embedded()

small = condense_graph(data, nodes=35, steps=options.steps)
print(data)
print(small)
print(f"GAT trained on the whole graph: {accuracy_of_gat(data, data):.1%}")
print(f"GAT trained on 35 synthetic nodes: {accuracy_of_gat(small, data):.1%}")
