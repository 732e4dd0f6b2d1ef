"""Tauon trains large models on data that must be protected, explains what they learned, and makes them small enough to ship."""

__version__ = "0.1.0"
