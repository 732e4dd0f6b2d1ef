"""Adapters in PEFT's layout: a folder of adapter_config.json and adapter_model.safetensors (https://github.com/huggingface/peft).

A name there is `base_model.model.<layer>.lora_A.weight`, B likewise, DoRA's magnitude `lora_magnitude_vector`; what trained beside the
adapters goes under its own name. Where theirs is one matrix of several of ours (GPT-2's queries, keys and values), the adapters of ours
are the blocks of one of theirs, of several times the rank; read, each of ours takes its rows. The name of the base cannot tell whether it
is the same, so what Tauon writes also holds the base's fingerprint, among the safetensors file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauon.artifacts import folder_atomically, read_json
from tauon.artifacts.tensor_file import open_tensors
from tauon.errors import CheckpointError, DataError, Problem, RecipeError
from tauon.models.adapters import AdaptConfig, DoraConfig, LoraConfig, is_adapter
from tauon.models.base import Model, ModelConfig
from tauon.models.pretrained.formats import At
from tauon.models.pretrained.huggingface import View, family_of, is_tied, names_of
from tauon.models.pretrained.huggingface_write import joined

__all__ = ["adapt_like", "peft_kind", "read_peft", "write_peft"]

_PREFIX = "base_model.model."
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def _layers(config: ModelConfig) -> dict[str, At]:
    """Our name of each linear layer -> its position in the Hugging Face layer."""
    found = {}
    for ours, at in names_of(family_of(config), config).items():
        if ours.endswith(".weight"):
            at = at if isinstance(at, At) else At(at)
            found[ours.removesuffix(".weight")] = replace(at, name=at.name.removesuffix(".weight"))
    return found


def _config(path: Path) -> dict[str, Any]:
    file = path / "adapter_config.json"
    try:
        raw = read_json(file)
    except DataError as err:
        raise CheckpointError(f"adapt.from: {err} Give a folder with adapter_config.json and adapter_model.safetensors.") from None
    wrong = []
    if raw.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {raw.get('peft_type')!r}, expected 'LORA'")
    wrong += [
        f"{k} is {raw[k]!r}" for k in ("alora_invocation_tokens", "layer_replication", "target_parameters", "corda_config") if raw.get(k)
    ]
    if raw.get("bias", "none") != "none":
        wrong.append(f"bias is {raw['bias']!r}, expected 'none'")
    if raw.get("use_rslora"):
        wrong.append("use_rslora scales by alpha / sqrt(rank)")
    if wrong:
        raise CheckpointError(f"{file}: this adapter cannot be used here: {'; '.join(wrong)}.")
    return dict(raw)


def peft_kind(path: Path) -> type[AdaptConfig]:
    """Return the config type of a PEFT folder: LoRA or DoRA."""
    return DoraConfig if _config(path.expanduser()).get("use_dora") else LoraConfig


def adapt_like(adapt: AdaptConfig, config: ModelConfig) -> AdaptConfig:
    """Return `adapt` with rank, scale and layers of its pretrained adapter. `RecipeError` if the recipe contradicts them.

    `config`: of the base.
    """
    if adapt.from_ is None:
        return adapt
    path = Path(adapt.from_).expanduser()
    raw = _config(path)
    kind = peft_kind(path).kind_
    there = set(_tensors(path))
    layers = [ours for ours, at in _layers(config).items() if f"{at.name}.lora_A.weight" in there]
    short = sorted({ours.rpartition(".")[2] for ours in layers})
    alike = [ours for ours in config.build_on_meta().linear_layers() if ours.rpartition(".")[2] in short]
    found: dict[str, Any] = {
        "rank": int(raw["r"]), "alpha": float(raw.get("lora_alpha", 8)), "target": tuple(short if set(alike) == {*layers} else layers),
    }  # fmt: skip
    if not layers:
        raise CheckpointError(f"{path} is an adapter for another base: it adapts none of the layers of this {config.kind_}.")
    wrong = [] if adapt.kind_ == kind else [Problem("adapt.kind", f"{adapt.kind_}, but {adapt.from_} is a {kind}. Take {kind}.")]
    for name, value in found.items():
        if name in adapt.model_fields_set and getattr(adapt, name) != value:
            shown = f"{value:g}" if isinstance(value, float) else value
            wrong.append(Problem(f"adapt.{name}", f"{getattr(adapt, name)}, but {adapt.from_} has {shown}. Leave it out."))
    if wrong:
        raise RecipeError(wrong)
    return adapt.model_copy(update=found)


def read_peft(path: Path, config: ModelConfig, model: Model, fingerprint: str | None = None) -> dict[str, Any]:
    """Return the adapter's tensors by our names, read lazily.

    Args:
        path: the folder.
        config: of the adapted model.
        model: it, on the meta device: its adapters' names and shapes must be the folder's.
        fingerprint: of the base. An adapter that says it belongs to another one is a `CheckpointError`.
    """
    import safetensors

    path = path.expanduser()
    raw = _config(path)
    there = _tensors(path)
    with safetensors.safe_open(path / "adapter_model.safetensors", framework="pt") as f:
        said = (f.metadata() or {}).get("base")
    if said is not None and fingerprint is not None and said != fingerprint:
        named = f"{said[:12]}, {raw.get('base_model_name_or_path')}"
        raise CheckpointError(
            f"{path} is an adapter for another base ({named}) than model.from ({fingerprint[:12]}). Give the base it belongs to."
        )
    special = {**(raw.get("rank_pattern") or {}), **(raw.get("alpha_pattern") or {})}
    own = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    places, out, used = _layers(config), {}, set()
    wrong: list[str] = []
    plain = {ours: at if isinstance(at, At) else At(at) for ours, at in names_of(family_of(config), config).items()}
    for name, shape in own.items():
        layer, _, leaf = name.rpartition(".")
        at = places.get(layer) if is_adapter(name) else plain.get(name)
        called = at.name if at is not None and not is_adapter(name) else f"{at.name}.{_LEAVES[leaf]}" if at is not None else name
        if called not in there:
            if is_adapter(name):
                wrong.append(f"missing {called} {shape}")
            continue
        used.add(called)
        found: Any = there[called]
        if at is not None and at.part is not None and is_adapter(name):
            found = _block(there, at, leaf, config.adapt.rank if config.adapt is not None else 0, special)
        elif at is not None and not is_adapter(name) and (at.transposed or at.part):
            found = View(found, at)
        if tuple(found.shape) != shape:
            wrong.append(f"{called} has shape {tuple(found.shape)}, the model wants {shape}")
        out[name] = found
    wrong += [f"left over {n} {tuple(t.shape)}" for n, t in there.items() if n not in used]
    if special:
        wrong.append(f"a rank or scale of its own for {', '.join(special)}")
    if wrong:
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise CheckpointError(f"{path} is an adapter for another base, or of other layers than adapt.target: {'; '.join(wrong[:8])}{more}.")
    return out


def _tensors(path: Path) -> dict[str, Any]:
    """Return the tensors by their names without PEFT's prefix."""
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file}: missing. An adapter in a pickle (adapter_model.bin) is not read: save it as safetensors.")
    return {name.removeprefix(_PREFIX): t for name, t in open_tensors(file, {}).items()}


def _block(there: Mapping[str, Any], at: At, leaf: str, rank: int, special: dict[str, Any]) -> Any:
    """Of an adapter of one matrix of n of ours, what belongs to the one `at`: its rows; of A all, or where several adapters lie side by side
    in it (as `_blocks` writes them), the one whose B has numbers in these rows.
    """
    assert at.part is not None
    a, b = (there[f"{at.name}.{_LEAVES[x]}"] for x in ("lora_a", "lora_b"))
    if leaf == "magnitude":
        return View(there[f"{at.name}.{_LEAVES[leaf]}"], At("", part=at.part))
    if a.shape[0] == rank:
        return a if leaf == "lora_a" else View(b, At("", part=at.part))
    if rank == 0 or a.shape[0] % rank:
        return a if leaf == "lora_a" else b  # its shape will be refused
    special.pop(_suffix(at.name), None)  # its rank is that of its blocks together
    rows = View(b, At("", part=at.part)).read()
    blocks = rows.split(rank, dim=1)
    mine = [k for k, block in enumerate(blocks) if block.any()]
    if len(mine) > 1:
        message = f"its adapter of rank {a.shape[0]} mixes {at.part[1]} matrices that are apart here. Take one of rank {rank}."
        raise CheckpointError(f"{at.name}: {message}")
    k = mine[0] if mine else min(at.part[0], len(blocks) - 1)
    return a[slice(k * rank, (k + 1) * rank), slice(0, a.shape[1])] if leaf == "lora_a" else blocks[k]


def write_peft(
    to: Path, config: ModelConfig, tensors: Mapping[str, Any], *, base: str, fingerprint: str, text: bool = True,
    files: Mapping[str, str] | None = None,
) -> list[Path]:  # fmt: skip
    """Write the adapters of a model atomically in PEFT's layout; return the folder's files.

    Args:
        to: the folder, which must not exist.
        config: of the adapted model.
        tensors: what a checkpoint of adapters holds: them, and what trained beside them.
        base: name or path of the base, for people.
        fingerprint: of the base.
        text: a language model (`task_type` CAUSAL_LM).
        files: contents of small files by name (tokenizer, chat template).
    """
    from safetensors.torch import save_file

    adapt = config.adapt
    if adapt is None:
        raise CheckpointError("this model has no adapters. Export the whole model: --format huggingface.")
    places = _layers(config)
    parts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, value in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if is_adapter(name):
            at = places[layer]
            parts.setdefault(at.name, {}).setdefault((at.part or (0, 1))[0], {})[leaf] = (
                value if isinstance(value, Tensor) else value.read()
            )
    saved = _beside(config, tensors)
    out = {_PREFIX + theirs: t for theirs, t in saved.items()}
    beside = {theirs.rpartition(".")[0] for theirs in saved}
    ranks: dict[str, int] = {}
    for theirs, pieces in parts.items():
        n = next(at.part[1] if at.part else 1 for at in places.values() if at.name == theirs)
        joined = next(iter(pieces.values())) if n == 1 else _blocks(pieces, n, theirs, adapt.magnitudes)
        if n > 1:
            ranks[_suffix(theirs)] = joined["lora_a"].shape[0]
        for leaf, t in joined.items():
            out[f"{_PREFIX}{theirs}.{_LEAVES[leaf]}"] = t.contiguous()
    scale = adapt.scale
    raw = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if text else None, "base_model_name_or_path": base, "r": adapt.rank,
        "lora_alpha": scale * adapt.rank, "lora_dropout": adapt.dropout, "target_modules": _targets(parts, places), "bias": "none",
        "use_dora": adapt.magnitudes, "fan_in_fan_out": any(at.transposed for at in places.values()),
        "modules_to_save": sorted(beside) or None, "rank_pattern": ranks, "alpha_pattern": {k: scale * r for k, r in ranks.items()},
        "inference_mode": True, **({"ensure_weight_tying": True} if is_tied(config) and "embed.weight" in tensors else {}),
    }  # fmt: skip
    with folder_atomically(to) as folder:
        save_file({k: v.detach().float().clone() for k, v in out.items()}, str(folder / "adapter_model.safetensors"), metadata={
            "format": "pt", "base": fingerprint,
        })  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(raw, indent=2))
        for name, content in (files or {}).items():
            (folder / name).write_text(content, encoding="utf-8")
    return sorted(to.iterdir())


def _beside(config: ModelConfig, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return other trained weights by Hugging Face's names. `CheckpointError` if PEFT cannot store them."""
    family, model_names = family_of(config), {n for n, _ in config.build_on_meta().named_parameters(remove_duplicate=False)}
    names = names_of(family, config)
    theirs: dict[str, list[tuple[str, At]]] = {}
    for name in (n for n in tensors if not is_adapter(n)):
        if name not in names:
            raise CheckpointError(
                f"{name} trained, but it is not a separate weight in Hugging Face's {family.model_type}. Use --format huggingface."
            )
        at = names[name]
        at = at if isinstance(at, At) else At(at)
        theirs.setdefault(at.name, []).append((name, at))
    wanted: dict[str, set[str]] = {}
    for ours, at in names.items():
        wanted.setdefault((at.name if isinstance(at, At) else at).rpartition(".")[0], set()).add(ours)
    for module in sorted({name.rpartition(".")[0] for name in theirs}):
        trained = sorted(wanted[module] & set(tensors))
        if len(trained) < len([n for n in wanted[module] if n in model_names]):
            raise CheckpointError(f"of {module} only {', '.join(trained)} trained, and PEFT keeps whole layers. Take --format huggingface.")
    raw = {"num_channels": config.raw_value("input_shape")[0], "patch_size": config.raw_value("patch")} if family.kind == "vit" else {}
    return {name: joined(parts, tensors, raw) for name, parts in theirs.items()}


def _blocks(pieces: dict[int, dict[str, Tensor]], n: int, theirs: str, magnitudes: bool) -> dict[str, Tensor]:
    """Combine adapters of some of n stacked matrices into one adapter: A stacked, B block-diagonal."""
    if magnitudes and len(pieces) < n:
        raise CheckpointError(
            f"{theirs} is one matrix of {n} of ours in PEFT, of which DoRA adapts {len(pieces)}. Adapt all, or take LoRA."
        )
    first = next(iter(pieces.values()))
    rows, rank = first["lora_b"].shape
    order = sorted(pieces)
    b = torch.zeros(n * rows, len(order) * rank)
    for k, i in enumerate(order):
        b[i * rows : (i + 1) * rows, k * rank : (k + 1) * rank] = pieces[i]["lora_b"]
    joined = {"lora_a": torch.cat([pieces[i]["lora_a"] for i in order]), "lora_b": b}
    if magnitudes:
        joined["magnitude"] = torch.cat([pieces[i]["magnitude"] for i in order])
    return joined


def _suffix(theirs: str) -> str:
    """Return a layer's name within its block: `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    pieces = theirs.split(".")
    at = next((i for i, p in enumerate(pieces) if p.isdigit()), -1)
    return ".".join(pieces[at + 1 :])


def _targets(parts: Mapping[str, Any], places: Mapping[str, At]) -> list[str]:
    """Return `target_modules`: suffixes if the layer of that name is adapted in every block, else full names."""
    every = {at.name for at in places.values()}
    out = set()
    for theirs in parts:
        suffix = _suffix(theirs)
        alike = {n for n in every if n.endswith("." + suffix)}
        out.add(suffix if alike <= set(parts) else theirs)
    return sorted(out)
