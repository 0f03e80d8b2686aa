"""What a person sees of a run: `LiveView` on a terminal, `PlainView` in a log file, and the closing table and lines.

Both views are observers of the run's events and show nothing that is not in them. Names and codes come from other
machines, so every one of them is drawn as plain text: no rich markup, no terminal escapes.
"""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from fedslm.reporting.events import Event
from fedslm.reporting.progress import Comparison, Header, Hospital, Progress

_REFRESHES_PER_S = 4
_WIDEST = 120  # columns; longer bars would tell no more
_LINES_BESIDE_TABLE = 14  # header, footer and table head at their longest: what is left of the screen is for hospitals
_LOUD = "bold white on red"
_STATE_STYLES = {
    "waiting": "dim",
    "joined": "default",
    "training": "cyan",
    "trained": "green",
    "dropped": "yellow",
    "refused": "bold red",
}


@dataclass(frozen=True, slots=True)
class _Glyphs:
    """The characters drawings are made of, for terminals with and without Unicode."""

    full: str
    head: str
    rest: str
    levels: str
    spinner: str
    dot: str
    more: str


_UNICODE = _Glyphs("━", "╸", "─", "▁▂▃▄▅▆▇█", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", " · ", "…")
_ASCII = _Glyphs("#", ">", "-", "_.-:=+*#", "|/-\\", ", ", "...")


# --- words -----------------------------------------------------------------------------------------------------------


def _clean(text: object) -> str:
    """Text from elsewhere as one printable line: escape sequences and line breaks become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _duration(seconds: float) -> str:
    """4.2 s, 4m 02s or 1h 05m."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def _size(size_bytes: int) -> str:
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


def _percent(share: float) -> str:
    """61.2 %"""
    return f"{100 * share:.1f} %"


def _spent(epsilon: float) -> str:
    """Epsilon with two decimals, rounded up: a guarantee is never shown stronger than it is."""
    return f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def _budget(epsilon: float) -> str:
    """A configured epsilon as it was written: 8.0, 0.25."""
    return f"{epsilon:.1f}" if round(epsilon, 1) == epsilon else f"{epsilon:g}"


def _privacy_sentence(privacy: Mapping[str, Any]) -> str:
    """epsilon 8.0 at delta 1e-06 per patient"""
    delta, unit = f"delta {privacy['delta']:.3g}", f"per {_clean(privacy['unit'])}"
    if privacy["epsilon"] is None:
        return f"noise multiplier {privacy['noise_multiplier']:.3g}, no epsilon budget, {delta} {unit}"
    return f"epsilon {_budget(privacy['epsilon'])} at {delta} {unit}"


def _run_sentence(header: Header, dot: str) -> str:
    parameters = f"{header.adapter_parameters:,} adapter parameters"
    return f"{_clean(header.run_id)}{dot}{_clean(header.model)}{dot}{parameters}"


def _warnings(header: Header) -> list[tuple[str, str]]:
    """What nobody may overlook, as (text, style); shown by every view, even a quiet one."""
    lines = []
    if not header.is_private:
        lines.append(("PRIVACY OFF: the adapter may remember what patients' notes say", _LOUD))
    if not header.masked:
        lines.append(("updates are NOT encrypted yet: the coordinator can read each one", "bold yellow"))
    if header.seeded:
        lines.append(("seeded simulation: noise is reproducible, not secret", "yellow"))
    return lines


def _epsilon_words(progress: Progress) -> str:
    """epsilon 3.21 of 8.0; empty with privacy off or before the first round."""
    if progress.epsilon is None or progress.header is None or not progress.header.is_private:
        return ""
    budget = progress.header.privacy["epsilon"]
    return f"epsilon {_spent(progress.epsilon)}" + (f" of {_budget(budget)}" if budget is not None else "")


def _remaining_words(progress: Progress, now: float) -> str:
    remaining = progress.remaining_s(now)
    return "" if remaining is None else f"about {_duration(remaining)} left"


# --- small drawings --------------------------------------------------------------------------------------------------


def _bar(fraction: float, width: int, glyphs: _Glyphs, style: str = "cyan") -> Text:
    """A bar that can be read without colour."""
    filled = min(width, max(0, round(fraction * width * 2)) / 2)
    done = glyphs.full * int(filled) + (glyphs.head if filled % 1 else "")
    return Text.assemble((done, style), (glyphs.rest * (width - len(done)), "bright_black"))


def sparkline(values: Sequence[float], width: int, levels: str = _UNICODE.levels) -> str:
    """The last `width` values as one character each, lowest to highest; equal values lie on the floor."""
    shown = list(values)[-width:] if width > 0 else []
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    top = len(levels) - 1
    return "".join(levels[round((value - low) / span * top) if span > 0 else 0] for value in shown)


def _one_line(text: str, style: str = "") -> Text:
    """Text that is cut rather than wrapped where a column is too narrow."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


# --- the live frame --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Frame:
    """One picture of a run, for a given width, height and moment."""

    progress: Progress
    width: int
    height: int
    now: float
    glyphs: _Glyphs

    def render(self) -> Group:
        header = self.progress.header
        if header is None:
            return Group(Text.assemble(("FedSLM", "bold cyan"), f"  starting {self._spinner()}"))
        parts = [*self._title(header), Text(), self._table(header), *self._hidden(), Text(), *self._footer()]
        return Group(*parts)

    def _spinner(self) -> str:
        return self.glyphs.spinner[int(self.now * _REFRESHES_PER_S) % len(self.glyphs.spinner)]

    def _title(self, header: Header) -> list[RenderableType]:
        lines: list[RenderableType] = [Text.assemble(("FedSLM", "bold cyan"), "  ", self._run(header))]
        facts = []
        if header.is_private:
            facts.append(_privacy_sentence(header.privacy))
        if header.masked:
            facts.append("updates masked, only their sum is seen")
        if facts:
            lines.append(Text(self.glyphs.dot.join(facts), style="green"))
        lines += [Text(text, style=style) for text, style in _warnings(header)]
        return lines

    def _run(self, header: Header) -> Text:
        return Text(_run_sentence(header, self.glyphs.dot))

    def _table(self, header: Header) -> Table:
        columns = [Column("hospital"), Column("state"), Column("rounds", justify="right", no_wrap=True)]
        if header.is_private:
            columns.append(Column(self._epsilon_heading(header), no_wrap=True))
        columns += [Column(name, justify="right", no_wrap=True, min_width=7) for name in ("up", "down", "last")]
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
        for hospital in self._shown():
            table.add_row(*self._row(hospital, header))
        return table

    def _epsilon_heading(self, header: Header) -> str:
        budget = header.privacy["epsilon"]
        return "epsilon spent" if budget is None else f"epsilon of {_budget(budget)}"

    def _row(self, hospital: Hospital, header: Header) -> list[RenderableType]:
        last = "" if hospital.seconds is None else _duration(hospital.seconds)
        cells: list[RenderableType] = [_one_line(_clean(hospital.name), "bold"), self._state(hospital)]
        cells.append(str(len(hospital.rounds)))
        if header.is_private:
            cells.append(self._epsilon(hospital, header.privacy["epsilon"]))
        return [*cells, _size(hospital.bytes_up), _size(hospital.bytes_down), last]

    def _state(self, hospital: Hospital) -> Text:
        words = f"{hospital.state} ({_clean(hospital.code)})" if hospital.code else hospital.state
        if hospital.state == "training" and not self.progress.outcome:
            words = f"{words} {self._spinner()}"
        return _one_line(words, _STATE_STYLES[hospital.state])

    def _epsilon(self, hospital: Hospital, budget: float | None) -> Text:
        spent = hospital.epsilon or 0.0
        if not budget:
            return Text(_spent(spent))
        bar = _bar(spent / budget, 6 if self.width < 100 else 16, self.glyphs)
        return Text.assemble(bar, f" {_spent(spent):>{len(_budget(budget)) + 1}}")

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
        lines = [self._round_line(), *self._score_line(), self._time_line(), *self._drop_line(), *self._outcome_line()]
        comparison = self.progress.comparison
        return lines if comparison is None else [*lines, Text(), *self._comparison_lines(comparison)]

    def _round_line(self) -> Text:
        progress = self.progress
        words = f"round {progress.round} of {progress.rounds}"
        return self._bar_line(words, progress.fraction, "green" if progress.outcome == "finished" else "cyan")

    def _bar_line(self, words: str, fraction: float, style: str) -> Text:
        percent = f" {100 * fraction:3.0f} %"
        room = self.width - len(words) - 2 - len(percent)
        return Text.assemble((f"{words}  ", "bold"), _bar(fraction, max(4, room), self.glyphs, style), percent)

    def _score_line(self) -> list[Text]:
        accuracies = [self.progress.accuracies[round] for round in sorted(self.progress.accuracies)]
        if not accuracies:
            return []
        loss = self.progress.losses[max(self.progress.losses)]
        words = f"pooled test: loss {loss:.3f}  accuracy {_percent(accuracies[-1])}"
        begin = f"  from {_percent(accuracies[0])}  " if len(accuracies) > 1 else ""
        curve = sparkline(accuracies, self.width - len(words) - len(begin), self.glyphs.levels)
        return [Text.assemble(words, (begin, "bright_black"), (curve if begin else "", "green"))]

    def _time_line(self) -> Text:
        words = [f"elapsed {_duration(self.progress.elapsed_s(self.now))}", _remaining_words(self.progress, self.now)]
        if self.progress.saved_round is not None:
            words.append(f"saved through round {self.progress.saved_round}")
        return Text(self.glyphs.dot.join(word for word in words if word), style="bright_black")

    def _drop_line(self) -> list[Text]:
        if self.progress.last_drop is None:
            return []
        round, hospital, code = self.progress.last_drop
        count = "1 drop" if self.progress.drops == 1 else f"{self.progress.drops} drops, the last"
        return [_one_line(f"{count} in round {round}: {_clean(hospital)} ({_clean(code)})", "yellow")]

    def _outcome_line(self) -> list[Text]:
        if self.progress.outcome == "interrupted":
            return [Text(f"interrupted in round {self.progress.round}", style="bold yellow")]
        if self.progress.outcome == "failed":
            return [Text(f"failed ({_clean(self.progress.failure_code)})", style="bold red")]
        return []

    def _comparison_lines(self, comparison: Comparison) -> list[Text]:
        words = f"comparison {comparison.index} of {comparison.total}"
        lines = [self._bar_line(words, comparison.fraction, "magenta")]
        if comparison.accuracy is not None:
            detail = f"accuracy {_percent(comparison.accuracy)}"
        else:
            detail = f"round {comparison.round} of {comparison.rounds}" if comparison.rounds else self._spinner()
        return [*lines, _one_line(f"{_clean(comparison.name)}: {detail}", "bright_black")]


class LiveView:
    """The live table of a run on a terminal; an `Observer`, a context manager and a rich renderable.

    It redraws itself four times a second, so that clocks tick while hospitals train. What other code prints meanwhile
    appears above the table. On leaving, the last picture stays on the screen. It shows neither a failure's message nor
    how to resume: the command line prints those last, once (`closing_lines`).

    Args:
      console: where to draw.
      clock: the present moment in unix seconds, comparable with the events' times.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._progress = Progress()
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
        glyphs = _ASCII if options.ascii_only else _UNICODE
        with self._lock:
            frame = _Frame(
                self._progress, min(options.max_width, _WIDEST), console.height, self._clock(), glyphs
            ).render()
        yield frame


# --- plain lines -----------------------------------------------------------------------------------------------------


class PlainView:
    """The same facts as plain lines, one a round, for a log or a pipe; an `Observer` and a context manager.

    Args:
      console: where to print.
      quiet: only what nobody may overlook: privacy off, updates readable, a hospital that refused, a failure.
      clock: the present moment in unix seconds, comparable with the events' times.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._progress = Progress()
        self._console = console or Console()
        self._quiet = quiet
        self._clock = clock
        self._held: tuple[int, str] | None = None  # a finished round, until its score is known

    def notify(self, event: Event) -> None:
        """Prints the line of an event, if it has one."""
        self._progress.apply(event)
        if event.kind not in ("scored", "checkpoint_written"):
            self._release()
        speak = getattr(self, f"_{event.kind}", None)
        if speak is not None:
            speak(event.fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _say(self, text: str, style: str = "", *, loud: bool = False) -> None:
        if loud or not self._quiet:
            # soft_wrap: a log is read by grep, so a line stays a line whatever the width.
            self._console.print(Text(text, style=style), soft_wrap=True, highlight=False)

    def _run_started(self, fields: Mapping[str, Any]) -> None:
        header = self._progress.header
        if header is None:
            return
        self._say(f"run {_run_sentence(header, ', ')}")
        rounds = f"rounds {fields['first_round']} to {fields['rounds']}"
        self._say(f"{len(fields['hospitals'])} hospitals, {rounds}: {', '.join(map(_clean, fields['hospitals']))}")
        if header.is_private:
            self._say(f"privacy: {_privacy_sentence(header.privacy)}", "green")
        if header.masked:
            self._say("updates masked: the coordinator sees only their sum", "green")
        for text, style in _warnings(header):
            self._say(text, style, loud=True)

    def _hospital_joined(self, fields: Mapping[str, Any]) -> None:
        self._say(f"{_clean(fields['hospital'])} joined")

    def _hospital_refused(self, fields: Mapping[str, Any]) -> None:
        self._say(f"{_clean(fields['hospital'])} refused ({_clean(fields['code'])})", "bold red", loud=True)

    def _hospital_dropped(self, fields: Mapping[str, Any]) -> None:
        where = f"round {fields['round']}: {_clean(fields['hospital'])}"
        self._say(f"{where} dropped ({_clean(fields['code'])})", "yellow")

    def _round_finished(self, fields: Mapping[str, Any]) -> None:
        round, hospitals = fields["round"], self._progress.hospitals.values()
        up, down = sum(each.bytes_up for each in hospitals), sum(each.bytes_down for each in hospitals)
        words = [
            f"round {round} of {self._progress.rounds}: {len(fields['survivors'])} of {len(hospitals)} hospitals",
            _epsilon_words(self._progress),
            f"{_size(up)} up, {_size(down)} down",
            _duration(fields["seconds"]),
        ]
        self._held = (round, ", ".join(word for word in words if word))
        if round in self._progress.accuracies:
            self._release()

    def _scored(self, fields: Mapping[str, Any]) -> None:
        if self._held is not None and self._held[0] == fields["round"]:
            self._release()
        elif fields["round"] < self._progress.round or not self._progress.is_round_open:
            self._say(f"after round {fields['round']}: {self._score(fields['round'])}")

    def _release(self) -> None:
        """Prints the round that waited for its score."""
        if self._held is None:
            return
        round, words = self._held
        self._held = None
        parts = [words, self._score(round), _remaining_words(self._progress, self._clock())]
        self._say(", ".join(part for part in parts if part))

    def _score(self, round: int) -> str:
        if round not in self._progress.accuracies:
            return ""
        return f"loss {self._progress.losses[round]:.3f}, accuracy {_percent(self._progress.accuracies[round])}"

    def _comparison_finished(self, fields: Mapping[str, Any]) -> None:
        comparison = self._progress.comparison
        place = f" {comparison.index} of {comparison.total}" if comparison is not None else ""
        self._say(f"comparison{place}: {_clean(fields['name'])}, accuracy {_percent(fields['accuracy'])}")

    def _run_interrupted(self, fields: Mapping[str, Any]) -> None:
        self._say(f"interrupted in round {fields['round']}", "bold yellow")

    def _run_failed(self, fields: Mapping[str, Any]) -> None:
        self._say(f"failed ({_clean(fields['code'])})", "bold red", loud=True)

    def _run_finished(self, fields: Mapping[str, Any]) -> None:
        self._say(f"finished after round {fields['round']}, {_duration(fields['seconds'])}")


def choose_view(
    target: Console | TextIO | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.time
) -> LiveView | PlainView:
    """The live table where `target` is a terminal that can move its cursor, plain lines elsewhere.

    Args:
      target: a console or a stream; standard output if None.
      quiet: only the warnings, as plain lines.
      clock: see `LiveView`.
    """
    console = target if isinstance(target, Console) else Console(file=target)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        return PlainView(console, quiet=quiet, clock=clock)
    return LiveView(console, clock=clock)


# --- the end ---------------------------------------------------------------------------------------------------------


def comparison_table(comparison: Mapping[str, Any]) -> RenderableType:
    """The closing comparison of a simulation: what the hospitals gain by training together.

    Args:
      comparison: accuracies from 0 to 1, on the test patients of all hospitals together unless said otherwise:
        `majority`: always giving the commonest answer; `base`: the model untuned; `single_best`: the best of the
        models tuned on one hospital alone, the one of `single_best_hospital` (its name); `federated`: this run;
        `pooled`: the same training with all notes in one place; `single_own`: hospital -> its own model on its own
        patients; `by_hospital`: hospital -> {`base`: the model untuned, on its patients; `single`: its own model on
        everybody's patients; `single_own`: its own model on its own patients; `federated_own`: this run's model on
        its own patients}. The outer `single_own` repeats those in `by_hospital` and is not drawn again.
    """
    parts = [
        Text("What training together gave", style="bold"),
        Text(),
        _everybody_table(comparison),
        Text(),
        _own_table(comparison["by_hospital"]),
        Text(),
        *_footnotes(comparison),
    ]
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class _AccuracyBar:
    """A bar that is as long as its cell is wide, up to 40."""

    share: float
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = _ASCII if options.ascii_only else _UNICODE
        yield _bar(self.share, min(options.max_width, 40), glyphs, self.style)


def _everybody_table(comparison: Mapping[str, Any]) -> Table:
    """One row per way of training, all judged on the same patients, weakest idea first."""
    rows = [
        ("commonest answer", "majority", "bright_black"),
        ("base model", "base", "bright_black"),
        (f"best single: {_clean(comparison['single_best_hospital'])}", "single_best", "cyan"),
        ("federated", "federated", "bold green"),
        ("pooled", "pooled", "cyan"),
    ]
    columns = (Column("on all hospitals' patients"), Column("accuracy", justify="right", no_wrap=True), Column(ratio=1))
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black", expand=True)
    for name, key, style in rows:
        share = comparison[key]
        words = _one_line(name, style if key == "federated" else "")
        table.add_row(words, Text(_percent(share), style=style), _AccuracyBar(share, style))
    return table


def _own_table(by_hospital: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per hospital, on its own patients: is it better off taking part?"""
    names = ("base model", "own model", "federated", "difference")
    columns = [Column("on a hospital's own patients"), *(Column(n, justify="right", no_wrap=True) for n in names)]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    for hospital, row in by_hospital.items():
        table.add_row(*_own_row(_clean(hospital), row))
    if len(by_hospital) > 1:
        keys = ("base", "single_own", "federated_own")
        mean = {key: sum(row[key] for row in by_hospital.values()) / len(by_hospital) for key in keys}
        table.add_row(*_own_row("mean of hospitals", mean), style="italic")
    return table


def _own_row(name: str, row: Mapping[str, float]) -> list[Text]:
    points = 100 * (row["federated_own"] - row["single_own"])
    gain = f"{points:+.1f}" if abs(points) >= 0.05 else "0.0"
    return [
        _one_line(name),
        Text(_percent(row["base"]), style="bright_black"),
        Text(_percent(row["single_own"])),
        Text(_percent(row["federated_own"]), style="bold green"),
        Text(gain, style="green" if points >= 0.05 else "yellow" if points <= -0.05 else ""),
    ]


def _footnotes(comparison: Mapping[str, Any]) -> list[RenderableType]:
    """What each row means, in sentences."""
    count = len(comparison["by_hospital"])
    sentences = (
        "commonest answer: always the most frequent answer, without reading the note.",
        "base model: before any tuning.",
        f"best single: the best of {count} models each tuned at one hospital alone, chosen by this very score.",
        "federated: this run's model, tuned by all hospitals while their notes stayed where they are.",
        "pooled: the same training with all notes in one place, which hospitals usually may not do.",
        "own model: tuned at that hospital alone. difference: federated minus own model, in points.",
    )
    return [Padding(Text(sentence, style="bright_black"), 0) for sentence in sentences]


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run, as plain text: what was done, what it guarantees, where things lie, how to go on.

    Args:
      summary: `status` (finished, interrupted or failed), `run_folder`, `adapter` (path, or None before the first
        checkpoint), `rounds` (whole rounds done), `epsilon` (spent; None: privacy off), `delta`, `unit`, `seconds`;
        optionally `report` (path) and `resume_command` (default: `fedslm simulate resume=` and the run folder).
    """
    plural = "round" if summary["rounds"] == 1 else "rounds"
    lines = [f"{_STATUS_WORDS[summary['status']]} after {summary['rounds']} {plural}, {_duration(summary['seconds'])}."]
    lines.append(_guarantee(summary))
    paths = {"run folder": summary["run_folder"], "report": summary.get("report"), "adapter": summary["adapter"]}
    lines += [f"{name:<11} {_clean(path)}" for name, path in paths.items() if path]
    if summary["status"] != "finished":
        resume = shlex.quote(f"resume={summary['run_folder']}")
        command = summary.get("resume_command") or f"fedslm simulate {resume}"
        lines.append(f"{'go on with':<11} {_clean(command)}")
    return lines


_STATUS_WORDS = {"finished": "Done", "interrupted": "Interrupted", "failed": "Failed"}


def _guarantee(summary: Mapping[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "PRIVACY OFF: the adapter may remember what patients' notes say."
    return f"Privacy spent: epsilon {_spent(summary['epsilon'])} at delta {summary['delta']:.3g} per {summary['unit']}."
