"""Contract suites: public, so that a third party can check its own models, optimizers and sources."""

from tauon.testing.contracts import check_model, check_optimizer, check_source, tiny_batch

__all__ = ["check_model", "check_optimizer", "check_source", "tiny_batch"]
