"""Time of a private step of LoRA, rank 16 on every linear layer of a GPT with 29 million weights (8 layers, width 512), sequences of 256, batch 8.

Against the plain step: ours may take 1.2 times as long (`of_plain`); `ratio` is the plain step's time by ours. fp32.

    python -m benchmarks.dp_lora [--quick] [--threads N]
"""

from __future__ import annotations

from benchmarks._private import claim

if __name__ == "__main__":
    claim("dp_lora", "lora", ceiling=1.2, floor=None, doc=__doc__ or "")
