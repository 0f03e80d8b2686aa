"""The event log says only what `KINDS` allows, survives a kill at any byte, and never hides damage."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedslm.errors import RunError
from fedslm.reporting.events import KINDS, Announcer, Event, EventLog, read_events

DROPPED = {"round": 3, "hospital": "Süd-Klinik", "code": "timeout", "step": "mask"}


def dropped(**changes: Any) -> Event:
    return Event(time=1.5, kind="hospital_dropped", fields={**DROPPED, **changes})


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_a_round_trip(kind: str) -> None:
    event = Event(time=12.25, kind=kind, fields={name: {"a": [1, None, True, 0.1, "ü"]} for name in KINDS[kind]})
    assert Event.from_json(event.to_json()) == event


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_value_survives_on_one_line(value: Any) -> None:
    line = dropped(code=value).to_json()
    assert len(line.splitlines()) == 1
    assert Event.from_json(line) == dropped(code=value)


def test_a_line_is_flat_and_in_the_table_s_order() -> None:
    shuffled = dict(reversed(DROPPED.items()))
    line = Event(time=1.5, kind="hospital_dropped", fields=shuffled).to_json()
    assert list(json.loads(line)) == ["time", "kind", "round", "hospital", "code", "step"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {1: 2}, {"a": {3}}, object(), "\ud800", Path("x")])
def test_a_value_that_is_not_finite_json_is_refused_and_not_shown(value: object) -> None:
    with pytest.raises(ValueError, match=r"hospital_dropped\.code") as error:
        dropped(code=value)
    assert repr(value) not in str(error.value)


def test_unknown_kinds_and_wrong_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown kind"):
        Event(time=0.0, kind="patient_read", fields={})
    with pytest.raises(ValueError, match="text"):
        dropped(text="a note")
    with pytest.raises(ValueError, match="code"):
        Event(time=0.0, kind="hospital_dropped", fields={"round": 1, "hospital": "a"})


@pytest.mark.parametrize("time", [float("nan"), float("inf"), "now", None, True])
def test_a_time_that_is_no_finite_number_is_refused(time: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        Event(time=time, kind="round_started", fields={"round": 1})


@pytest.mark.parametrize(
    "line", ["", "[]", "3", "{}", '{"time":1}', '{"kind":"round_started","round":1}', '{"time":1,"kind":[]}']
)
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"event|Expecting|JSON"):
        Event.from_json(line)


def test_a_log_of_an_earlier_release_can_still_be_read() -> None:
    event = Event.from_json('{"time":1,"kind":"hospital_dropped","round":1,"hospital":"a","code":"c"}')
    assert event.fields["step"] == "train"
    with pytest.raises(ValueError, match="step"):
        Event(time=1, kind="hospital_dropped", fields={"round": 1, "hospital": "a", "code": "c"})


def test_an_event_cannot_be_changed_through_what_it_was_made_of() -> None:
    survivors = ["a"]
    fields = {"round": 1, "seconds": 1.0, "epsilon": None, "survivors": survivors}
    event = Event(time=0.0, kind="round_finished", fields=fields)
    survivors.append("b")
    fields["round"] = 2
    assert event.fields["survivors"] == ("a",)
    assert event.fields["round"] == 1
    with pytest.raises(TypeError):
        event.fields["round"] = 2  # type: ignore[index]


def test_the_announcer_stamps_events_and_tells_everyone_in_order() -> None:
    first, second = Recorder(), Recorder()
    announcer = Announcer(first, second, clock=iter([1.0, 2.0]).__next__)
    events = [announcer.emit("round_started", round=1), announcer.emit("hospital_joined", hospital="a")]
    assert first.events == second.events == events
    assert [event.time for event in events] == [1.0, 2.0]


def test_no_view_shows_what_the_log_could_not_write() -> None:
    class Full:
        def notify(self, event: Event) -> None:
            raise RunError("The disk is full.")

    view = Recorder()
    with pytest.raises(RunError):
        Announcer(Full(), view).emit("round_started", round=1)
    assert view.events == []


def test_a_line_can_be_read_before_the_log_is_closed(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.notify(dropped())
    assert read_events(tmp_path / "events.jsonl") == [dropped()]
    log.close()
    log.close()


def test_a_kill_at_any_byte_costs_at_most_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = [dropped(round=number) for number in range(3)]
    with EventLog(path) as log:
        for event in events:
            log.notify(event)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        kept = sum(end <= cut for end in ends)
        path.write_bytes(whole[:cut])
        assert read_events(path) == events[:kept]
        with EventLog(path) as log:
            log.notify(dropped(round=99))
        assert read_events(path) == [*events[:kept], dropped(round=99)]


def test_a_torn_last_line_of_zeros_after_a_power_failure_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(dropped().to_json().encode() + b"\n" + bytes(40))
    assert read_events(path) == [dropped()]


@pytest.mark.parametrize("damage", [b"{", b"", b"\xff\xfe", b'{"time":1,"kind":"new"}', b"[" * 100_000, b"NaN"])
def test_damage_in_a_whole_line_names_the_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "events.jsonl"
    line = dropped().to_json().encode()
    path.write_bytes(b"\n".join([line, damage, line, b""]))
    with pytest.raises(RunError, match=r"Line 2 of .* is damaged"):
        read_events(path)


def test_an_empty_log_has_no_events_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").close()
    assert read_events(tmp_path / "events.jsonl") == []
    with pytest.raises(RunError, match="run folder"):
        read_events(tmp_path / "none.jsonl")
    with pytest.raises(RunError, match="Cannot open"):
        EventLog(tmp_path / "no" / "folder.jsonl")


class AlmostFull(io.FileIO):
    """A disk with room for a few bytes only."""

    room = 10

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.notify(dropped())
        with AlmostFull(path, "ab+") as full, monkeypatch.context() as patch:
            patch.setattr(log, "_file", full)
            for _ in range(2):
                with pytest.raises(RunError, match="No space left"):
                    log.notify(dropped(round=2))
        log.notify(dropped(round=3))
    assert read_events(path) == [dropped(), dropped(round=3)]


def test_events_a_resumed_run_relies_on_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with EventLog(tmp_path / "events.jsonl") as log:
        log.notify(dropped())
        assert len(synced) == 0
        log.notify(Event(time=0.0, kind="checkpoint_written", fields={"round": 1, "seconds": 0.1}))
        assert len(synced) == 1
    assert len(synced) == 2
