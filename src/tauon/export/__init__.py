"""Export: a trained model for other software. Programs for runtimes in verified bundles, and weights for transformers, PEFT and llama.cpp.

write_bundle(subject, Path("exported"), "onnx", batches)      # a program: onnx, openvino, executorch, aoti
export_weights(Path("runs/notes"), Path("notes-hf"), format="huggingface")
"""

from tauon.export.bundle import Bundle, ExportSubject, is_bundle, open_bundle, write_bundle
from tauon.export.config import ExportConfig
from tauon.export.exported_weights import export_weights
from tauon.export.weights import export_checkpoint, merge_adapter

__all__ = [
    "Bundle", "ExportConfig", "ExportSubject", "export_checkpoint", "export_weights", "is_bundle", "merge_adapter", "open_bundle", "write_bundle",
]  # fmt: skip
