"""Training under differential privacy: clipping, noise, accounting, the ledger of each data set, audits."""

__all__: list[str] = []
