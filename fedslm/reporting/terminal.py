"""What a person sees of a run: `LiveView` on a terminal, `PlainView` (in `plain`) in a log, the closing table and lines.

Both views are observers of the run's events and show nothing that is not in them. Names and codes come from other
machines, so every one of them is drawn as plain text: no rich markup, no terminal escapes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Self, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from fedslm.reporting.closing import closing_lines, comparison_table
from fedslm.reporting.drawing import (
    ASCII,
    UNICODE,
    Glyphs,
    bar,
    budget_words,
    clean,
    duration_words,
    one_line,
    percent_words,
    size_words,
    sparkline,
    spent_words,
)
from fedslm.reporting.events import Event
from fedslm.reporting.plain import PlainView
from fedslm.reporting.progress import Comparison, Contestant, Header, Hospital, Progress
from fedslm.reporting.words import (
    held_out_words,
    masking_sentence,
    privacy_sentence,
    remaining_words,
    run_sentence,
    told,
    warnings,
)

__all__ = ["LiveView", "PlainView", "choose_view", "closing_lines", "comparison_table"]

_REFRESHES_PER_S = 4
_WIDEST = 100  # columns; longer bars would tell no more
_LINES_BESIDE_TABLE = 19  # header, footer and table head at their longest: what is left of the screen is for hospitals
_STATE_WIDTH = (10, 22)  # columns: "training" and its spinner, and a state with its code
_STATE_STYLES = {
    "waiting": "dim",
    "joined": "default",
    "training": "cyan",
    "trained": "green",
    "masked": "green",
    "dropped": "yellow",
    "refused": "bold red",
}


@dataclass(frozen=True, slots=True)
class _Frame:
    """One picture of a run, for a given width, height and moment."""

    progress: Progress
    width: int
    height: int
    now: float
    glyphs: Glyphs

    def render(self) -> Group:
        header = self.progress.header
        if header is None:
            return Group(Text.assemble(("FedSLM", "bold cyan"), f"  starting {self._spinner()}"))
        parts = [*self._title(header), Text(), self._table(header), *self._hidden(), Text(), *self._footer()]
        return Group(*parts)

    def _spinner(self) -> str:
        return self.glyphs.spinner[int(self.now * _REFRESHES_PER_S) % len(self.glyphs.spinner)]

    def _title(self, header: Header) -> list[RenderableType]:
        run = run_sentence(header, self.glyphs.dot)
        lines: list[RenderableType] = [Text.assemble(("FedSLM", "bold cyan"), f"  {run}")]
        if header.is_private:
            lines.append(Text(privacy_sentence(header.privacy), style="green"))
        if header.masked:
            lines.append(Text(masking_sentence(header), style="green"))
        lines += [Text(text, style=style) for text, style in warnings(header)]
        return lines

    def _table(self, header: Header) -> Table:
        name_width, state_width = self._widths(header)
        columns = [Column("hospital", width=name_width, no_wrap=True), Column("state", width=state_width, no_wrap=True)]
        columns.append(Column("rounds", justify="right", no_wrap=True))
        if header.is_private:
            columns.append(Column(self._epsilon_heading(header), width=self._epsilon_width(header), no_wrap=True))
        columns += [Column(name, justify="right", no_wrap=True, width=7) for name in self._measures()]
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for hospital in self._shown():
            table.add_row(*self._row(hospital, header, state_width))
        return table

    def _widths(self, header: Header) -> tuple[int, int]:
        """Columns for names and for states: what the others leave. They depend on no state, so nothing ever jumps."""
        others = 2 + 2 + 6 + 9 * len(self._measures()) + (2 + self._epsilon_width(header) if header.is_private else 0)
        longest = max((cell_len(clean(name)) for name in self.progress.hospitals), default=8)
        name = max(8, min(longest, self.width - others - _STATE_WIDTH[0]))
        return name, max(_STATE_WIDTH[0], min(_STATE_WIDTH[1], self.width - others - name))

    def _epsilon_heading(self, header: Header) -> str:
        budget = header.privacy["epsilon"]
        return "epsilon" if budget is None or self.width < 100 else f"epsilon of {budget_words(budget)}"

    def _measures(self) -> tuple[str, ...]:
        return ("up", "down", "last") if self.width >= 70 else ("last",)

    def _bar_width(self) -> int:
        return 0 if self.width < 70 else 6 if self.width < 100 else 16

    def _epsilon_width(self, header: Header) -> int:
        budget = header.privacy["epsilon"]
        return 8 if budget is None else max(8, self._bar_width() + 1 + len(spent_words(budget)))

    def _row(self, hospital: Hospital, header: Header, state_width: int) -> list[RenderableType]:
        last = "" if hospital.seconds is None else duration_words(hospital.seconds)
        cells: list[RenderableType] = [one_line(clean(hospital.name), "bold"), self._state(hospital, state_width)]
        cells.append(str(len(hospital.rounds)))
        if header.is_private:
            cells.append(self._epsilon(hospital, header.privacy["epsilon"]))
        measures = {"up": size_words(hospital.bytes_up), "down": size_words(hospital.bytes_down), "last": last}
        return [*cells, *(measures[name] for name in self._measures())]

    def _state(self, hospital: Hospital, width: int) -> Text:
        words = f"{hospital.state} ({clean(hospital.code)})" if hospital.code else hospital.state
        if cell_len(words) > width:  # half a code helps nobody; the footer has it
            words = hospital.state
        if hospital.state == "training" and not self.progress.outcome:
            words = f"{words} {self._spinner()}"
        return one_line(words, _STATE_STYLES[hospital.state])

    def _epsilon(self, hospital: Hospital, budget: float | None) -> Text:
        if hospital.epsilon is None:  # a resumed run that was not told its first part: 0.00 would be a lie
            return Text("?")
        words = spent_words(hospital.epsilon)
        if not budget:
            return Text(words)
        drawn = bar(hospital.epsilon / budget, self._bar_width(), self.glyphs)
        return Text.assemble(drawn, f" {words:>{len(spent_words(budget))}}")

    def _shown(self) -> list[Hospital]:
        """The hospitals there is room for."""
        room = max(3, self.height - _LINES_BESIDE_TABLE)
        return list(self.progress.hospitals.values())[:room]

    def _hidden(self) -> list[RenderableType]:
        hidden = list(self.progress.hospitals.values())[len(self._shown()) :]
        if not hidden:
            return []
        states = Counter(hospital.state for hospital in hidden)
        words = ", ".join(f"{count} {state}" for state, count in states.items())
        return [Text(f"{self.glyphs.more} and {len(hidden)} more: {words}", style="dim")]

    def _footer(self) -> list[RenderableType]:
        lines: list[RenderableType] = [
            self._round_line(),
            *self._score_line(),
            *self._held_out_line(),
            self._time_line(),
        ]
        lines += [*self._drop_line(), *self._failure_line(), *self._refused_line(), *self._outcome_line()]
        comparison = self.progress.comparison
        return lines if comparison is None else [*lines, Text(), *self._comparison_lines(comparison)]

    def _round_line(self) -> Text:
        progress = self.progress
        words = f"round {progress.round} of {progress.rounds}"
        return self._bar_line(words, progress.fraction, "green" if progress.outcome == "finished" else "cyan")

    def _bar_line(self, words: str, fraction: float, style: str) -> Text:
        percent = f" {100 * fraction:3.0f} %"
        room = self.width - len(words) - 2 - len(percent)
        return Text.assemble((f"{words}  ", "bold"), bar(fraction, max(4, room), self.glyphs, style), percent)

    def _score_line(self) -> list[Text]:
        accuracies = [self.progress.accuracies[round] for round in sorted(self.progress.accuracies)]
        if not accuracies:
            return []
        loss = self.progress.losses[max(self.progress.losses)]
        words = f"all test patients: loss {loss:.3f}  "
        latest = f"accuracy {percent_words(accuracies[-1])}"
        begin = f"  from {percent_words(accuracies[0])}  " if len(accuracies) > 1 else ""
        room = self.width - len(words) - len(latest) - len(begin)
        curve = sparkline(accuracies, room, self.glyphs.levels) if begin else ""
        return [Text.assemble(words, (latest, "bold"), (begin, "dim"), (curve, "green"))]

    def _held_out_line(self) -> list[Text]:
        words = held_out_words(self.progress)
        return [one_line(words)] if words else []

    def _time_line(self) -> Text:
        words = [
            f"elapsed {duration_words(self.progress.elapsed_s(self.now))}",
            remaining_words(self.progress, self.now),
        ]
        if self.progress.saved_round is not None:
            words.append(f"saved through round {self.progress.saved_round}")
        return Text(self.glyphs.dot.join(word for word in words if word), style="dim")

    def _drop_line(self) -> list[Text]:
        if self.progress.last_drop is None:
            return []
        round, hospital, code = self.progress.last_drop
        count = "1 drop" if self.progress.drops == 1 else f"{self.progress.drops} drops, the last"
        return [one_line(f"{count} in round {round}: {clean(hospital)} ({clean(code)})", "yellow")]

    def _failure_line(self) -> list[Text]:
        if not self.progress.failures:
            return []
        failure = self.progress.failures[-1]
        again = ", trying again" if self.progress.is_round_open and failure.round == self.progress.round else ""
        return [one_line(f"round {failure.round}: {failure.words}{again}", "yellow")]

    def _refused_line(self) -> list[Text]:
        refused = [hospital for hospital in self.progress.hospitals.values() if hospital.state == "refused"]
        words = ", ".join(f"{clean(hospital.name)} ({clean(hospital.code)})" for hospital in refused)
        return [one_line(f"refused: {words}", "bold red")] if refused else []

    def _outcome_line(self) -> list[Text]:
        if self.progress.outcome == "interrupted":
            return [Text(f"interrupted in round {self.progress.round}", style="bold yellow")]
        if self.progress.outcome == "failed":
            return [Text(f"failed ({clean(self.progress.failure_code)})", style="bold red")]
        return []

    def _comparison_lines(self, comparison: Comparison) -> list[Text]:
        words = f"comparison {comparison.finished} of {comparison.total} done"
        lines = [self._bar_line(words, comparison.fraction, "magenta")]
        return [*lines, *(one_line(self._contestant(contestant), "dim") for contestant in comparison.shown)]

    def _contestant(self, contestant: Contestant) -> str:
        if contestant.accuracy is not None:
            detail = f"accuracy {percent_words(contestant.accuracy)}"
        else:
            detail = f"round {contestant.round} of {contestant.rounds}" if contestant.rounds else self._spinner()
        return f"{clean(contestant.name)}: {detail}"


class LiveView:
    """The live table of a run on a terminal; an `Observer`, a context manager and a rich renderable.

    It redraws itself four times a second, so that clocks tick while hospitals train. What other code prints meanwhile
    appears above the table. On leaving, the last picture stays on the screen. It shows neither a failure's message nor
    how to resume: the command line prints those last, once (`closing_lines`).

    Args:
      console: where to draw.
      history: the events of the earlier part of a run that is resumed (`read_events`).
      clock: the present moment in unix seconds, comparable with the events' times.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        history: Iterable[Event] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._progress = told(history)
        self._clock = clock
        self._lock = threading.Lock()  # rich draws from a thread of its own
        self._live = Live(
            get_renderable=lambda: self, console=console or Console(), refresh_per_second=_REFRESHES_PER_S
        )

    def notify(self, event: Event) -> None:
        """Takes note of an event; the next refresh shows it."""
        with self._lock:
            self._progress.apply(event)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else UNICODE
        with self._lock:
            width = min(options.max_width, _WIDEST)
            picture = _Frame(self._progress, width, console.height, self._clock(), glyphs).render()
        yield picture


def choose_view(
    target: Console | TextIO | None = None,
    *,
    quiet: bool = False,
    history: Iterable[Event] = (),
    clock: Callable[[], float] = time.time,
) -> LiveView | PlainView:
    """The live table where `target` is a terminal that can move its cursor, plain lines elsewhere.

    Args:
      target: a console or a stream; standard output if None.
      quiet: only the warnings, as plain lines.
      history, clock: see `LiveView`.
    """
    console = target if isinstance(target, Console) else Console(file=target)
    if not console.encoding.startswith("utf") and isinstance(console.file, TextIOWrapper):
        console.file.reconfigure(errors="replace")  # a name such a terminal cannot write must not end the run
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        return PlainView(console, quiet=quiet, history=history, clock=clock)
    return LiveView(console, history=history, clock=clock)
