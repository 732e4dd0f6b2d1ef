"""Every registered strategy keeps the contract of strategies; strategies that break it are found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import tauon.federated.strategies  # noqa: F401  registers the strategies
from tauon.config import parse, registered
from tauon.federated import StrategyConfig, Update
from tauon.testing import check_strategy


@pytest.mark.parametrize("kind", sorted(registered("strategy")))
def test_every_strategy_keeps_the_contract(kind: str) -> None:
    check_strategy(parse(registered("strategy")[kind], {}))


@pytest.mark.parametrize("fault", ["order", "changes", "names"])
def test_a_strategy_that_breaks_it_is_found(fault: str) -> None:
    class Broken(StrategyConfig):
        def combine(self, updates: Sequence[Update]) -> dict[str, torch.Tensor]:
            if fault == "order":
                return dict(updates[0].tensors)
            if fault == "changes":
                next(iter(updates[0].tensors.values())).add_(1)
            found = super().combine(updates)
            return found if fault == "changes" else {"other": found["layer.bias"]}

    with pytest.raises(AssertionError):
        check_strategy(Broken())
