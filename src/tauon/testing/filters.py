"""Contract of cleaning filters: in order, counted, reasons kept, clean records left as they are. Public: check your own filter with it.

from tauon.testing import check_filter
def test_my_filter(): check_filter(MyFilterConfig(), clean=["A text that stays."], dirty=["a text that goes"])
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any

from tauon.config import dump, parse
from tauon.data import FilterConfig, Rejected, RowFilter, TextFilter
from tauon.data.clean import TextCleaner

__all__ = ["check_filter"]


def check_filter(config: FilterConfig, *, clean: Sequence[str] | Any, dirty: Sequence[str] | Any) -> None:
    """Check a cleaning filter.

    Args:
        config: the filter.
        clean: texts that it must leave as they are; for a `RowFilter`, a whole `Table`, `Arrays`, `Signals` or `Series`.
        dirty: texts that it must all change or reject; for a `RowFilter`, data in which it must find something.

    Raises:
        AssertionError: names the violated contract.
    """
    again = parse(FilterConfig, json.loads(json.dumps(dump(config))))
    assert dump(again) == dump(config), "its settings do not survive JSON"
    assert json.loads(json.dumps(config.fingerprint())) == again.fingerprint(), (
        "its fingerprint is not JSON, or differs from one call to the next"
    )
    assert config.cleans, "`cleans` does not say which kinds of data it is for"
    if isinstance(config, RowFilter):
        _check_rows(config, again, clean, dirty)
    else:
        assert isinstance(config, TextFilter), f"{type(config).__name__} must derive from TextFilter or RowFilter"
        _check_texts(config, again, clean, dirty)


def _check_texts(config: TextFilter, again: FilterConfig, clean: Sequence[str], dirty: Sequence[str]) -> None:
    cleaner, twin = TextCleaner([config, config]), TextCleaner([again, again])
    for text in clean:
        assert cleaner(text) == text, f"a clean text was changed or rejected: {text[:60]!r}"
    for text in dirty:
        found = cleaner(text)
        assert isinstance(found, Rejected) or found != text, f"nothing was found in {text[:60]!r}"
        if isinstance(found, Rejected):
            _check_reason(found)
        else:
            assert config.apply(found) == found, f"what it has cleaned is not clean to itself: {text[:60]!r}"
    everything = [*clean, *dirty]
    assert [twin(text) for text in everything] == [TextCleaner([config])(text) for text in everything], (
        "results differ from one time to the next"
    )
    first, second = cleaner.cleaning.counts
    assert (first.seen, second.seen) == (len(everything), len(everything) - first.rejected), (
        "a filter must see what those before it have left"
    )
    assert first.rejected + first.changed == len(dirty), "changed and rejected are not counted"
    assert sum(first.rules.values()) == first.rejected, "rejected records are not counted by rule"
    assert (second.rejected, second.changed) == (0, 0), "it finds more in what it has kept"


def _check_rows(config: RowFilter, again: FilterConfig, clean: Any, dirty: Any) -> None:
    assert isinstance(again, RowFilter)
    nothing = config.apply(clean)
    assert (nothing.rejected, nothing.changed, nothing.notes) == ({}, 0, []), f"clean data were found wrong: {nothing}"
    before = pickle.dumps(dirty)
    found, twin = config.apply(dirty), again.apply(copy.deepcopy(dirty))
    assert pickle.dumps(dirty) == before, "the data given were modified"
    assert found.rejected or found.changed or found.notes, "nothing was found in data that have a fault"
    assert (found.rejected, found.notes) == (twin.rejected, twin.notes), "results differ from one time to the next"
    assert all(0 <= row < len(dirty) for row in found.rejected), "a row that does not exist was rejected"
    assert found.changed == len(found.changed_rows), "changed rows are not counted"
    assert found.data is None or len(found.data) == len(dirty), "the changed data have another number of rows"
    for why in found.rejected.values():
        _check_reason(why)


def _check_reason(found: Rejected) -> None:
    assert 0 < len(found.rule.strip()) < 80, f"the rule has no short name: {found.rule!r}"
    assert len(found.reason) >= 8, f"the reason says nothing: {found.reason!r}"
