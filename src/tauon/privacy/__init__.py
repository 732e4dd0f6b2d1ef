"""Differential privacy: what a training job may tell of its data, and what an attacker really learns from it."""

__all__: list[str] = []
