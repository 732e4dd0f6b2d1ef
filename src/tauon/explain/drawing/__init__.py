"""Explanations as HTML: records and arrays in, safe markup out."""

__all__: list[str] = []
