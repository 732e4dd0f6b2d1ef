"""What happens during a run, as it happens: the event log."""

from tauon.tracking.events import EventLog, read_events, timeline

__all__ = ["EventLog", "read_events", "timeline"]
