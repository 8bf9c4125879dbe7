"""Recommenders to fit to a log, real or distilled, and the metrics that rank them.

    from datastill.recommenders import EASE, Holdout

    model = EASE().fit(small.to_csr(item_ids)[0], validate=Holdout(histories, held_out))
    items, scores = model.recommend(histories, k=10)

All read SciPy matrices (users, items) whose entries are weights. `evaluate(..., learners=["ntk", "ease", "mult-vae", "als",
"popularity", "autoencoder"])` trains them on a summary by the modality's own protocol.
"""

from datastill.backbones.als import ALS
from datastill.backbones.multvae import MultVAE
from datastill.backbones.ranking import Holdout, all_metrics, auc, inverse_propensities, ranking_metrics
from datastill.backbones.recommenders import EASE, InfiniteAutoencoder, Popularity, Recommender

__all__ = [
    "ALS",
    "EASE",
    "Holdout",
    "InfiniteAutoencoder",
    "MultVAE",
    "Popularity",
    "Recommender",
    "all_metrics",
    "auc",
    "inverse_propensities",
    "ranking_metrics",
]
