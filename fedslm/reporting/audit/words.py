"""Figures as people read them in a report: rounded against us, in words that need no explanation."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from fedslm.reporting.drawing import spent_words

UNBOUNDED = "no bound"


def epsilon_words(epsilon: float | None) -> str:
    """Epsilon with two decimals, rounded up: 3.42; "no bound" where there is none."""
    return UNBOUNDED if epsilon is None or math.isinf(epsilon) else spent_words(epsilon)


def left_words(epsilon: float) -> str:
    """What is left of a budget, with two decimals, rounded down."""
    return f"{math.floor(max(epsilon, 0.0) * 100 + 1e-6) / 100:.2f}"


def share_words(share: float) -> str:
    """A chance in percent, rounded up: 73.2 %, 99.97 %."""
    tenths = math.ceil(share * 1000 - 1e-9)
    if tenths <= 999:
        return f"{tenths / 10:.1f} %"
    hundredths = math.ceil(share * 10_000 - 1e-9)
    return "100 %" if hundredths >= 10_000 else f"{hundredths / 100:.2f} %"


def delta_words(delta: float) -> str:
    """A probability as written: 1e-06, 0.00025."""
    return f"{delta:.3g}"


def one_in_words(delta: float) -> str:
    """A small probability as "1 in 1,000,000", rounded up."""
    return f"1 in {math.floor(1 / delta + 1e-6):,}" if delta > 0 else "0"


def moment(time: str) -> datetime:
    """A row's time as a point in time."""
    return datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def day_words(time: str) -> str:
    """22 Nov 2026"""
    found = moment(time)
    return f"{found.day} {found:%b %Y}"


def time_words(time: str) -> str:
    """22 Nov 2026, 23:11 UTC"""
    return f"{day_words(time)}, {moment(time):%H:%M} UTC"


def count_words(count: int, noun: str) -> str:
    """1 session, 1,000 sessions"""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def hash_words(digest: str) -> str:
    """The first twelve digits of a hash, as a run's id is written."""
    return digest[:12]
