"""The parts of an explanation, one file each: a subject in, JSON facts out."""

__all__: list[str] = []
