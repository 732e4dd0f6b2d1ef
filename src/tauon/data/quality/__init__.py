"""What may be wrong with data: labels that do not fit their examples."""

from tauon.data.quality.label_errors import LabelErrors, find_label_errors
from tauon.data.quality.out_of_fold import out_of_fold

__all__ = ["LabelErrors", "find_label_errors", "out_of_fold"]
