"""Local SGD and DiLoCo: replicas that train on their own, with an outer step every so often."""

from tauon.train.local_sgd.replica import local_steps

__all__ = ["local_steps"]
