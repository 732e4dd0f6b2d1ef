"""Concept activation vectors: whether an output rises with something that a person can name."""

from tauon.explain.concepts.derived import concepts_from_columns, concepts_from_labels
from tauon.explain.concepts.layer import layer_activations, output_gradients
from tauon.explain.concepts.score import Cav, ConceptScore, ConceptSettings, concept_vector, tcav

__all__ = [
    "Cav",
    "ConceptScore",
    "ConceptSettings",
    "concept_vector",
    "concepts_from_columns",
    "concepts_from_labels",
    "layer_activations",
    "output_gradients",
    "tcav",
]
