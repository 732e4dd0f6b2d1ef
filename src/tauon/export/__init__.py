"""Export: a checkpoint becomes something that another program loads. Today: Hugging Face folders, PEFT adapters, merged checkpoints."""

from tauon.export.weights import export_checkpoint, merge_adapter

__all__ = ["export_checkpoint", "merge_adapter"]
