"""Whenever a hospital is killed, its ledger verifies, and no session was trained that is not in it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from clients.ledger import open_ledger
from fedslm.errors import FedSLMError
from fedslm.flower.records import TRAIN
from tests.clients.table import NAMES, Session, Table, plan_for

PLAN = plan_for(privacy={"max_sessions": 2000, "noise_multiplier": 40.0, "sample_rate": 0.1})
KILLS = 20


def work(table: Table, log: Path, first: int, mutant: str, begun: Event) -> None:
    """Session after session, for ever; every training is noted, through to the disk, before it begins."""
    train = table._train

    def noted(request: object, site: object, bench: object) -> object:
        with log.open("a") as file:
            file.write(f"{site.hospital}\n")  # type: ignore[attr-defined]
            file.flush()
            os.fsync(file.fileno())
        return train(request, site, bench)  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr("clients.train.train_round", noted)
    if mutant == "books after training":
        _book_late(patch)
    for number in range(first, first + 1000):
        with contextlib.suppress(FedSLMError):
            table.join()
            begun.set()
            session = Session(table, table.opening(number))
            for step in session.steps:
                step()


def _book_late(patch: pytest.MonkeyPatch) -> None:
    """The mutant: what is booked is written when the whole message was worked for."""
    from clients.ledger import LedgerBook
    from clients.session import Part

    held = []
    book, share = LedgerBook.book, Part.share

    def later(self: LedgerBook, plan: object, **given: object) -> object:
        head = self.head()
        given.pop("along")()  # type: ignore[operator]
        held.append(lambda: book(self, plan, **given))  # type: ignore[arg-type]
        return head

    def shared(self: Part, *given: object) -> bytes:
        time.sleep(0.02)
        held.pop()()
        return share(self, *given)  # type: ignore[arg-type]

    patch.setattr(LedgerBook, "book", later)
    patch.setattr(Part, "share", shared)


def killed(table: Table, log: Path, first: int, after_s: float, mutant: str = "") -> None:
    """Works in a process of its own and kills that without notice."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    child = context.Process(target=work, args=(table, log, first, mutant, begun), daemon=True)
    child.start()
    assert begun.wait(60)
    time.sleep(after_s)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table(tmp_path, PLAN, monkeypatch)
    for name in NAMES:
        made.change_site(name, anchor_file=str(tmp_path / f"anchor-{name}"))
    made.join()
    return made


def missing(table: Table, log: Path) -> dict[str, int]:
    """Trainings of each hospital that are not in its ledger, which must verify; none is charged less than it trained."""
    trained = Counter(log.read_text().split()) if log.exists() else Counter[str]()
    found = {}
    for name in NAMES:
        with open_ledger(table.sites[name]) as book:
            assert book.problem() == ""
            ledger = book.export().verify(table.identities.hospitals[name].public)
        account = ledger.plans[PLAN.sha256]
        found[name] = trained[name] - len(account.sessions)
        assert account.epsilon == PLAN.privacy.epsilon
    return found


def test_no_training_is_lost_whenever_the_process_is_killed(table: Table, tmp_path: Path) -> None:
    log, rng = tmp_path / "trained", random.Random(4)
    for kill in range(KILLS):
        killed(table, log, 1 + 1000 * kill, rng.uniform(0.0, 0.6))
        assert all(count <= 0 for count in missing(table, log).values())
    assert log.read_text().count("\n") > KILLS  # the kills came while there was work


def test_a_hospital_that_books_after_training_would_be_caught(table: Table, tmp_path: Path) -> None:
    log, rng = tmp_path / "trained", random.Random(5)
    for kill in range(KILLS):
        killed(table, log, 1 + 1000 * kill, rng.uniform(0.0, 0.6), mutant="books after training")
        if any(count > 0 for count in missing(table, log).values()):
            return
    pytest.fail("The mutant was never caught.")


def test_booking_stands_before_training_in_every_message(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without chance: when the training begins, its session is on the disk."""
    seen = []

    def booked(request: object, site: object, bench: object) -> object:
        with open_ledger(site) as ledger:  # type: ignore[arg-type]
            seen.append(ledger.read().plans[PLAN.sha256].sessions)
        return table._train(request, site, bench)  # type: ignore[arg-type]

    monkeypatch.setattr("clients.train.train_round", booked)
    table.run(1)
    table.join()
    table.run(2)
    assert seen == [(1,)] * 3 + [(1, 2)] * 3
    assert {kind for _, kind, _ in table.replies} >= {TRAIN}
