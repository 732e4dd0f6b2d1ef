"""Time of a private step: 6 convolutions with GroupNorm (32, 64, 128 channels), 32x32, batch 64. Against the plain step, and against Opacus's best mode.

In fp32. Our step may take 1.6 times the plain one (`of_plain`); Opacus's must
take at least 1.8 times ours (`ratio`).

    python -m benchmarks.dp_step_cnn [--quick] [--threads N]          needs the bench extra (opacus)
"""

from __future__ import annotations

from benchmarks._private import claim

if __name__ == "__main__":
    claim("dp_step_cnn", "cnn", ceiling=1.6, floor=1.8, doc=__doc__ or "")
