"""Public test helpers, so that third parties can check their own parts: contract suites for models, optimizers, sources, kinds of
data, cleaning filters, tasks, attribution methods, compression steps and federated strategies; running several processes; data
with planted faults.
"""

from tauon.testing.clipping import check_clipping, gradients_one_by_one
from tauon.testing.compressors import check_compressor
from tauon.testing.contracts import check_model, check_optimizer, check_source, tiny_batch
from tauon.testing.data_kinds import DataExample, check_data_kind
from tauon.testing.explainers import check_explainer, explainer_cases
from tauon.testing.filters import check_filter
from tauon.testing.jobs import tiny_job
from tauon.testing.planted import Planted, plant_images, plant_table, plant_texts, topic_texts, write_images
from tauon.testing.processes import ProcessFailure, run_processes
from tauon.testing.strategies import check_strategy
from tauon.testing.tasks import check_task

__all__ = [
    "DataExample",
    "Planted",
    "ProcessFailure",
    "check_clipping",
    "check_compressor",
    "check_data_kind",
    "check_explainer",
    "check_filter",
    "check_model",
    "check_optimizer",
    "check_source",
    "check_strategy",
    "check_task",
    "explainer_cases",
    "gradients_one_by_one",
    "plant_images",
    "plant_table",
    "plant_texts",
    "run_processes",
    "tiny_batch",
    "tiny_job",
    "topic_texts",
    "write_images",
]
