"""`Event`, the one line per thing that happens in a run, and `EventLog`, the file `events.jsonl` those lines end in.

Everything a person sees of a run (live table, report, summary) is drawn from these events, so what they may say is a
closed table, `KINDS`: a field that is not listed there cannot be logged by accident. Events are public information of
the run: never patients' text, never a loss on one hospital's private text outside a simulation, never a key.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

from fedslm.errors import RunError

KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "run_started": (
            "run_id",
            "plan_sha256",
            "hospitals",  # names, in the order they are shown
            "rounds",  # the last round's number
            "first_round",  # 1, or where a resumed run goes on
            "privacy",  # {mode, epsilon, delta, unit, noise_multiplier}; mode "none" is privacy off
            "masked",  # True: the coordinator sees only the sum of the updates
            "bound",  # how many may collude and how many drop out, in words; "" where updates are in the clear
            "seeded",  # True: noise comes from a known seed, so it hides nothing
            "model",
            "adapter_parameters",
        ),
        "hospital_joined": ("hospital",),
        "hospital_refused": ("hospital", "code"),
        "round_started": ("round",),
        "session_started": ("round", "session", "attempt", "hospitals"),  # attempt counts from 0; who is asked to train
        "hospital_trained": ("round", "hospital", "seconds", "bytes_up", "bytes_down"),
        "hospital_masked": ("round", "hospital", "seconds", "bytes_up", "bytes_down"),
        "hospital_dropped": ("round", "hospital", "code", "step"),  # step: train, mask, confirm or unmask
        "session_failed": ("round", "session", "code", "missing"),  # the model is unchanged; missing: hospitals
        "round_finished": ("round", "seconds", "epsilon", "survivors"),  # epsilon spent so far; None: privacy off
        # The noised share of right answers on the hospitals' held-out patients, of the adapter that came out of `round` (0: the
        # initial one), and the noise's standard deviation; both None where the noise drowns it. privacy.scores=dp only.
        "held_out_scored": ("round", "accuracy", "stddev"),
        "scored": ("round", "loss", "accuracy", "seconds"),  # only in a simulation, whose harness owns the data
        "checkpoint_written": ("round", "seconds"),
        "comparison_started": ("name", "index", "total"),  # index counts from 1
        "comparison_round": ("name", "round", "rounds"),
        "comparison_finished": ("name", "accuracy"),
        "run_interrupted": ("round", "resume_command"),
        "run_failed": ("code", "message"),
        "run_finished": ("round", "seconds"),
    }
)
"""Kind of event -> the fields it has, all of them required, none beside them."""

ADDED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"run_started": {"bound": ""}, "hospital_dropped": {"step": "train"}}
)
"""Kind of event -> fields that logs of earlier releases do not have, and what they mean there."""

# Events after which the file must outlive a power failure: a resumed run and its report rely on them.
_DURABLE = frozenset({"run_started", "checkpoint_written", "run_interrupted", "run_failed", "run_finished"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a run.

    Attributes:
      time: when, in unix seconds.
      kind: a key of `KINDS`.
      fields: exactly the fields `KINDS` lists for the kind; JSON values. Copied, lists become tuples, and read-only.

    Raises:
      ValueError: an unknown kind, a missing or unlisted field, or a value that is not finite JSON. The value is not
        shown. Producing such an event is a fault of ours, so it is no `FedSLMError`.
    """

    time: float
    kind: str
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown kind of event {self.kind!r}; the kinds are {', '.join(KINDS)}.")
        if isinstance(self.time, bool) or not isinstance(self.time, int | float) or not math.isfinite(self.time):
            raise ValueError(f"Expected the time of {self.kind} to be finite unix seconds.")
        wrong = set(self.fields) ^ set(KINDS[self.kind])
        if wrong:
            raise ValueError(f"{self.kind} has the fields {', '.join(KINDS[self.kind])}; wrong: {sorted(wrong)}.")
        frozen = {name: _frozen(self.fields[name], f"{self.kind}.{name}") for name in KINDS[self.kind]}
        object.__setattr__(self, "fields", MappingProxyType(frozen))

    def to_json(self) -> str:
        """One line of ASCII JSON without its newline: time, kind, then the fields beside them."""
        record = {"time": self.time, "kind": self.kind, **self.fields}
        return json.dumps(record, allow_nan=False, separators=(",", ":"), default=dict)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The inverse of `to_json`, and as strict.

        Raises:
          ValueError: not a JSON object with a time and a kind, or not a valid event.
        """
        record = json.loads(line)
        if not isinstance(record, dict) or "time" not in record or not isinstance(record.get("kind"), str):
            raise ValueError("Expected a JSON object with a time and a kind.")
        time, kind = record.pop("time"), record.pop("kind")
        return cls(time=time, kind=kind, fields={**ADDED.get(kind, {}), **record})


def _frozen(value: Any, where: str) -> Any:
    """A read-only copy of a JSON value; `where` names it in the error.

    Raises:
      ValueError: not JSON, not finite, or text that UTF-8 cannot write (lone surrogates crash a terminal).
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(item, where) for item in value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return MappingProxyType({_frozen(key, where): _frozen(item, where) for key, item in value.items()})
    raise ValueError(f"Expected {where} to be finite JSON, found a {type(value).__name__} that is not.")


class Observer(Protocol):
    """Whoever wants to know what happens in a run: the log, a view, a test."""

    def notify(self, event: Event) -> None:
        """Takes note of an event; called in the order in which things happened."""


class Announcer:
    """Gives each event its time and hands it to every observer, in the order the observers were named.

    Name the log first: it may refuse (disk full), and then no view shows what was not written. Safe to call from
    several threads: every observer sees the same order.
    """

    def __init__(self, *observers: Observer, clock: Callable[[], float] = time.time) -> None:
        self._observers = observers
        self._clock = clock
        self._lock = threading.Lock()

    def emit(self, kind: str, /, **fields: Any) -> Event:
        """Announces one event and returns it.

        Raises:
          ValueError: the event is not one of `KINDS`.
          RunError: the log cannot be written.
        """
        with self._lock:
            event = Event(time=self._clock(), kind=kind, fields=fields)
            for observer in self._observers:
                observer.notify(event)
        return event


class EventLog:
    """An append-only file of events, one JSON line each. An `Observer` and a context manager.

    Every line reaches the operating system before `notify` returns, so a killed process loses at most the line it was
    writing; the events a resumed run relies on, and `close`, also reach the disk.

    Raises:
      RunError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = path.open("ab+", buffering=0)
            self._file.seek(0)
            self._file.truncate(_whole_lines(self._file.readall()))
        except OSError as error:
            raise RunError(f"Cannot open the event log {path}: {error.strerror}; check the run folder.") from error

    def notify(self, event: Event) -> None:
        """Appends the event, whole or not at all.

        Raises:
          RunError: the disk is full or gone.
        """
        line = f"{event.to_json()}\n".encode()
        with self._lock:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._write(line, durable=event.kind in _DURABLE)
            except OSError as error:
                # Half a line here would be a damaged middle line as soon as the next write succeeds.
                with suppress(OSError):
                    self._file.truncate(end)
                raise RunError(
                    f"Cannot write the event log {self._path}: {error.strerror}; make room on the disk and resume."
                ) from error

    def _write(self, line: bytes, *, durable: bool) -> None:
        if self._file.write(line) != len(line):  # a nearly full disk takes a part without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Brings everything to the disk and closes the file; a second call does nothing.

        Raises:
          RunError: the disk refused.
        """
        with self._lock:
            if self._file.closed:
                return
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise RunError(f"Cannot save the event log {self._path}: {error.strerror}.") from error
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path) -> list[Event]:
    """All whole events of a log, oldest first.

    A last line without its newline is what a killed process was writing: it is left out.

    Raises:
      RunError: the file cannot be read, or a whole line is damaged; the message names the line's number.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"Cannot read the event log {path}: {error.strerror}; is this a run folder?") from error
    lines = data[: _whole_lines(data)].split(b"\n")[:-1]
    return [_parsed(line, path, number) for number, line in enumerate(lines, start=1)]


def _whole_lines(data: bytes) -> int:
    """How many bytes of a log are whole lines."""
    return data.rfind(b"\n") + 1


def _parsed(line: bytes, path: Path, number: int) -> Event:
    """The event on one line of a log.

    Raises:
      RunError: it is damaged.
    """
    try:
        return Event.from_json(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"Line {number} of {path} is damaged; restore a copy of the file, or delete that line."
        ) from error
