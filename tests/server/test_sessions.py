"""No number of a session is ever given out twice, whatever becomes of the process or the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedslm.errors import BudgetExceededError, RunError
from server.sessions import SessionCounter, require_session
from tests.builders import UNPRIVATE, masked_plan, toy_plan
from tests.fakes import Counting
from tests.server.test_checkpoints import full_disk


def test_numbers_start_at_one_and_go_on_in_the_next_process(tmp_path: Path) -> None:
    first = SessionCounter(tmp_path / "sessions.json")
    assert (first.started, first.start(), first.start(), first.started) == (0, 1, 2, 2)
    assert SessionCounter(tmp_path / "sessions.json").start() == 3


def test_a_number_is_on_the_disk_before_it_is_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    path = tmp_path / "sessions.json"
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    SessionCounter(path).start()
    assert synced == [str(tmp_path / ".sessions.json"), str(tmp_path)]  # the content, then the name


def test_a_checkpoint_that_knows_of_more_sessions_is_believed(tmp_path: Path) -> None:
    counter = SessionCounter(tmp_path / "sessions.json", at_least=7)
    assert (counter.started, counter.start()) == (7, 8)
    assert SessionCounter(tmp_path / "sessions.json", at_least=3).started == 8


def test_a_full_disk_gives_out_no_number(tmp_path: Path) -> None:
    counter = SessionCounter(tmp_path / "sessions.json")
    counter.start()
    with full_disk(3), pytest.raises(RunError, match=r"number of session 2 cannot be written: .*resume"):
        counter.start()
    assert counter.started == SessionCounter(tmp_path / "sessions.json").started == 1


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"started": -1}', b'{"started": true}', b'{"started": 1.5}', b'{"started": "1"}']
)
def test_a_damaged_count_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sessions.json").write_bytes(content)
    with pytest.raises(RunError, match=r"sessions\.json is damaged"):
        SessionCounter(tmp_path / "sessions.json")


def test_sessions_run_out_where_they_cost_something() -> None:
    for plan in (toy_plan(), masked_plan()):
        require_session(plan, Counting(2))
        with pytest.raises(BudgetExceededError, match=r"All 3 sessions .*privacy\.extra_sessions"):
            require_session(plan, Counting(3))
    for plan in (toy_plan(privacy=UNPRIVATE), masked_plan(privacy=UNPRIVATE)):
        require_session(plan, Counting(1000))
