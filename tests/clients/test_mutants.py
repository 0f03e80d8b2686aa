"""What would break the promise is caught: each mutant is a real patch of the product, and the same check tells it apart."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message

from clients.guard import Handler
from clients.ledger import LedgerBook, open_ledger
from fedslm.errors import BudgetExceededError
from tests.clients.table import ONE, Session, Table, plan_for

CANARY = "zq7Xylophone"


def text_on_the_wire(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the text of an exception in a hospital's training is in what it answers."""
    folder.mkdir()
    table = Table(folder, plan_for(), monkeypatch)
    table.join()
    table.updates[ONE] = None  # its training raises, with the canary as text
    reply = table.send(ONE, Session(table, table.opening(1)).message)
    assert reply.has_error()
    return CANARY in f"{reply.error.code} {reply.error.reason}"


def let_through(message: Message, context: Context, call_next: Handler) -> Message:
    """The mutant: answers as Flower's own runtime does."""
    try:
        return call_next(message, context)
    except Exception as error:
        return Message(Error(0, "".join(traceback.format_exception(error))), reply_to=message)


def test_an_exceptions_text_on_the_wire_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not text_on_the_wire(tmp_path / "true", monkeypatch)
    monkeypatch.setattr("clients.app.redact", let_through)
    assert text_on_the_wire(tmp_path / "mutant", monkeypatch)


def sessions_in_two_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many sessions a hospital trains for under a budget of one plan of three sessions, over two plans."""
    folder.mkdir()
    table = Table(folder, plan_for(), monkeypatch)
    site = table.sites[ONE]
    table.change_site(ONE, budget_epsilon=8.0, allow_privacy_none=False)
    done = 0
    for nonce in ("1" * 32, "2" * 32):
        for _ in range(4):
            with open_ledger(table.sites[ONE]) as ledger:
                try:
                    ledger.book(plan_for(nonce=nonce), coordinator="")
                    done += 1
                except BudgetExceededError:
                    pass
    assert site.hospital == ONE
    return done


def test_a_budget_that_starts_anew_with_every_run_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sessions_in_two_runs(tmp_path / "true", monkeypatch) == 3
    reserve = LedgerBook._reserve

    def forgetful(self: LedgerBook, db: object, ledger: object, plan: object, coordinator: str) -> None:
        """The mutant: a new plan is checked against the budget as if nothing had been before."""
        try:
            reserve(self, db, ledger, plan, coordinator)  # type: ignore[arg-type]
        except BudgetExceededError:
            db.execute("DELETE FROM signatures")  # type: ignore[attr-defined]
            db.execute("DELETE FROM ledger")  # type: ignore[attr-defined]
            ledger.__init__()  # type: ignore[misc]
            self._append_opening(db)  # type: ignore[arg-type]
            ledger.__init__()  # type: ignore[misc]
            for row in self._own(db).rows:  # type: ignore[arg-type]
                ledger.add(row)  # type: ignore[attr-defined]
            reserve(self, db, ledger, plan, coordinator)  # type: ignore[arg-type]

    monkeypatch.setattr(LedgerBook, "_reserve", forgetful)
    assert sessions_in_two_runs(tmp_path / "mutant", monkeypatch) > 3
