"""Builds a large layout on the meta device as one rank of 1,024 (torch's fake process group), and says what that rank would hold.

Run as a program: `python large.py SIZE RANK`, which prints one line of JSON. A process of its own, as its memory is measured.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, tuple[dict[str, Any], dict[str, int], float]] = {
    # Llama 3 (arXiv:2407.21783, table 3): layers, width, heads, key-value heads, MLP; the layout; billions of parameters
    "8B": ({"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 14336}, {"shard": 128, "tensor": 8}, 8.03),
    "70B": ({"layers": 80, "width": 8192, "heads": 64, "kv_heads": 8, "mlp_width": 28672}, {"pipeline": 4, "shard": 32, "tensor": 8}, 70.55),
    "405B": (
        {"layers": 126, "width": 16384, "heads": 128, "kv_heads": 8, "mlp_width": 53248},
        {"pipeline": 8, "replicate": 2, "shard": 4, "context": 2, "tensor": 8},
        405.85,
    ),
}  # fmt: skip


def peak_memory() -> int:
    """Bytes that this program held at most. `ru_maxrss` will not do: Linux starts it with the memory of the process that began this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def build(size: str, rank: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tauon.config import parse
    from tauon.distributed import (
        Layout,
        Mesh,
        MeshParallel,
        World,
        apply_data,
        cut_blocks,
        local_slices,
        parallelize,
        refuse_layout,
        stages_of,
    )
    from tauon.distributed.shards import shard_of
    from tauon.models import ModelConfig, parameter_count
    from tauon.types import DataSpec

    sizes, shape, _ = SIZES[size]
    spec = DataSpec(vocab=128256, seq_len=8192)
    config = parse(ModelConfig, {"kind": "gpt", "mlp": "swiglu", "qk_norm": False, "rope_base": 500000.0, **sizes}).resolve(spec)
    layout = Layout(**shape)
    dist.init_process_group("fake", rank=rank, world_size=layout.world, store=FakeStore())
    began = time.perf_counter()
    mesh = Mesh(layout, World(rank, layout.world))
    parallel = MeshParallel(**shape, sequence_parallel=layout.tensor > 1)
    model = config.build_on_meta()
    total = parameter_count(model)
    refuse_layout(model, layout, parallel, batch=2048, seq_len=spec.seq_len)
    whole = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parts = []
    if layout.pipeline > 1:
        cuts = cut_blocks(len(model.blocks_to_compile()), layout.pipeline)
        parts = model.keep_stages([cuts[i] for i in stages_of(parallel, mesh)])
    parallelize(model, mesh, parts=parts or None, sequence=True)
    for part in parts or [model]:
        apply_data(part, mesh, blocks=part.blocks_to_compile())
    seconds = time.perf_counter() - began
    wrong = []
    held = 0
    over = layout.shard * layout.context
    for name, p in model.named_parameters():
        mine = math.prod(s.stop - s.start for s in local_slices(p))
        held += mine
        by_tensor = layout.tensor if shard_of(name, model.shard_plan) in ("colwise", "rowwise", "vocab") else 1
        rows = whole[name][0] // (by_tensor if shard_of(name, model.shard_plan) in ("colwise", "vocab") else 1)
        planned = -(-rows // over) * math.prod(whole[name]) // whole[name][0]
        if shard_of(name, model.shard_plan) == "rowwise":
            planned //= by_tensor
        if mine > planned or not p.is_meta or tuple(p.shape) != whole[name]:
            wrong.append(f"{name}: holds {mine} of {math.prod(whole[name])}, planned at most {planned}")
    dist.destroy_process_group()
    return {
        "parameters": total, "held": held, "names": len(list(model.named_parameters())), "seconds": seconds, "wrong": wrong,
        "gigabytes": peak_memory() / 1e9, "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(build(sys.argv[1], int(sys.argv[2]))))
