"""Time of a private step: GPT of 4 layers, width 256, sequences of 128, batch 64. Against the plain step, and against Opacus's best mode.

In fp32. Our step may take 1.35 times the plain one (`of_plain`); Opacus's must
take at least 1.35 times ours (`ratio`).

    python -m benchmarks.dp_step_lm [--quick] [--threads N]          needs the bench extra (opacus)
"""

from __future__ import annotations

from benchmarks._private import claim

if __name__ == "__main__":
    claim("dp_step_lm", "lm", ceiling=1.35, floor=1.35, doc=__doc__ or "")
