"""What is printed once a run is over: the closing comparison of a simulation, and the last lines of any run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from fedslm.reporting.drawing import ASCII, UNICODE, bar, clean, duration_words, one_line, percent_words, spent_words

_STATUS_WORDS = {"finished": "Done", "interrupted": "Interrupted", "failed": "Failed"}


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
    parts: list[RenderableType] = [
        Text("What training together gave", style="bold"),
        Text(),
        _everybody_table(comparison),
        Text(),
        _own_table(comparison["by_hospital"]),
        Text(),
        _footnotes(comparison),
    ]
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class _AccuracyBar:
    """A bar that is as long as its cell is wide, up to 40."""

    share: float
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else UNICODE
        yield bar(self.share, min(options.max_width, 40), glyphs, self.style)


def _everybody_table(comparison: Mapping[str, Any]) -> Table:
    """One row per way of training, all judged on the same patients, weakest idea first."""
    rows = [
        ("commonest answer", "majority", "dim"),
        ("base model", "base", "dim"),
        (f"best single: {clean(comparison['single_best_hospital'])}", "single_best", "cyan"),
        ("federated", "federated", "bold green"),
        ("pooled", "pooled", "cyan"),
    ]
    columns = (Column("on all hospitals' patients"), Column("accuracy", justify="right", no_wrap=True), Column(ratio=1))
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=True)
    for name, key, style in rows:
        share = comparison[key]
        words = one_line(name, style if key == "federated" else "")
        table.add_row(words, Text(percent_words(share), style=style), _AccuracyBar(share, style))
    return table


def _own_table(by_hospital: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per hospital, on its own patients: is it better off taking part?"""
    names = ("base model", "own model", "federated", "difference")
    columns = [Column("on a hospital's own patients"), *(Column(n, justify="right", no_wrap=True) for n in names)]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for hospital, row in by_hospital.items():
        table.add_row(*_own_row(clean(hospital), row))
    if len(by_hospital) > 1:
        keys = ("base", "single_own", "federated_own")
        mean = {key: sum(row[key] for row in by_hospital.values()) / len(by_hospital) for key in keys}
        table.add_row(*_own_row("mean of hospitals", mean), style="italic")
    return table


def _own_row(name: str, row: Mapping[str, float]) -> list[Text]:
    points = 100 * (row["federated_own"] - row["single_own"])
    gain = f"{points:+.1f}" if abs(points) >= 0.05 else "0.0"
    return [
        one_line(name),
        Text(percent_words(row["base"]), style="dim"),
        Text(percent_words(row["single_own"])),
        Text(percent_words(row["federated_own"]), style="bold green"),
        Text(gain, style="green" if points >= 0.05 else "yellow" if points <= -0.05 else ""),
    ]


def _footnotes(comparison: Mapping[str, Any]) -> Table:
    """What each row means, in sentences."""
    count = len(comparison["by_hospital"])
    meanings = {
        "commonest answer": "Always the most frequent answer, without reading the note.",
        "base model": "Before any tuning.",
        "best single": f"The best of {count} models, each tuned at one hospital alone; chosen by this very score.",
        "federated": "This run's model, tuned by all hospitals while their notes stayed where they are.",
        "pooled": "The same training with all notes in one place, which hospitals usually may not do.",
        "own model": "Tuned at that hospital alone.",
        "difference": "Federated minus own model, in percentage points.",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, meaning in meanings.items():
        table.add_row(Text(name, no_wrap=True), meaning, style="dim")
    return table


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run, as plain text: what was done, what it guarantees, where things lie, how to go on.

    Args:
      summary: `status` (finished, interrupted or failed), `run_folder`, `adapter` (path, or None before the first
        checkpoint), `rounds` (whole rounds done), `epsilon` (spent; None: privacy off), `delta`, `unit`, `seconds`;
        optionally `report` (path), `resume_command` (default: `fedslm simulate resume=` and the run folder), `sessions`
        (attempts at rounds, also those that came to nothing) and `masked` (False: the coordinator could read updates).
    """
    lines = [f"{_done(summary)}, {duration_words(summary['seconds'])}.", _guarantee(summary)]
    if not summary.get("masked", True):
        lines.append("NOT ENCRYPTED: the coordinator could read each hospital's update.")
    paths = {"run folder": summary["run_folder"], "report": summary.get("report"), "adapter": summary["adapter"]}
    lines += [f"{name:<11} {clean(path)}" for name, path in paths.items() if path]
    if summary["status"] != "finished":
        resume = shlex.quote(f"resume={summary['run_folder']}")
        command = summary.get("resume_command") or f"fedslm simulate {resume}"
        lines.append(f"{'go on with':<11} {clean(command)}")
    return lines


def _done(summary: Mapping[str, Any]) -> str:
    """Done after 20 rounds in 23 sessions"""
    plural = "round" if summary["rounds"] == 1 else "rounds"
    done = f"{_STATUS_WORDS[summary['status']]} after {summary['rounds']} {plural}"
    sessions = summary.get("sessions", summary["rounds"])
    return f"{done} in {sessions} sessions" if sessions > summary["rounds"] else done


def _guarantee(summary: Mapping[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "PRIVACY OFF: the adapter may remember what patients' notes say."
    spent = f"epsilon {spent_words(summary['epsilon'])} at delta {summary['delta']:.3g}"
    return f"Privacy spent: {spent} per {clean(summary['unit'])}."
