"""The session counter of a run: a number for every attempt at a round, given out once and never again.

A session costs privacy whether it is finished or not, and hospitals refuse a number they have seen. So the count is on
the disk before a session's first message leaves, and it survives whatever becomes of the process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from fedslm.errors import BudgetExceededError, RunError
from fedslm.files import replace_file
from fedslm.governance.plan import Plan
from server.checkpoints import write_json


class Counter(Protocol):
    """Gives out the numbers of sessions."""

    @property
    def started(self) -> int:
        """Sessions started so far, whatever became of them: what epsilon is counted in."""
        ...

    def start(self) -> int:
        """Takes the next number, for good."""
        ...


def is_used_up(plan: Plan, counter: Counter) -> bool:
    """Whether no session is left. Without privacy they cost nothing, and their number is not limited."""
    return plan.privacy.mode != "none" and counter.started >= plan.privacy.max_sessions


def require_session(plan: Plan, counter: Counter) -> None:
    """Refuses a session that the plan's noise was not set for.

    Raises:
      BudgetExceededError: with privacy, and all sessions were started.
    """
    if is_used_up(plan, counter):
        raise BudgetExceededError(
            f"All {plan.privacy.max_sessions} sessions of the plan were started, finished or not; start a new run with "
            "more privacy.extra_sessions."
        )


class SessionCounter:
    """Counts a run's sessions in a file.

    Guarantees:
      `start` never returns the same number twice, in whatever process, after whatever crash.
    """

    def __init__(self, path: Path, *, at_least: int = 0) -> None:
        """Reads the file, if there is one.

        Args:
          at_least: sessions that are known to have been started; a checkpoint knows.
        Raises:
          RunError: the file is damaged.
        """
        self._path = path
        self._started = max(at_least, _read(path))

    @property
    def started(self) -> int:
        """Sessions started so far, whatever became of them: what epsilon is counted in."""
        return self._started

    def start(self) -> int:
        """Takes the next number, which is on the disk when this returns.

        Raises:
          RunError: it cannot be written; no session was started.
        """
        number = self._started + 1
        try:
            replace_file(self._path, lambda path: write_json(path, {"started": number}))
        except OSError as error:
            raise RunError(
                f"The number of session {number} cannot be written: {error.strerror}; make room on the disk and resume."
            ) from None
        self._started = number
        return number


def _read(path: Path) -> int:
    try:
        started = json.loads(path.read_bytes())["started"]
        if isinstance(started, bool) or not isinstance(started, int) or started < 0:
            raise ValueError
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RunError(
            f"{path} is damaged, so that nobody knows how many sessions were paid for; put a copy of the file back."
        ) from None
    return int(started)
