"""Explanations of a trained model, each with a measure of how far it may be believed."""

__all__: list[str] = []
