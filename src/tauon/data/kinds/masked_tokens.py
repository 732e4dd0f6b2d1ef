"""Running text with some tokens masked, which the model predicts: the windows of `tokens`, read through `MaskedDataset`."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from tauon.config import register
from tauon.data.kinds.base import Request
from tauon.data.kinds.tokens import TokensKind
from tauon.data.masking import MaskedDataset
from tauon.data.splits import DataSplits
from tauon.data.tokens import TokenDataset

__all__ = ["MaskedTokensKind"]


@register("masked-tokens")
class MaskedTokensKind(TokensKind):
    """The same windows with masked tokens. Records call this kind tokens, too."""

    input_kind, title = "masked-tokens", "tokens"

    def prepare(self, request: Request) -> DataSplits:
        splits = super().prepare(request)
        whole = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        parts = {name: MaskedDataset(d, seed=request.seed, name=name) for name, d in whole.items() if isinstance(d, TokenDataset)}
        facts = splits.facts | {"parts": {name: d.facts for name, d in parts.items()}}
        fingerprint = hashlib.sha256(f"{splits.fingerprint}/masked".encode()).hexdigest()
        train = parts["train"]
        return replace(
            splits, train=train, validation=parts.get("validation"), test=parts.get("test"), spec=train.spec, facts=facts,
            fingerprint=fingerprint, preprocess=splits.preprocess | {"mask_token": train.mask},
        )  # fmt: skip
