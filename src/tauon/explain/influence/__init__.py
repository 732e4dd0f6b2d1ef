"""Influence of training examples: which ones made the model say this, and which have a wrong label.

    of = IndexOf([model], task, fingerprint)                        models, task, what identifies the data
    index = build_index(folder, of, train_set, EkFac())             a row for each training example, on disk
    index.most_influential(batch, k=5)                              helped and hurt, with scores and what they mean

Three methods: `TracIn` (gradients at checkpoints; cheap, exact for perceptrons), `Trak` (classifiers, several models), `EkFac` (closest to retraining;
`lds` measures how close). `suspicious` ranks training examples by self-influence on early checkpoints.

An answer names training records. Of a privately trained model it would reveal what the privacy guarantee protects; the functions here do not
check that: `tauon explain` refuses it.
"""

from tauon.explain.influence.answer import Dominance, InfluenceAnswer, dominance
from tauon.explain.influence.ekfac import EkFac
from tauon.explain.influence.gradients import weights_hash
from tauon.explain.influence.index import Index, IndexOf, build_index
from tauon.explain.influence.lds import LdsResult, lds
from tauon.explain.influence.suspicious import Suspicious, self_influence, suspicious
from tauon.explain.influence.tracin import TracIn
from tauon.explain.influence.trak import Trak

__all__ = [
    "Dominance",
    "EkFac",
    "Index",
    "IndexOf",
    "InfluenceAnswer",
    "LdsResult",
    "Suspicious",
    "TracIn",
    "Trak",
    "build_index",
    "dominance",
    "lds",
    "self_influence",
    "suspicious",
    "weights_hash",
]
