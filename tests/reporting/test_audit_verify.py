"""`fedslm audit verify`: 0 only where everything holds, else 1 with a sentence that names the first thing wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedslm.cli import main
from fedslm.encoding import canonical_bytes
from fedslm.governance.keyfiles import write_identity
from fedslm.governance.receipt import Receipt
from fedslm.governance.roster import Member, Roster, sign_roster
from fedslm.privacy.ledger import Booked, Closed
from fedslm.reporting.audit.verify import Trust, read_receipts, verify_ledgers
from tests.reporting.books import KEYS, NAMES, Book, full_book, identity

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def third_opinion(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """What the slow accountant says, above the others: nobody waits for it here."""
    answer: dict[str, float | None] = {"above": 0.005}

    def prv(mechanism: Any, *, sessions: int, delta: float, timeout_s: float) -> float | None:
        from fedslm.privacy.accounting import epsilon_spent

        above = answer["above"]
        return None if above is None else epsilon_spent(mechanism, sessions=sessions, delta=delta) + above

    monkeypatch.setattr("fedslm.privacy.accounting.prv_epsilon", prv)
    return answer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: everybody's public files, and an honest ledger with its receipts."""
    monkeypatch.chdir(tmp_path)
    for name, key in KEYS.items():
        write_identity(f"{name}.pem", key, None, name=name)
    book = full_book()
    book.save(tmp_path / "north.json")
    book.save_receipts(tmp_path / "receipts.jsonl")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str) -> tuple[int, str, str]:
        code = main(["audit", *line.split()])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def refused(result: tuple[int, str, str], *named: str, code: int = 1) -> None:
    """One sentence on stderr that names all of these, nothing on stdout."""
    found, out, err = result
    assert (found, out) == (code, "")
    assert err.startswith("fedslm: ")
    assert err.count("\n") == 1
    assert all(name in err for name in named), err


def write_roster(path: Path, *names: str, **keys: Any) -> None:
    members = tuple(Member(name=name, key=(keys.get(name) or KEYS[name]).public) for name in names)
    root, coordinator = identity(90), identity(91)
    roster = Roster(
        version=1,
        consortium="toy",
        serial=1,
        root=root.public,
        coordinator=Member(name="coordinator", key=coordinator.public),
        members=members,
    )
    path.write_bytes(sign_roster(roster, root))


def test_an_honest_ledger_holds(run: Run) -> None:
    code, out, err = run("verify north.json --key north.pem.pub --receipts receipts.jsonl")
    assert (code, err) == (0, "")
    assert out.startswith("Everything holds.\n")
    assert "6 receipts, all booked" in out
    assert KEYS["north"].public.fingerprint in out
    assert "s for PLD and RDP" in out


def test_the_json_says_all_of_it(run: Run) -> None:
    code, out, err = run("verify north.json --key north.pem.pub --receipts receipts.jsonl --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"holds", "ledgers", "roster_sha256", "seconds"}
    (ledger,) = found["ledgers"]
    own = full_book().ledger
    assert found["holds"] is True
    assert (ledger["ledger"], ledger["head"]["sha256"]) == (own.id, own.head.sha256)
    assert (ledger["epsilon"], ledger["delta"]) == (own.epsilon, own.delta)
    assert (ledger["rows"], ledger["signatures"], ledger["receipts"]) == (11, 11, 6)
    assert ledger["identity"] == {"fingerprint": KEYS["north"].public.fingerprint, "source": "key"}
    for plan, account in zip(ledger["plans"], own.plans.values(), strict=True):
        assert (plan["plan"], plan["sessions"]) == (account.reserved.plan, len(account.sessions))
        assert plan["epsilon"] == account.epsilon
        assert plan["pld"] <= plan["epsilon"] + 1e-6
        assert plan["pld"] <= plan["rdp"] + 0.02
        assert plan["prv"] == pytest.approx(plan["pld"] + 0.005)


def test_without_a_key_the_identity_is_said_to_be_unchecked(run: Run) -> None:
    code, out, err = run("verify north.json")
    assert code == 0
    assert "from THE FILE ITSELF" in out
    assert "NOT CHECKED" in err
    assert KEYS["north"].public.fingerprint in err


def test_a_roster_names_the_key(run: Run, folder: Path) -> None:
    write_roster(folder / "roster.json", *NAMES)
    code, out, err = run("verify north.json --roster roster.json --json")
    assert (code, err) == (0, "")
    assert json.loads(out)["ledgers"][0]["identity"]["source"] == "roster"
    assert len(json.loads(out)["roster_sha256"]) == 64


def test_another_key_in_the_roster_is_refused(run: Run, folder: Path) -> None:
    write_roster(folder / "roster.json", *NAMES, north=identity(92))
    refused(run("verify north.json --roster roster.json"), "north.json", "another key than the roster")


def test_a_hospital_outside_the_roster_is_refused(run: Run, folder: Path) -> None:
    write_roster(folder / "roster.json", "south", "west", "east", east=identity(92))
    refused(run("verify north.json --roster roster.json"), "names no member 'north'")


def test_a_wrong_key_is_named(run: Run) -> None:
    result = run("verify north.json --key south.pem.pub")
    refused(result, "north.json", KEYS["north"].public.fingerprint, KEYS["south"].public.fingerprint)


def test_a_key_that_was_handed_out_for_somebody_else_is_refused(run: Run, folder: Path) -> None:
    text = (folder / "north.pem.pub").read_text().replace("identity of north", "identity of south")
    (folder / "mixed.pub").write_text(text)
    refused(run("verify north.json --key mixed.pub"), "'north'", "'south'")


def test_each_of_several_ledgers_needs_its_key(run: Run, folder: Path) -> None:
    full_book("south").save(folder / "south.json")
    assert run("verify north.json south.json --key north.pem.pub --key south.pem.pub")[0] == 0
    refused(run("verify north.json south.json --key north.pem.pub"), "south.json")


def test_key_and_roster_contradict_each_other(run: Run, folder: Path) -> None:
    write_roster(folder / "roster.json", *NAMES)
    refused(run("verify north.json --roster roster.json --key north.pem.pub"), "--key", "--roster", code=2)


def test_what_is_no_export_is_named(run: Run, folder: Path) -> None:
    refused(run("verify gone.json"), "gone.json cannot be read", code=2)
    refused(run("verify"), "a ledger", code=2)
    with sqlite3.connect(folder / "ledger.db") as database:
        database.execute("CREATE TABLE ledger (number INTEGER)")
    refused(run("verify ledger.db"), "ledger.db is the database", "fedslm ledger export", code=2)
    refused(run("verify receipts.jsonl"), "receipts.jsonl")
    refused(run("verify north.json --key north.pem"), "holds private keys", code=2)
    refused(run("verify north.json --receipts north.json"), "north.json, line 1")
    refused(run("verify north.json --timeout soon"), "--timeout=soon", code=2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[2].update(noise_multiplier=4.0), "row 4"),
        (lambda rows: rows.pop(5), "row 7"),
        (lambda rows: rows.insert(5, rows[5]), "row 6"),
        (lambda rows: rows.__setitem__(slice(4, 6), rows[5:3:-1]), "row 6"),
        (lambda rows: rows[-1].update(time="2026-03-01T00:00:00Z"), "does not verify"),
    ],
    ids=["altered", "taken out", "put in", "moved", "altered at the end"],
)
def test_an_edited_ledger_is_refused(run: Run, folder: Path, change: Callable[[Any], None], named: str) -> None:
    document = json.loads((folder / "north.json").read_bytes())
    change(document["rows"])
    (folder / "north.json").write_bytes(canonical_bytes(document))
    refused(run("verify north.json --key north.pem.pub"), "north.json", named)


def test_a_failure_is_said_in_json_as_well(run: Run, folder: Path) -> None:
    code, out, err = run("verify north.json --key south.pem.pub --json")
    assert code == 1
    found = json.loads(out)
    assert found == {"holds": False, "reason": err.removeprefix("fedslm: ").strip()}


def test_an_older_copy_does_not_hold_against_the_receipts(run: Run, folder: Path) -> None:
    whole = full_book()
    older = Book()
    older.see_data()
    older.book(older.reserve("first"), 2)
    older.save(folder / "older.json")
    whole.save_receipts(folder / "receipts.jsonl")
    assert run("verify older.json --key north.pem.pub")[0] == 0
    refused(run("verify older.json --key north.pem.pub --receipts receipts.jsonl"), "older.json", "session 3")


def test_a_receipt_out_of_a_ledger_that_is_not_shown_is_noticed(run: Run, folder: Path) -> None:
    hidden = Book("north", population="children")
    hidden.book(hidden.reserve("first"), 1)
    hidden.save_receipts(folder / "more.jsonl")
    line = "verify north.json --receipts receipts.jsonl --receipts more.jsonl"
    refused(run(line), "another ledger", hidden.ledger.id[:12])
    hidden.save(folder / "hidden.json")
    assert run(line.replace("north.json", "north.json hidden.json"))[0] == 0


def test_rows_that_were_declared_lost_settle_their_receipts(run: Run, folder: Path) -> None:
    whole = full_book()
    restored = Book()
    restored.see_data()
    restored.book(restored.reserve("first"), 2)
    restored.forfeit(rows=whole.ledger.head.row - restored.ledger.head.row)
    restored.save(folder / "restored.json")
    assert run("verify restored.json --receipts receipts.jsonl")[0] == 0


def test_receipts_of_other_hospitals_are_passed_over(run: Run, folder: Path) -> None:
    full_book("south").save_receipts(folder / "south.jsonl")
    code, out, _ = run("verify north.json --receipts south.jsonl --json")
    assert code == 0
    assert json.loads(out)["ledgers"][0]["receipts"] == 0


def test_a_forged_receipt_is_refused(run: Run, folder: Path) -> None:
    real = full_book().receipts[0]
    forged = Receipt.sign(KEYS["south"], hospital="north", head=real.head, run=real.run, session=1)
    (folder / "forged.jsonl").write_bytes(forged.to_bytes() + b"\n")
    refused(run("verify north.json --receipts forged.jsonl"), "does not verify")


def test_a_receipt_for_another_session_than_the_row_is_refused(run: Run, folder: Path) -> None:
    real = full_book().receipts[0]
    lie = Receipt.sign(KEYS["north"], hospital="north", head=real.head, run=real.run, session=2)
    (folder / "lie.jsonl").write_bytes(lie.to_bytes() + b"\n")
    refused(run("verify north.json --receipts lie.jsonl"), "books something else")


def test_of_two_exports_of_one_ledger_the_longer_counts(run: Run, folder: Path) -> None:
    earlier = Book()
    earlier.see_data()
    earlier.save(folder / "earlier.json")
    code, out, _ = run("verify earlier.json north.json earlier.json --json")
    assert code == 0
    assert [ledger["file"] for ledger in json.loads(out)["ledgers"]] == ["north.json"]


def test_two_histories_of_one_ledger_are_refused(run: Run, folder: Path) -> None:
    fork = Book()
    fork.reserve("another")
    fork.save(folder / "fork.json")
    refused(run("verify north.json fork.json"), "north.json and fork.json are two histories")


def test_a_plan_that_is_charged_too_little_is_refused(run: Run, folder: Path) -> None:
    book = Book()
    plan = book.reserve("first")
    book.book(plan, 3)
    book.close(plan, discount=0.01)
    book.save(folder / "cheap.json")
    refused(run("verify cheap.json"), "cheap.json", plan[:12])


def test_a_reservation_below_its_price_is_refused(run: Run, folder: Path) -> None:
    book = Book()
    book.reserve("first", epsilon=0.1)
    book.save(folder / "cheap.json")
    refused(run("verify cheap.json"), "cheap.json", "0.1")


def test_an_accountant_that_gives_up_is_said_and_no_failure(run: Run, third_opinion: dict[str, float | None]) -> None:
    third_opinion["above"] = None
    code, out, _ = run("verify north.json --key north.pem.pub")
    assert code == 0
    assert "gave up" in out
    assert json.loads(run("verify north.json --json")[1])["ledgers"][0]["plans"][0]["prv"] is None


def test_an_accountant_that_contradicts_is_a_failure(run: Run, third_opinion: dict[str, float | None]) -> None:
    third_opinion["above"] = 0.2
    refused(run("verify north.json"), "Fourier")


def test_no_time_is_spent_after_the_deadline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: pytest.fail("asked after the deadline")
    )
    assert "gave up" in run("verify north.json --timeout 1e-9")[1]


def test_training_without_privacy_holds_and_is_shouted(run: Run, folder: Path) -> None:
    book = Book()
    book.book(book.reserve_without_privacy(), 1)
    book.save(folder / "none.json")
    code, out, err = run("verify none.json --key north.pem.pub")
    assert code == 0
    assert "no bound" in out
    assert "NO BOUND" in err
    (ledger,) = json.loads(run("verify none.json --json")[1])["ledgers"]
    assert ledger["epsilon"] is None
    assert ledger["plans"][0]["prv"] is None


def test_a_clock_that_went_back_is_told(run: Run, folder: Path) -> None:
    book = Book()
    book.see_data()
    plan = book.reserve("first")
    book.add(Booked(plan=plan, session=1), hours=-9)
    book.save(folder / "clock.json")
    code, out, _ = run("verify clock.json")
    assert code == 0
    assert "clock went back at row 4" in out


def test_a_plan_that_never_started_costs_nothing(run: Run, folder: Path) -> None:
    book = Book()
    plan = book.reserve("first")
    book.add(Closed(plan=plan, sessions=0, epsilon=0.0))
    book.save(folder / "unused.json")
    code, out, _ = run("verify unused.json --json")
    assert code == 0
    (found,) = json.loads(out)["ledgers"][0]["plans"]
    assert found["pld"] == found["rdp"] == found["prv"] == found["epsilon"] == 0.0


def test_a_thousand_sessions_are_checked_in_two_seconds(folder: Path) -> None:
    book = Book()
    book.book(book.reserve("long", sessions=1000, sigma=4.0), 1000)
    path, receipts = book.save(folder / "long.json"), book.save_receipts(folder / "long.jsonl")
    began = time.process_time()
    verified = verify_ledgers([path], trust=Trust(), receipts=read_receipts([receipts]), timeout_s=1e-9)
    spent = time.process_time() - began - verified.seconds["accountants"]
    assert verified.ledgers[0].receipts == 1000
    assert spent < 2.0


def test_nothing_heavy_is_needed(folder: Path) -> None:
    lines = (
        "import sys",
        "from fedslm.cli import main",
        "assert main(['audit', 'verify', 'north.json', '--timeout', '1e-9']) == 0",
        "print(sorted({'torch', 'transformers', 'flwr', 'matplotlib', 'hydra'} & set(sys.modules)))",
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=folder,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
