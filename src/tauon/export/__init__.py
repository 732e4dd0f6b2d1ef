"""Export: converts a checkpoint for other programs. Formats: Hugging Face folders, PEFT adapters, merged checkpoints."""

from tauon.export.weights import export_checkpoint, merge_adapter

__all__ = ["export_checkpoint", "merge_adapter"]
