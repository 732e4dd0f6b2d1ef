"""Language models: what they would say after each layer, which tokens an answer rests on, which activations carry a difference."""

from tauon.explain.language.answers import AnswerAttribution, attribute_answer
from tauon.explain.language.lens import LensRow, logit_lens
from tauon.explain.language.patching import Patching, patch_activations

__all__ = ["AnswerAttribution", "LensRow", "Patching", "attribute_answer", "logit_lens", "patch_activations"]
