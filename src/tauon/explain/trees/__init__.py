"""Decision trees that imitate a model, over columns of a table or readable features of other examples."""

from tauon.explain.trees.draw import describe_fidelity, draw_tree
from tauon.explain.trees.fidelity import Fidelity, cohen_kappa, measure_fidelity, r2_of
from tauon.explain.trees.grow import Node, PlainTree, grow_tree
from tauon.explain.trees.readable import band_time_means, choose_ngrams, grid_cells, ngram_presence, ngrams_of, window_statistics
from tauon.explain.trees.surrogate import (
    CasePath,
    DepthScore,
    Rule,
    Surrogate,
    SurrogateSettings,
    crossed_rows,
    fit_surrogate,
    fit_surrogate_of_answers,
)
from tauon.explain.trees.tree_shap import TreeShap, tree_shap

__all__ = [
    "CasePath",
    "DepthScore",
    "Fidelity",
    "Node",
    "PlainTree",
    "Rule",
    "Surrogate",
    "SurrogateSettings",
    "TreeShap",
    "band_time_means",
    "choose_ngrams",
    "cohen_kappa",
    "crossed_rows",
    "describe_fidelity",
    "draw_tree",
    "fit_surrogate",
    "fit_surrogate_of_answers",
    "grid_cells",
    "grow_tree",
    "measure_fidelity",
    "ngram_presence",
    "ngrams_of",
    "r2_of",
    "tree_shap",
    "window_statistics",
]
