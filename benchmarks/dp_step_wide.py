"""Time of a private step: GPT of 2 layers, width 1,024, sequences of 128, batch 16. Against the plain step, and against Opacus's best mode.

In fp32. Our step may take 1.25 times the plain one (`of_plain`); Opacus's must
take at least 1.5 times ours (`ratio`).

    python -m benchmarks.dp_step_wide [--quick] [--threads N]          needs the bench extra (opacus)
"""

from __future__ import annotations

from benchmarks._private import claim

if __name__ == "__main__":
    claim("dp_step_wide", "wide", ceiling=1.25, floor=1.5, doc=__doc__ or "")
