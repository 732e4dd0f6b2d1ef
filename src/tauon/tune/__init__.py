"""Hyper-parameter search: the learning rate, by a range test."""

from tauon.tune.lr_range import RangeTest, lr_range

__all__ = ["RangeTest", "lr_range"]
