"""What is spent is spent: across plans, processes, crashes and restored backups; and the budget is the hospital's own."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.anchor import read_anchor, write_anchor
from clients.database import Database
from clients.ledger import LedgerBook, open_ledger
from clients.site import Site, read_site
from fedslm.crypto.identity import Identity
from fedslm.errors import BudgetExceededError, ConfigError, LedgerError, RollbackError, RunError
from fedslm.governance.keyfiles import write_identity
from fedslm.governance.plan import Plan
from fedslm.privacy.ledger import Export
from fedslm.privacy.ledger_rows import Booked, Data, Forfeited
from tests.builders import UNPRIVATE, toy_plan
from tests.server.test_checkpoints import full_disk

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "patients.sqlite"


@pytest.fixture(scope="session")
def identity() -> Identity:
    return Identity.generate()


@pytest.fixture
def site(tmp_path: Path, identity: Identity) -> Site:
    write_identity(tmp_path / "id.pem", identity, None, name="hospital-0")
    return made_site(tmp_path)


def made_site(folder: Path, **changes: Any) -> Site:
    values: dict[str, Any] = {
        "hospital": "hospital-0",
        "sources": [{"kind": "embedded"}],
        "unit": "patient",
        "declared_population": 40,
        "budget_epsilon": 20.0,
        "budget_delta": 1e-4,
        "identity": str(folder / "id.pem"),
        "state_folder": str(folder / "state"),
        "anchor_file": str(folder / "elsewhere" / "anchor"),
    }
    (folder / "site.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return read_site(folder / "site.yaml")


def plan(number: int = 0, **privacy: Any) -> Plan:
    """One of many plans for epsilon 8 and delta 1e-5, three sessions each."""
    return toy_plan(nonce=f"{number:032x}", privacy=privacy)


def book(site: Site, *plans: Plan) -> None:
    for one in plans:
        with open_ledger(site) as ledger:
            ledger.book(one, coordinator="")


def charged(site: Site) -> float:
    with open_ledger(site) as ledger:
        return ledger.read().epsilon


@contextmanager
def restored_after(*paths: Path) -> Iterator[None]:
    """Puts back, when the block ends, what the paths were when it began."""
    copies = [(path, path.with_name(path.name + ".copy")) for path in paths]
    for path, copy in copies:
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    yield
    for path, copy in copies:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy.rename(path)


def state(site: Site) -> Path:
    return Path(str(site.state_folder))


def anchor(site: Site) -> Path:
    return Path(str(site.anchor_file))


# --- the budget -------------------------------------------------------------------------------------------------------


def test_a_plan_is_reserved_whole_and_once(site: Site) -> None:
    with open_ledger(site) as ledger:
        first = ledger.reserve(plan(), coordinator="")
        assert ledger.reserve(plan(), coordinator="") == first
        assert ledger.read().epsilon == 8.0
        assert ledger.read().delta == 1e-5


def test_plans_add_up_and_the_one_too_many_is_refused(site: Site) -> None:
    book(site, plan(1), plan(2))
    for attempt in (
        lambda book: book.reserve(plan(3), coordinator=""),
        lambda book: book.book(plan(3), coordinator=""),
    ):
        with open_ledger(site) as ledger, pytest.raises(BudgetExceededError, match="20"):
            attempt(ledger)
    assert charged(site) == 16.0
    book(site, plan(1), plan(2))  # those that are reserved go on


def test_deltas_add_up_as_well(site: Site, tmp_path: Path) -> None:
    tight = made_site(tmp_path, budget_epsilon=1000.0, budget_delta=2.5e-5)
    book(tight, plan(1), plan(2))
    with pytest.raises(BudgetExceededError, match="delta"):
        book(tight, plan(3))


def test_no_more_sessions_than_were_reserved(site: Site) -> None:
    book(site, plan(), plan(), plan())
    with pytest.raises(BudgetExceededError, match="3"):
        book(site, plan())


def test_a_closed_plan_costs_what_its_sessions_cost_and_trains_no_more(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        account = ledger.close(plan().sha256[:12])
    assert 0 < account.epsilon < 8.0
    assert charged(site) == account.epsilon
    with pytest.raises(BudgetExceededError, match="closed"):
        book(site, plan())


def test_a_plan_that_never_trained_is_closed_for_nothing(site: Site) -> None:
    with open_ledger(site) as ledger:
        ledger.reserve(plan(), coordinator="")
        ledger.close(plan().sha256)
        assert (ledger.read().epsilon, ledger.read().delta) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["", "ffff", "x"])
def test_only_one_open_plan_is_closed(site: Site, name: str) -> None:
    book(site, plan(1), plan(2))
    with open_ledger(site) as ledger, pytest.raises(LedgerError, match="open are"):
        ledger.close(name)
    assert charged(site) == 16.0


def test_a_budget_that_is_lowered_below_what_is_spent_stops_everything(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    lowered = made_site(tmp_path, budget_epsilon=5.0)
    for one in (plan(), plan(2)):
        with pytest.raises(BudgetExceededError, match=r"allows epsilon 5 .* spent or reserved 8"):
            book(lowered, one)
    with open_ledger(lowered) as ledger:  # and what is over may be closed
        ledger.close(plan().sha256)
    assert charged(lowered) < 5.0


def test_a_plan_without_privacy_is_unbounded_and_needs_an_unlimited_budget(site: Site, tmp_path: Path) -> None:
    with pytest.raises(BudgetExceededError, match="epsilon 20"):
        book(site, plan(**UNPRIVATE))
    with pytest.raises(ConfigError, match="budget_epsilon=20"):
        made_site(tmp_path, allow_privacy_none=True)
    lavish = made_site(tmp_path, allow_privacy_none=True, budget_epsilon="unlimited")
    book(lavish, *[plan(**UNPRIVATE)] * 5)  # more than max_sessions: without privacy they cost no more than one
    assert charged(lavish) == float("inf")
    with pytest.raises(BudgetExceededError):
        book(made_site(tmp_path), plan(2))


# --- processes and crashes --------------------------------------------------------------------------------------------


def test_a_booking_is_on_the_disk_and_noted_when_it_returns(site: Site) -> None:
    with open_ledger(site) as ledger:
        head = ledger.book(plan(), coordinator="", session=7)
    assert head.row == 3
    assert read_anchor(anchor(site)) == head
    with open_ledger(site) as ledger:
        assert isinstance(ledger.read().rows[-1].entry, Booked)
        assert ledger.read().plans[plan().sha256].sessions == (7,)


def test_what_fails_beside_a_booking_books_nothing(site: Site) -> None:
    def fail() -> None:
        raise ValueError("beside")

    with open_ledger(site) as ledger, pytest.raises(ValueError, match="beside"):
        ledger.book(plan(), coordinator="", along=fail)
    assert charged(site) == 0.0


RACER = """
import sys
from pathlib import Path
from clients.ledger import open_ledger
from clients.site import read_site
from fedslm.errors import BudgetExceededError
from tests.clients.test_ledger import plan

site = read_site(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    with open_ledger(site) as ledger:
        ledger.book(plan(int(sys.argv[2])), coordinator="")
    print("won")
except BudgetExceededError:
    print("lost")
"""


def test_of_two_processes_that_race_for_the_last_of_the_budget_one_wins(site: Site, tmp_path: Path) -> None:
    book(site, plan(0))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "site.yaml"), str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    ends = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        ends.append(racer.communicate(timeout=60)[0])
    assert sorted(ends) == ["lost\n", "won\n"]
    assert charged(site) == 16.0


def test_a_full_disk_books_nothing(site: Site) -> None:
    book(site, plan())
    with full_disk(100), pytest.raises(RunError):
        book(site, plan())
    with open_ledger(site) as ledger:
        assert ledger.read().plans[plan().sha256].sessions == (1,)
        assert ledger.problem() == ""


def test_an_anchor_that_cannot_be_written_lets_nothing_be_trained(site: Site, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("a file where a folder has to be")
    with pytest.raises(RunError, match="anchor"):
        book(site, plan())


def test_a_read_only_ledger_is_one_sentence(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        ledger._database._db.execute("PRAGMA query_only = ON")
        with pytest.raises(RunError, match="readonly"):
            ledger.book(plan(), coordinator="")


def test_a_clock_that_goes_back_is_told_and_changes_nothing(site: Site, identity: Identity) -> None:
    times = iter(datetime.datetime(2026, 1, 1, hour, tzinfo=datetime.UTC) for hour in (5, 4, 3, 2, 1))
    with Database(state(site), hospital="hospital-0", population="patients") as database:
        ledger = LedgerBook(database, site=site, identity=identity, now=lambda: next(times))
        ledger.book(plan(), coordinator="")
        ledger.book(plan(), coordinator="")
        assert ledger.read().clock_went_back == (2, 3, 4)
        assert ledger.export().verify(identity.public).epsilon == 8.0


# --- whose ledger -----------------------------------------------------------------------------------------------------


def test_another_key_than_the_sites_is_refused(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    (tmp_path / "id.pem").unlink()
    (tmp_path / "id.pem.pub").unlink()
    write_identity(tmp_path / "id.pem", Identity.generate(), None, name="hospital-0")
    with pytest.raises(LedgerError, match="another key"):
        book(site, plan())


def test_another_populations_ledger_is_refused(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    shutil.copy(state(site) / DATABASE, state(site) / "children.sqlite")
    with pytest.raises(LedgerError, match=r"patients.*children"):
        book(made_site(tmp_path, population="children", anchor_file=str(tmp_path / "other")), plan())


def test_another_unit_is_refused(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with pytest.raises(LedgerError, match=r"patients / patient, site\.yaml says .* record"):
        book(made_site(tmp_path, unit="record"), plan())


def test_two_populations_have_two_budgets(site: Site, tmp_path: Path) -> None:
    book(site, plan(1), plan(2))
    children = made_site(tmp_path, population="children", anchor_file=str(tmp_path / "other"))
    book(children, plan(1), plan(2))
    assert charged(children) == 16.0
    assert charged(site) == 16.0


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ledger WHERE number = 3",
        "UPDATE ledger SET data = CAST(replace(CAST(data AS TEXT), '8.0', '0.8') AS BLOB) WHERE number = 2",
        "UPDATE ledger SET data = x'00' WHERE number = 3",
        "UPDATE ledger SET number = 99 WHERE number = 4",
    ],
)
def test_an_altered_ledger_spends_nothing(site: Site, statement: str) -> None:
    book(site, plan(), plan())
    with sqlite3.connect(state(site) / DATABASE) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        assert db.execute(statement).rowcount == 1
    with pytest.raises(LedgerError):
        book(site, plan())


# --- going back -------------------------------------------------------------------------------------------------------


def test_an_old_copy_of_the_ledger_is_found_out(site: Site) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan())
    with pytest.raises(RollbackError, match=r"ends at row 3, .* row 4 .*fedslm ledger restore"):
        book(site, plan())
    with open_ledger(site) as ledger, pytest.raises(RollbackError):
        ledger.head()


def test_another_history_of_the_same_length_is_found_out(site: Site) -> None:
    book(site, plan())
    with restored_after(state(site), anchor(site)):
        book(site, plan())
        kept = anchor(site).read_bytes()
    with open_ledger(site) as ledger:
        ledger.book(plan(), coordinator="", session=9)
    anchor(site).write_bytes(kept)
    with pytest.raises(RollbackError):
        book(site, plan())


def test_a_ledger_that_was_lost_is_not_begun_anew(site: Site) -> None:
    book(site, plan())
    shutil.rmtree(state(site))
    with pytest.raises(LedgerError, match="There is no ledger"):
        book(site, plan())


def test_an_anchor_that_is_gone_is_missed(site: Site) -> None:
    book(site, plan())
    anchor(site).unlink()
    with pytest.raises(RollbackError, match="is gone"):
        book(site, plan())


def test_a_damaged_anchor_is_no_anchor(site: Site) -> None:
    book(site, plan())
    anchor(site).write_text("seven")
    with pytest.raises(LedgerError, match="damaged"):
        book(site, plan())


def test_a_crash_between_the_ledger_and_the_anchor_is_no_rollback(site: Site) -> None:
    book(site, plan())
    with restored_after(anchor(site)):
        book(site, plan())
    book(site, plan())
    with open_ledger(site) as ledger:
        assert len(ledger.read().plans[plan().sha256].sessions) == 3


def test_a_crash_before_the_first_anchor_is_no_rollback(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clients.ledger.write_anchor", fail)
        with pytest.raises(KeyboardInterrupt):
            book(site, plan())
    book(site, plan())
    assert charged(site) == 8.0


# --- restoring --------------------------------------------------------------------------------------------------------


def test_an_export_brings_missing_rows_back(site: Site) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan(), plan(2))
        with open_ledger(site) as ledger:
            export = Export.from_bytes(ledger.export().to_bytes())
    with open_ledger(site) as ledger:
        assert ledger.restore(export, forfeits=False) == (3, ())
    assert charged(site) == 16.0
    book(site, plan())
    with pytest.raises(BudgetExceededError):
        book(site, plan())


def test_without_an_export_nothing_is_changed_unless_the_budget_is_given_up(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan(2))
    with open_ledger(site) as ledger, pytest.raises(RollbackError):
        ledger.restore(None, forfeits=False)
    with open_ledger(site) as ledger:
        came, (lost,) = ledger.restore(None, forfeits=True)
        assert (came, lost.row, lost.epsilon) == (0, 5, 12.0)
        assert ledger.head().row == 6  # above every row that anybody has seen
    with pytest.raises(BudgetExceededError):
        book(site, plan(3))
    raised = made_site(tmp_path, budget_epsilon=28.0, budget_delta=1.5e-4)  # the hospital's own decision
    book(raised, plan(3))
    with open_ledger(raised) as ledger:
        assert ledger.export().verify(None).epsilon == 28.0


def test_a_ledger_that_was_lost_goes_on_with_its_whole_budget_spent(site: Site) -> None:
    book(site, plan())
    shutil.rmtree(state(site))
    with open_ledger(site) as ledger:
        came, (lost,) = ledger.restore(None, forfeits=True)
        assert (came, lost.epsilon, lost.delta) == (0, 20.0, 1e-4)
        assert ledger.problem() == ""
    assert charged(site) == 20.0


def test_a_ledger_that_was_lost_comes_back_from_its_export(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        export = ledger.export()
    shutil.rmtree(state(site))
    with open_ledger(site) as ledger:
        assert ledger.restore(export, forfeits=False) == (3, ())
    book(site, plan())


def test_an_export_of_another_history_is_refused(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with restored_after(state(site), anchor(site)):
        book(site, plan())
        with open_ledger(site) as ledger:
            export = ledger.export()
    book(site, plan(2))
    with open_ledger(site) as ledger, pytest.raises(LedgerError, match="differ"):
        ledger.restore(export, forfeits=True)


def test_an_export_that_was_altered_is_refused(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        export = ledger.export()
    shutil.rmtree(state(site))
    for altered in (
        dataclasses.replace(export, rows=export.rows[:-1]),
        dataclasses.replace(export, signatures=export.signatures[:-1]),
    ):
        with open_ledger(site) as ledger, pytest.raises(LedgerError):
            ledger.restore(altered, forfeits=True)


def test_nothing_is_forfeited_where_nothing_is_lost(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        assert ledger.restore(None, forfeits=True) == (0, ())
        assert not any(isinstance(row.entry, Forfeited) for row in ledger.read().rows)


def test_without_its_anchor_a_ledger_may_be_an_old_copy_and_the_budget_is_given_up(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan(2))
    anchor(site).unlink()
    with open_ledger(site) as ledger:
        with pytest.raises(RollbackError, match="is gone"):
            ledger.restore(None, forfeits=False)
        _, (lost,) = ledger.restore(None, forfeits=True)
    assert lost.epsilon == 12.0
    assert charged(site) == 20.0


def test_the_newest_export_brings_an_anchor_back(site: Site) -> None:
    book(site, plan())
    with open_ledger(site) as ledger:
        export = ledger.export()
    anchor(site).unlink()
    with open_ledger(site) as ledger:
        assert ledger.restore(export, forfeits=False) == (0, ())
    book(site, plan())


def test_a_budget_that_is_lowered_for_it_makes_a_loss_no_cheaper(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan(2))
    lowered = made_site(tmp_path, budget_epsilon=8.0, budget_delta=1e-5)
    with open_ledger(lowered) as ledger:
        _, (lost,) = ledger.restore(None, forfeits=True)
    assert (lost.epsilon, lost.delta) == (12.0, pytest.approx(9e-5))


def test_a_newer_copy_under_another_name_hides_no_rollback(site: Site) -> None:
    book(site, plan())
    with restored_after(state(site)):
        book(site, plan())
        with sqlite3.connect(state(site) / DATABASE) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        newer = (state(site) / DATABASE).read_bytes()
    (state(site) / "patients-broken.sqlite").write_bytes(newer)
    with pytest.raises(RollbackError):
        book(site, plan())


def test_two_populations_do_not_share_an_anchor(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    with pytest.raises(LedgerError, match="There is no ledger"):
        book(made_site(tmp_path, population="children"), plan(2))
    assert charged(site) == 8.0
    book(site, plan())


# --- the records ------------------------------------------------------------------------------------------------------


def test_a_new_version_of_the_records_is_one_row(site: Site) -> None:
    with open_ledger(site) as ledger:
        for fingerprint in ("a" * 64, "a" * 64, "b" * 64, "a" * 64):
            ledger.see_data(fingerprint)
        found = [row.entry.fingerprint[0] for row in ledger.read().rows if isinstance(row.entry, Data)]
    assert found == ["a", "b", "a"]


def test_an_anchor_is_written_whole_or_not_at_all(site: Site, tmp_path: Path) -> None:
    book(site, plan())
    head = read_anchor(anchor(site))
    assert head is not None
    with full_disk(10), pytest.raises(RunError):
        write_anchor(anchor(site), dataclasses.replace(head, row=99))
    assert read_anchor(anchor(site)) == head
    assert os.listdir(anchor(site).parent) == ["anchor"]
