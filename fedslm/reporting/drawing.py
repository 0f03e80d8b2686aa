"""Small words and drawings the terminal's pages share: durations, sizes, percents, bars and sparklines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters drawings are made of, for terminals with and without Unicode."""

    full: str
    head: str
    rest: str
    levels: str
    spinner: str
    dot: str
    more: str


UNICODE = Glyphs("━", "╸", "─", "▁▂▃▄▅▆▇█", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", " · ", "…")
ASCII = Glyphs("#", ">", "-", "_.-:=+*#", "|/-\\", ", ", "...")


def clean(text: object) -> str:
    """Text from elsewhere as one printable line: escape sequences and line breaks become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def duration_words(seconds: float) -> str:
    """4.2 s, 4m 02s or 1h 05m."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def size_words(size_bytes: int) -> str:
    """Bytes with three figures: 512 B, 1.23 MB."""
    value, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{size_bytes} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def percent_words(share: float) -> str:
    """61.2 %"""
    return f"{100 * share:.1f} %"


def spent_words(epsilon: float) -> str:
    """Epsilon with two decimals, rounded up: a guarantee is never shown stronger than it is."""
    return f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def budget_words(epsilon: float) -> str:
    """A configured epsilon as it was written: 8.0, 0.25."""
    return f"{epsilon:.1f}" if round(epsilon, 1) == epsilon else f"{epsilon:g}"


def bar(fraction: float, width: int, glyphs: Glyphs, style: str = "cyan") -> Text:
    """A bar that can be read without colour."""
    filled = min(width, max(0, round(fraction * width * 2)) / 2)
    done = glyphs.full * int(filled) + (glyphs.head if filled % 1 else "")
    return Text.assemble((done, style), (glyphs.rest * (width - len(done)), "dim"))


def sparkline(values: Sequence[float], width: int, levels: str = UNICODE.levels) -> str:
    """The last `width` values as one character each, lowest to highest; equal values lie on the floor."""
    shown = list(values)[-width:] if width > 0 else []
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    top = len(levels) - 1
    return "".join(levels[round((value - low) / span * top) if span > 0 else 0] for value in shown)


def one_line(text: str, style: str = "") -> Text:
    """Text that is cut rather than wrapped where a column is too narrow."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
