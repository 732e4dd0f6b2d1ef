"""Training: the step with its three seams, the loop, hooks. Does not depend on models or data sets."""

from tauon.train.build import JobConfig, JobSettings, build_job
from tauon.train.config import EarlyStopping, TrainConfig, WarmUp, largest_divisor
from tauon.train.early import early_steps
from tauon.train.ema import EMA
from tauon.train.freeze import freeze, trainable
from tauon.train.health import GradientHealth
from tauon.train.hooks import (
    LayerLook,
    Meter,
    Moved,
    complaints,
    lasting_complaints,
    memory_mb,
    refuse_leaks,
    refuse_wrong_mask,
    watch_first_step,
    watch_layers,
)
from tauon.train.local_sgd import local_steps
from tauon.train.loop import STOP, Hook, StopSignal, every, job_state, restore, train, validation_loss, validation_marks
from tauon.train.parameter_server import RecipeWork, SyncParameterServer, Work, use_parameter_server
from tauon.train.precision import Precision, apply_checkpointing_and_compile, gather_dtype
from tauon.train.rounding import sensitivity, square_of_most
from tauon.train.sizes import BatchSizeScheduler, SeqLenTruncation, steps_for
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
    seed_draws,
    step_seed,
    train_step,
)
from tauon.train.timing import seconds_a_step

__all__ = [
    "EMA",
    "PLATEAU",
    "STOP",
    "BatchSizeScheduler",
    "BatchSource",
    "EarlyStopping",
    "GradientHealth",
    "Hook",
    "JobConfig",
    "JobSettings",
    "LaunchedStep",
    "LayerLook",
    "Meter",
    "Moved",
    "Precision",
    "RecipeWork",
    "SeqLenTruncation",
    "StepFunctions",
    "StepPolicy",
    "StopSignal",
    "SyncParameterServer",
    "TrainConfig",
    "TrainJob",
    "WarmUp",
    "Work",
    "apply_checkpointing_and_compile",
    "build_job",
    "complaints",
    "early_steps",
    "every",
    "freeze",
    "gather_dtype",
    "job_state",
    "largest_divisor",
    "lasting_complaints",
    "launch_step",
    "local_steps",
    "memory_mb",
    "mesh_exchange",
    "optimizer_update",
    "plain_gradients",
    "refuse_leaks",
    "refuse_wrong_mask",
    "restore",
    "seconds_a_step",
    "seed_draws",
    "sensitivity",
    "square_of_most",
    "step_seed",
    "steps_for",
    "train",
    "train_step",
    "trainable",
    "use_parameter_server",
    "validation_loss",
    "validation_marks",
    "watch_first_step",
    "watch_layers",
]
