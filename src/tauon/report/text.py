"""Formats values for a reader: escaped text, numbers with a sensible number of digits, times, sizes. Does not depend on records of runs."""

from __future__ import annotations

import html
import math
import re
from typing import Any

__all__ = ["clock", "count", "cut", "escape", "figure", "human_bytes", "label", "spread", "stamp"]

# Also characters that HTML allows: overrides of the writing direction (U+202A-202E, U+2066-2069) would reorder the text around them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")


def escape(value: Any, most: int = 2000) -> str:
    """Make text safe between tags and in quoted attributes; control characters, surrogates and direction overrides become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", cut(str(value), most)))


def cut(text: str, most: int) -> str:
    """Return `text`, or if it is too long its beginning and how many characters follow."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def figure(value: float | None, digits: int = 4) -> str:
    """Format a number with `digits` significant digits; None is a dash.

    >>> figure(0.98712), figure(1234567.0), figure(3e-5), figure(None)
    ('0.9871', '1,234,567', '3.000e-5', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def spread(value: float, low: float | None, high: float | None) -> tuple[str, str, str]:
    """Format (value, low, high) with decimals that fit the interval's width: two digits of its half-width.

    >>> spread(0.98712, 0.98480, 0.98918)
    ('0.9871', '0.9848', '0.9892')
    """
    if low is None or high is None or not 0 < high - low < math.inf:
        return figure(value), figure(low), figure(high)
    decimals = max(0, min(8, 1 - math.floor(math.log10((high - low) / 2))))
    if max(abs(value), abs(low), abs(high)) >= 1e7 or decimals > 7:
        return figure(value), figure(low), figure(high)
    return f"{value:,.{decimals}f}", f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"


def count(value: float) -> str:
    """Format a whole number with thousands separators."""
    return f"{int(value):,}"


def human_bytes(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 100 else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def clock(seconds: float) -> str:
    """Format a duration in its two largest units: '3 min 41 s'."""
    if not 0 <= seconds < 1e12:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    left = round(seconds)
    parts = [(left // 86400, "d"), (left // 3600 % 24, "h"), (left // 60 % 60, "min"), (left % 60, "s")]
    first = next(i for i, (n, _) in enumerate(parts) if n)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n)


def stamp(unix: float) -> str:
    """Format a Unix time, in UTC."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return "–"


_NAMES = {
    "roc_auc": "ROC-AUC", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "ece": "Calibration error (ECE)", "brier": "Brier score", "f1": "F1",
    "f1_macro": "F1 (macro)", "f1_weighted": "F1 (weighted)", "nll": "Negative log-likelihood", "lr": "Learning rate", "tflops": "TFLOP/s",
    "log_loss": "Log loss", "map": "Mean average precision", "rank_mae": "Mean rank error", "rank_mae_macro": "Mean rank error (macro)",
    "kappa_quadratic": "Kappa (quadratic)", "f1_micro": "F1 (micro)", "reciprocal_rank": "Mean reciprocal rank",
    "average_precision": "Average precision",
    "mse": "MSE", "mase": "MASE", "mape": "MAPE", "smape": "sMAPE", "pinball": "Pinball loss", "mae_in_units": "MAE in units",
}  # fmt: skip


def label(name: str) -> str:
    """Return a metric's name for people: `bits_per_byte` -> 'Bits per byte'."""
    if name in _NAMES:
        return _NAMES[name]
    for how in ("macro", "weighted"):
        if name.endswith(f"_{how}"):
            return f"{label(name.removesuffix(f'_{how}'))} ({how})"
    if name.startswith("coverage_"):
        return f"Coverage of the {name.removeprefix('coverage_')}% interval"
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
