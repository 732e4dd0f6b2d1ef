"""Models of other libraries: Hugging Face folders and PEFT adapters, read and written."""

from tauon.models.pretrained.huggingface import open_huggingface
from tauon.models.pretrained.huggingface_write import write_huggingface
from tauon.models.pretrained.peft import adapt_like, peft_kind, read_peft, write_peft

__all__ = ["adapt_like", "open_huggingface", "peft_kind", "read_peft", "write_huggingface", "write_peft"]
