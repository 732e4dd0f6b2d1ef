"""Training under differential privacy: per-example clipping, noise, accounting, the ledger of each data set, audits."""

__all__: list[str] = []
