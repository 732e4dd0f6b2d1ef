"""Explanations of a trained model, each with a measure of how far it may be believed."""

import tauon.explain.methods
import tauon.explain.rules  # noqa: F401  registers its rules, as methods registers the attribution methods
from tauon.explain.base import METHODS, Attribution, Cases, Method, Work, attribution_method, method_named, untouched
from tauon.explain.config import ExplainConfig
from tauon.explain.inputs import cases_of, regions_of_grid
from tauon.explain.overview import Explanation, explain_batch, explain_model, explain_new_examples
from tauon.explain.subject import Subject

__all__ = [
    "METHODS",
    "Attribution",
    "Cases",
    "ExplainConfig",
    "Explanation",
    "Method",
    "Subject",
    "Work",
    "attribution_method",
    "cases_of",
    "explain_batch",
    "explain_model",
    "explain_new_examples",
    "method_named",
    "regions_of_grid",
    "untouched",
]
