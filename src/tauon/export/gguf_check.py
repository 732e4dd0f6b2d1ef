"""Reads a GGUF file back and computes with its own tensors and metadata, as llama.cpp documents it. For verification, not for speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tauon.export.gguf import gguf_library

__all__ = ["GgufModel"]


class GgufModel:
    """A model in a GGUF file: architectures llama, qwen2 and qwen3, float32."""

    def __init__(self, file: Path) -> None:
        reader = gguf_library().GGUFReader(file)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors: dict[str, Tensor] = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
        self.architecture = str(self.metadata["general.architecture"])

    def __getitem__(self, key: str) -> Any:
        """Return a value of the metadata, by its name without the architecture."""
        return self.metadata[f"{self.architecture}.{key}"]

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return BTV."""
        t, eps = self.tensors, float(self["attention.layer_norm_rms_epsilon"])
        x = t["token_embd.weight"][tokens_BT]
        for i in range(int(self["block_count"])):
            x = x + self._attention(f"blk.{i}.", F.rms_norm(x, x.shape[-1:], t[f"blk.{i}.attn_norm.weight"], eps))
            h = F.rms_norm(x, x.shape[-1:], t[f"blk.{i}.ffn_norm.weight"], eps)
            gate, up = h @ t[f"blk.{i}.ffn_gate.weight"].T, h @ t[f"blk.{i}.ffn_up.weight"].T
            x = x + (F.silu(gate) * up) @ t[f"blk.{i}.ffn_down.weight"].T
        x = F.rms_norm(x, x.shape[-1:], t["output_norm.weight"], eps)
        return x @ t.get("output.weight", t["token_embd.weight"]).T

    def _attention(self, block: str, x_BTD: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        K, eps = int(self["attention.key_length"]), float(self["attention.layer_norm_rms_epsilon"])
        heads = {}
        for name in "qkv":
            out = x_BTD @ self.tensors[f"{block}attn_{name}.weight"].T + self.tensors.get(f"{block}attn_{name}.bias", torch.zeros(()))
            out = out.view(B, T, -1, K)
            norm = self.tensors.get(f"{block}attn_{name}_norm.weight")
            out = out if norm is None else F.rms_norm(out, (K,), norm, eps)
            heads[name] = (out if name == "v" else self._rotated(out)).transpose(1, 2)
        groups = heads["q"].shape[1] // heads["k"].shape[1]
        k, v = (heads[n].repeat_interleave(groups, dim=1) for n in "kv")
        scores = (heads["q"] @ k.mT / K**0.5).masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)
        mixed: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1) @ self.tensors[f"{block}attn_output.weight"].T
        return mixed

    def _rotated(self, x_BTHK: Tensor) -> Tensor:
        """RoPE: of neighbours in the architecture llama, of halves in the others."""
        T, K = x_BTHK.shape[1], x_BTHK.shape[3]
        angles = float(self["rope.freq_base"]) ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
        angles = angles / self.tensors.get("rope_freqs.weight", torch.ones(())).double()
        turned = torch.arange(T, dtype=torch.float64)[:, None] * angles
        cos, sin = (f.float()[None, :, None, :] for f in (turned.cos(), turned.sin()))
        if self.architecture == "llama":
            a, b = x_BTHK[..., ::2], x_BTHK[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        a, b = x_BTHK.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
