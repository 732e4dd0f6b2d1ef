"""Local SGD and DiLoCo: replicas train separately, with an outer step every N steps."""

from tauon.train.local_sgd.replica import local_steps

__all__ = ["local_steps"]
