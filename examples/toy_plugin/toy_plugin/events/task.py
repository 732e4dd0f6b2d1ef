"""Classification of sequences of events: as that of arrays, of another kind of data."""

from __future__ import annotations

from tauon.config import register
from tauon.tasks import Classification

__all__ = ["EventClassification"]


@register("event-classification")
class EventClassification(Classification):
    """What a sequence of events is of."""

    input_kind = "events"
