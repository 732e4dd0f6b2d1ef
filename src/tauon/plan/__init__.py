"""Plan: derives every setting that a recipe leaves open, with its reason, before the first step (`make_plan`)."""

from tauon.plan.compiling import choose_compile
from tauon.plan.context import Decision, PlanContext
from tauon.plan.defaults import table_defaults
from tauon.plan.device import choose_device
from tauon.plan.machine import available_memory
from tauon.plan.make import make_plan
from tauon.plan.measured import fastest
from tauon.plan.memory import batch_that_fits, fits_whole, weights_are_few
from tauon.plan.plan import Derived, Plan
from tauon.plan.precision import choose_precision, training_precision
from tauon.plan.trial import Gradients, Work

__all__ = [
    "Decision",
    "Derived",
    "Gradients",
    "Plan",
    "PlanContext",
    "Work",
    "available_memory",
    "batch_that_fits",
    "choose_compile",
    "choose_device",
    "choose_precision",
    "fastest",
    "fits_whole",
    "make_plan",
    "table_defaults",
    "training_precision",
    "weights_are_few",
]
