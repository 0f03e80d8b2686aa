"""Charts of a report as inline SVG, and the plot of `audit plan`.

Text stays text, so that it can be read aloud, searched and set in the page's own font; every figure is in a table too. Blue
and vermilion differ for every common kind of colour blindness, and what is set aside is hatched besides.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fedslm.errors import ConfigError
from fedslm.reporting.audit.words import epsilon_words, moment

INK = "#1b1f24"
MUTED = "#5b6570"
RULE = "#dfe3e8"
SPENT = "#0b4f8a"
ASIDE = "#a9cbe8"
ALARM = "#b5400a"

_WIDTH_IN = 7.4
_MAX_BARS = 16
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": ["DejaVu Sans"],  # travels with matplotlib; the page's own narrower font replaces it when shown
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of the chart of plans.

    Attributes:
      label: which plan, and when.
      spent: epsilon of sessions that were started, or of rows that were lost.
      aside: epsilon reserved beyond that.
      is_bounded: False where no epsilon can be given; then the other two are 0.
    """

    label: str
    spent: float
    aside: float
    is_bounded: bool = True


def spending_chart(
    timeline: Sequence[Mapping[str, Any]], *, until: str, budget: float | None, title: str, salt: str
) -> Markup:
    """Draws epsilon over time: what was charged, what sessions that started have spent, and the budget above both.

    Args:
      timeline: `time` (as in a row), `charged` and `spent` (epsilon; None from where there is no bound), oldest first.
      until: the time of the last row.
      budget: None where there is none.
      title: said by a screen reader.
      salt: keeps the drawing's ids apart from those of other drawings on the page.
    """
    bounded = [point for point in timeline if point["charged"] is not None]
    times = [moment(point["time"]) for point in bounded]
    unbounded = [moment(point["time"]) for point in timeline[len(bounded) :]]
    last = max([moment(until), *times, *unbounded])  # a clock may have gone back
    with _figure(height_in=2.2, salt=salt) as (figure, axes):
        if bounded:
            _draw_spending(axes, times, bounded, min([last, *unbounded]))
        if budget is not None:
            _draw_limit(axes, budget, f"budget {epsilon_words(budget)}")
        if unbounded:
            _draw_unbounded(axes, unbounded[0], last)
        top = max([budget or 0.0, *(point["charged"] for point in bounded), 1e-3])
        axes.set_ylim(0, 1.13 * top)
        _time_axis(axes, [*times, *unbounded, last])
        axes.set_ylabel("epsilon")
        axes.grid(axis="y")
        return _inline(figure, title)


def plans_chart(bars: Sequence[Bar], *, budget: float | None, title: str, salt: str) -> Markup:
    """Draws what each plan took out of the budget, one row each, beginning where the one before it ended.

    Args:
      bars: oldest first; the oldest are drawn as one where there are many.
      budget, title, salt: as in `spending_chart`.
    """
    shown = _folded(bars)
    total = sum(bar.spent + bar.aside for bar in shown)
    top = max(total, budget or 0.0, 1e-3)
    with _figure(height_in=0.55 + 0.27 * max(len(shown), 1), salt=salt) as (figure, axes):
        begin = 0.0
        for place, bar in enumerate(shown):
            begin = _draw_bar(axes, place, bar, begin, top)
        if budget is not None:
            axes.axvline(budget, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.set_xlim(0, 1.12 * top)
        axes.set_ylim(len(shown) - 0.45, -0.6)
        axes.set_yticks(range(len(shown)), [bar.label for bar in shown])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel("epsilon" if budget is None else f"epsilon; dashed: the budget, {epsilon_words(budget)}")
        axes.grid(axis="x")
        return _inline(figure, title)


def cost_plot(
    path: Path,
    costs: Sequence[tuple[int, float]],
    *,
    mark: tuple[int, float],
    words: str,
    budget: float | None,
    heading: str,
) -> None:
    """Writes epsilon over the number of sessions as a PNG or SVG file, as the file's name ends.

    Args:
      costs: (sessions, epsilon), ascending.
      mark, words: a point to name on the curve, and its name.
      budget: a line across; None draws none.

    Raises:
      ConfigError: the file cannot be written.
    """
    with _figure(height_in=3.6, salt="plan") as (figure, axes):
        axes.plot([count for count, _ in costs], [epsilon for _, epsilon in costs], color=SPENT, linewidth=2)
        axes.plot(*mark, "o", color=SPENT, markersize=5)
        axes.annotate(words, mark, (6, -8), textcoords="offset points", ha="left", va="top")
        if budget is not None:
            _draw_limit(axes, budget, f"epsilon {epsilon_words(budget)}")
        axes.set_ylim(0, 1.13 * max([budget or 0.0, *(epsilon for _, epsilon in costs), 1e-3]))
        axes.set_xlim(0, None)
        axes.set(xlabel="sessions", ylabel="epsilon, at most")
        axes.set_title(heading, loc="left", fontsize=9.5, color=INK)
        axes.grid(axis="y")
        try:
            figure.savefig(path, dpi=200, facecolor="white", metadata=_anonymous(path.suffix))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None


def _draw_spending(axes: Any, times: list[datetime], points: Sequence[Mapping[str, Any]], last: datetime) -> None:
    """Both curves, and their last values at the right end."""
    charged, spent = ([point[key] for point in points] for key in ("charged", "spent"))
    ends = [*times, last]
    axes.fill_between(ends, [*spent, spent[-1]], [*charged, charged[-1]], step="post", facecolor=ASIDE, lw=0)
    axes.fill_between(ends, 0, [*spent, spent[-1]], step="post", facecolor=SPENT, lw=0)
    axes.step(ends, [*charged, charged[-1]], where="post", color=SPENT, linewidth=1.4)


def _draw_limit(axes: Any, value: float, words: str) -> None:
    axes.axhline(value, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate(words, (1.0, value), (0, 3), **place)


def _draw_unbounded(axes: Any, begin: datetime, end: datetime) -> None:
    axes.axvspan(
        begin, max(end, begin + timedelta(minutes=1)), facecolor="white", edgecolor=ALARM, hatch="////", linewidth=1
    )
    box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    place = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "center", "bbox": box}
    axes.text(end - (end - begin) * 0.05, 0.5, "NO BOUND", color=ALARM, fontweight="bold", **place)


def _draw_bar(axes: Any, place: int, bar: Bar, begin: float, top: float) -> float:
    """One row; returns where the next one begins."""
    if not bar.is_bounded:
        axes.barh(place, 1.12 * top, height=0.62, facecolor="white", edgecolor=ALARM, hatch="////", linewidth=0.8)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(0.56 * top, place, "NO BOUND", color=ALARM, fontweight="bold", va="center", ha="center", bbox=box)
        return begin
    axes.barh(place, bar.spent, left=begin, height=0.62, color=SPENT)
    end = begin + bar.spent
    axes.barh(place, bar.aside, left=end, height=0.62, facecolor=ASIDE, hatch="////", edgecolor=SPENT, linewidth=0)
    end += bar.aside
    axes.annotate(epsilon_words(bar.spent + bar.aside), (end, place), (4, 0), textcoords="offset points", va="center")
    return end


def _folded(bars: Sequence[Bar]) -> list[Bar]:
    """At most so many rows as can be read; the oldest bounded ones become one."""
    if len(bars) <= _MAX_BARS:
        return list(bars)
    count = len(bars) - _MAX_BARS + 1
    old = [bar for bar in bars[:count] if bar.is_bounded]
    first = Bar(label=f"{len(old)} earlier", spent=sum(bar.spent for bar in old), aside=sum(bar.aside for bar in old))
    return [first, *(bar for bar in bars[:count] if not bar.is_bounded), *bars[count:]]


def _time_axis(axes: Any, times: Sequence[datetime]) -> None:
    """Dates along the bottom; a ledger of a single moment gets a day."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if not times:
        return
    first, last = min(times), max(times)
    room = max((last - first) * 0.03, timedelta(minutes=1))
    axes.set_xlim(first - room, last + room)
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


@contextmanager
def _figure(*, height_in: float, salt: str) -> Iterator[tuple[Any, Any]]:
    """A figure of one pair of axes, in our style; nothing of it stays in the process."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it may mention fonts that are not there
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots()


def _inline(figure: Any, title: str) -> Markup:
    """The drawing as an element of a page, without the parts that only a file of its own needs."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=_anonymous(".svg"))
    text = out.getvalue()
    drawing = text[text.index("<svg") :]
    head, rest = re.sub(r'<g id="[^"]*"', "<g", drawing).split(">", 1)  # groups of every drawing have the same names
    box = re.search(r'viewBox="[\d. ]+"', head)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opened = f'<svg role="img" {names} {box[0] if box else ""}>'
    return Markup(opened) + Markup("<title>") + escape(title) + Markup("</title>") + Markup(rest)


def _anonymous(suffix: str) -> dict[str, None]:
    """Says nothing about when and by what a drawing was made, so that the same figures give the same file."""
    names = ("Date", "Creator", "Format", "Type") if suffix.lower() == ".svg" else ("Software",)
    return dict.fromkeys(names)


def ticks(count: int) -> tuple[int, ...]:
    """Numbers of sessions worth a row in a table: 1, 2, 5, 10, 20, 50, ... and `count` itself."""
    powers = range(math.floor(math.log10(count)) + 1)
    return tuple(
        sorted({step * 10**power for power in powers for step in (1, 2, 5) if step * 10**power < count} | {count})
    )
