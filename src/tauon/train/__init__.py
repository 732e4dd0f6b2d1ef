"""Training: the step with its three seams, the loop, hooks. Knows no model and no dataset by name."""

from tauon.train.assemble import Derived, Plan, build_job, fits_whole, make_plan, weights_are_few
from tauon.train.config import EarlyStopping, TrainConfig, WarmUp, largest_divisor
from tauon.train.ema import EMA
from tauon.train.first_step import Moved, refuse_leaks, refuse_wrong_mask, watch_first_step
from tauon.train.freeze import freeze, trainable
from tauon.train.health import GradientHealth
from tauon.train.layers import LayerLook, complaints, lasting_complaints, watch_layers
from tauon.train.local_steps import local_steps
from tauon.train.loop import STOP, Hook, StopSignal, every, job_state, restore, train, validation_loss, validation_marks
from tauon.train.meter import Meter, memory_mb
from tauon.train.precision import (
    Precision,
    available_memory,
    batch_that_fits,
    choose_compile,
    choose_device,
    choose_precision,
    dress,
    gather_dtype,
)
from tauon.train.ramp import Ramps, steps_for
from tauon.train.rounding import sensitivity, square_of_most
from tauon.train.served_job import Served, served
from tauon.train.share import RecipeWork, Work
from tauon.train.step import (
    PLATEAU,
    BatchSource,
    LaunchedStep,
    StepFunctions,
    StepPolicy,
    TrainJob,
    launch_step,
    mesh_exchange,
    optimizer_update,
    plain_gradients,
    step_seed,
    train_step,
)

__all__ = [
    "EMA",
    "PLATEAU",
    "STOP",
    "BatchSource",
    "Derived",
    "EarlyStopping",
    "GradientHealth",
    "Hook",
    "LaunchedStep",
    "LayerLook",
    "Meter",
    "Moved",
    "Plan",
    "Precision",
    "Ramps",
    "RecipeWork",
    "Served",
    "StepFunctions",
    "StepPolicy",
    "StopSignal",
    "TrainConfig",
    "TrainJob",
    "WarmUp",
    "Work",
    "available_memory",
    "batch_that_fits",
    "build_job",
    "choose_compile",
    "choose_device",
    "choose_precision",
    "complaints",
    "dress",
    "every",
    "fits_whole",
    "freeze",
    "gather_dtype",
    "job_state",
    "largest_divisor",
    "lasting_complaints",
    "launch_step",
    "local_steps",
    "make_plan",
    "memory_mb",
    "mesh_exchange",
    "optimizer_update",
    "plain_gradients",
    "refuse_leaks",
    "refuse_wrong_mask",
    "restore",
    "sensitivity",
    "served",
    "square_of_most",
    "step_seed",
    "steps_for",
    "train",
    "train_step",
    "trainable",
    "validation_loss",
    "validation_marks",
    "watch_first_step",
    "watch_layers",
    "weights_are_few",
]
