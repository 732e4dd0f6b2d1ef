"""TMP"""
from pydantic import Field
from tauon.config import Registered, register


class ClippingConfig(Registered, family="clipping", default="flat"):
    """TMP"""


@register("flat")
class Flat(ClippingConfig):
    """One norm."""

    norm: float = Field(1.0, gt=0)
    """L2."""

    @property
    def sensitivity(self):
        return self.norm

    def factors(self, squared):
        n = sum(squared.values()).sqrt()
        return (self.norm / n.clamp(min=1e-12)).clamp(max=1)
