"""The tokenizer of texts in rows (labelled texts, conversations, preferences): trained once on the training part, and stored in the cache
under a fingerprint of that text and the settings. The tokenizer of running text is stored with its tokens (`kinds/tokens.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauon.config import dump
from tauon.data.cache import cache_root, obtain
from tauon.data.config import DataConfig
from tauon.data.files import canonical, read_bytes, sha256_file, write_plain_json
from tauon.data.progress import report
from tauon.data.read_keys import count_as_read, reads
from tauon.data.tokenizer import Tokenizer, read_json
from tauon.errors import ChecksumError

__all__ = ["SEQ_LEN_DEFAULT", "digest_of", "tokenizer_for"]

_VERSION = 2
_DONE = "made.json"
SEQ_LEN_DEFAULT = 256


def digest_of(texts: Sequence[str]) -> str:
    """Return the sha256 of texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}\0".encode() + data)
    return digest.hexdigest()


def tokenizer_for(config: DataConfig, texts: Sequence[str]) -> tuple[Tokenizer, dict[str, Any]]:
    """Return (tokenizer, facts). A tokenizer that needs training is trained on `texts`, the training part."""
    asked = config.tokenizer
    made_of = {
        "version": _VERSION, "texts": digest_of(texts), "tokenizer": {k: v for k, v in dump(asked).items() if k != "path"},
        "files": [*(sha256_file(path) for path, _ in asked.files()), *(sha256_file(path) for path in asked.beside())],
    }  # fmt: skip
    folder = cache_root() / "tokenizers" / hashlib.sha256(canonical(made_of).encode()).hexdigest()[:32]

    def build(temporary: Path) -> None:
        report("tokenizer", 0)
        made = asked.build(lambda: iter(texts))
        made.save(temporary / "tokenizer.json")
        write_plain_json(temporary / _DONE, {"made_of": made_of, "sha256": made.sha256, "read": reads(asked)})

    obtain(folder, _DONE, build)
    done = read_json(read_bytes(folder / _DONE), str(folder / _DONE))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.sha256 != done["sha256"]:
        raise ChecksumError(
            f"{folder / 'tokenizer.json'}: the tokenizer file has changed since it was written. Delete {folder}, and it is prepared again"
        )
    count_as_read(asked, done["read"])
    return tokenizer, {"kind": asked.kind_, "vocab": tokenizer.vocab_size, "bos": tokenizer.bos, "sha256": tokenizer.sha256}
