"""`PlainView`: a run as plain lines, for a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from fedslm.reporting.drawing import clean, duration_words, percent_words, size_words
from fedslm.reporting.events import Event
from fedslm.reporting.words import (
    epsilon_words,
    held_out_words,
    masking_sentence,
    privacy_sentence,
    remaining_words,
    run_sentence,
    told,
    warnings,
)


class PlainView:
    """The same facts as plain lines, one a round, for a log or a pipe; an `Observer` and a context manager.

    Args:
      console: where to print.
      quiet: only what nobody may overlook: privacy off, updates readable, a hospital that refused, a failure.
      history: the events of the earlier part of a run that is resumed; they are counted, not printed.
      clock: the present moment in unix seconds, comparable with the events' times.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        history: Iterable[Event] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._progress = told(history)
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
        self._say(f"run {run_sentence(header, ', ')}")
        first, last = fields["first_round"], fields["rounds"]
        rounds = f"rounds {first} to {last}" if first <= last else "no rounds left"
        self._say(f"{len(fields['hospitals'])} hospitals, {rounds}: {', '.join(map(clean, fields['hospitals']))}")
        if header.is_private:
            self._say(f"privacy: {privacy_sentence(header.privacy)}", "green")
        if header.masked:
            self._say(masking_sentence(header), "green")
        for text, style in warnings(header):
            self._say(text, style, loud=True)

    def _hospital_joined(self, fields: Mapping[str, Any]) -> None:
        self._say(f"{clean(fields['hospital'])} joined")

    def _hospital_refused(self, fields: Mapping[str, Any]) -> None:
        self._say(f"{clean(fields['hospital'])} refused ({clean(fields['code'])})", "bold red", loud=True)

    def _hospital_dropped(self, fields: Mapping[str, Any]) -> None:
        where = f"round {fields['round']}: {clean(fields['hospital'])}"
        step = "" if fields["step"] == "train" else f" in {clean(fields['step'])}"
        self._say(f"{where} dropped ({clean(fields['code'])}{step})", "yellow")

    def _session_started(self, fields: Mapping[str, Any]) -> None:
        if fields["attempt"]:
            asked = f"{len(fields['hospitals'])} hospitals"
            self._say(f"round {fields['round']}: trying again in session {fields['session']}, {asked}", "yellow")

    def _session_failed(self, fields: Mapping[str, Any]) -> None:
        failure = self._progress.failures[-1]
        self._say(f"round {failure.round}: {failure.words} ({clean(fields['code'])})", "yellow")

    def _round_finished(self, fields: Mapping[str, Any]) -> None:
        round, survivors, hospitals = fields["round"], fields["survivors"], self._progress.hospitals.values()
        up, down = sum(each.bytes_up for each in hospitals), sum(each.bytes_down for each in hospitals)
        words = [
            f"round {round} of {self._progress.rounds}: {len(survivors)} of {self._progress.planned} hospitals",
            epsilon_words(self._progress),
            f"{size_words(up)} up, {size_words(down)} down",
            duration_words(fields["seconds"]),
        ]
        self._held = (round, ", ".join(word for word in words if word))
        if round in self._progress.accuracies:
            self._release()

    def _scored(self, fields: Mapping[str, Any]) -> None:
        if self._held is not None and self._held[0] == fields["round"]:
            self._release()
        elif fields["round"] < self._progress.round or not self._progress.is_round_open:
            when = f"after round {fields['round']}" if fields["round"] else "before training"
            self._say(f"{when}: {self._score(fields['round'])}")

    def _held_out_scored(self, fields: Mapping[str, Any]) -> None:
        if words := held_out_words(self._progress):
            self._say(words)

    def _release(self) -> None:
        """Prints the round that waited for its score."""
        if self._held is None:
            return
        round, words = self._held
        self._held = None
        parts = [words, self._score(round), remaining_words(self._progress, self._clock())]
        self._say(", ".join(part for part in parts if part))

    def _score(self, round: int) -> str:
        if round not in self._progress.accuracies:
            return ""
        return f"loss {self._progress.losses[round]:.3f}, accuracy {percent_words(self._progress.accuracies[round])}"

    def _comparison_finished(self, fields: Mapping[str, Any]) -> None:
        comparison = self._progress.comparison
        place = f" {comparison.finished} of {comparison.total}" if comparison is not None else ""
        self._say(f"comparison{place}: {clean(fields['name'])}, accuracy {percent_words(fields['accuracy'])}")

    def _run_interrupted(self, fields: Mapping[str, Any]) -> None:
        self._say(f"interrupted in round {fields['round']}", "bold yellow")

    def _run_failed(self, fields: Mapping[str, Any]) -> None:
        self._say(f"failed ({clean(fields['code'])})", "bold red", loud=True)

    def _run_finished(self, fields: Mapping[str, Any]) -> None:
        self._say(f"finished after round {fields['round']}, {duration_words(fields['seconds'])}")
