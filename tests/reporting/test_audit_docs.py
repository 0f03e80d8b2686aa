"""docs/privacy.md and the code say the same: fields, keys, options, formulas, and the programs that need none of us."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedslm.crypto.identity import SIGNATURE_BYTES
from fedslm.encoding import canonical_bytes
from fedslm.privacy import ledger_rows
from fedslm.privacy.ledger import EVENTS, EXPORT_VERSION, Booked, Closed, Data, Forfeited, Opened, Reserved
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.noise import GRID_BITS, relative_sensitivity
from fedslm.reporting.audit import afford, facts
from fedslm.reporting.audit.command import AUDIT_HELP
from fedslm.reporting.audit.verify import Trust, verify_ledgers
from tests.reporting.books import KEYS, Book, full_book
from tests.reporting.test_audit_report import record_book

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "privacy.md").read_text()
KINDS = {
    "opened": Opened,
    "reserved": Reserved,
    "booked": Booked,
    "closed": Closed,
    "data": Data,
    "forfeited": Forfeited,
}
CHECK_ROWS, CHECK_PRICES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def no_third_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: None)


def names(cell: str) -> list[str]:
    return re.findall(r"`([a-z_0-9.]+)`", cell)


def table_after(words: str) -> list[tuple[str, str]]:
    """The first table after some words: first and second cell of each row."""
    lines = iter(TEXT[TEXT.index(words) :].splitlines()[1:])
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split(" | ", 1)))
        elif rows:
            break
    return [(first.strip("| "), second.strip(" |")) for first, second in rows[2:]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_row_is_explained(kind: str) -> None:
    documented = [names(first)[0] for first, _ in table_after(f"`{kind}`:")]
    assert documented == [field.name for field in dataclasses.fields(KINDS[kind])]


def test_every_kind_is_explained() -> None:
    assert set(ledger_rows._KIND_OF.values()) == set(KINDS)
    row = full_book().ledger.rows[0].to_values()
    own = [names(first)[0] for first, _ in table_after("Every row has:")]
    assert own == list(row)[: len(own)]
    assert all(f"`{event}`" in TEXT for event in EVENTS)
    assert f"`version` ({EXPORT_VERSION})" in TEXT
    assert f"64\nbytes, then ML-DSA-65's {SIGNATURE_BYTES - 64}" in TEXT


def test_the_formula_of_the_sensitivity_is_the_codes() -> None:
    assert "1 + sqrt(d) 2^-30 + 2 n (n + 2) 2^-53" in TEXT
    assert GRID_BITS == 30
    d, n = 10_000_000, 2400
    assert relative_sensitivity(parameters=d, units=n) == pytest.approx(
        1 + math.sqrt(d) * 2**-30 + 2 * n * (n + 2) * 2**-53, abs=1e-15
    )


def paths(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of all keys; of lists the first entry's."""
    if isinstance(value, list):
        for each in value:
            yield from paths(each, name)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield f"{name}{key}"
            yield from paths(each, f"{name}{key}.")


def documented_keys(words: str, inside: tuple[str, ...]) -> set[str]:
    """The keys of a table; names in the second cell belong to those in the first, where these are objects or lists."""
    found = set()
    for first, second in table_after(words):
        found |= set(names(first))
        for parent in names(first):
            if parent in inside:
                found |= {f"{parent}.{key}" for key in names(second)}
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The keys that verify and report print for ledgers in which there is something of everything."""
    folder = tmp_path_factory.mktemp("docs")
    books = full_book(), record_book(), Book("south")
    books[0].forfeit()
    files = [book.save(folder / f"{place}.json") for place, book in enumerate(books)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: None)
        verified = verify_ledgers(files, trust=Trust(), receipts=(), timeout_s=1.0)
        report = facts.report_facts(verified, plans=(), is_disjoint=True, made="2026-11-22T23:11:18Z")
        return set(paths(facts.verify_facts(verified))), set(paths(report))


VERIFY_PARTS = ("seconds", "ledgers.head", "ledgers.identity", "ledgers.plans")
REPORT_PARTS = ("ledgers.plans", "ledgers.forfeits", "ledgers.timeline", "ledgers.history")


def test_every_key_of_verify_is_explained(shown: tuple[set[str], set[str]]) -> None:
    documented = documented_keys("`fedslm audit verify --json` prints", VERIFY_PARTS)
    assert shown[0] - documented == set()
    nested = {f"{parent}.{key}" for parent in VERIFY_PARTS for key in ("key", "roster", "file", "row", "sha256")}
    assert documented - shown[0] - nested == set()


def test_every_key_of_report_is_explained(shown: tuple[set[str], set[str]]) -> None:
    known = documented_keys("`fedslm audit verify --json` prints", VERIFY_PARTS)
    known |= documented_keys("`fedslm audit report --json` prints", REPORT_PARTS)
    known |= {
        f"together.{kind}{key}"
        for kind in ("sum", "maximum")
        for key in ("", ".epsilon", ".delta", ".guess", ".recognised")
    }
    known |= {f"yardstick.{key}" for key in ("epsilon", "name", "guess", "recognised")}
    known |= {"ledgers.head.row", "ledgers.head.sha256", "ledgers.by_noise.guess", "ledgers.by_noise.recognised"}
    known |= {"ledgers.budgets.epsilon", "ledgers.budgets.delta", "ledgers.budgets.since"}
    known |= {"ledgers.plans.patient.records", "ledgers.plans.patient.epsilon"}
    assert shown[1] - known == set()
    new = documented_keys("`fedslm audit report --json` prints", REPORT_PARTS)
    assert new - shown[1] == {"ledgers.plans.records"}  # named for `patient`


def test_every_key_of_plan_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afford, "noise_for", lambda **_: 1.0)
    monkeypatch.setattr(afford, "TARGETS", (4.0,))
    mechanism = Mechanism(
        unit="patient", sample_rate=0.05, clip_norm=1.0, noise_multiplier=2.0, steps=2, declared_population=400
    )
    found = set(paths(afford.answer(afford.Question(mechanism=mechanism, sessions=2, delta=1e-6))))
    known = documented_keys("`fedslm audit plan --json` prints", ("costs", "affordable", "noise"))
    assert found - {"by_noise.guess", "by_noise.recognised"} == known


def test_every_option_is_in_the_help() -> None:
    commands = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    options = set(re.findall(r"--[a-z-]+", " ".join(commands)))
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", AUDIT_HELP))


def run_program(program: str, folder: Path, document: bytes) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    (folder / "ledger.json").write_bytes(document)
    command = [sys.executable, "program.py", "ledger.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_program_that_checks_rows_agrees(tmp_path: Path) -> None:
    done = run_program(CHECK_ROWS, tmp_path, full_book().export().to_bytes())
    assert (done.returncode, done.stdout.strip()) == (0, KEYS["north"].public.fingerprint), done.stderr


@pytest.mark.parametrize("fault", ["altered", "taken out", "unsigned", "forged", "spelled otherwise"])
def test_the_program_that_checks_rows_finds(fault: str, tmp_path: Path) -> None:
    document = json.loads(full_book().export().to_bytes())
    match fault:
        case "altered":
            document["rows"][2]["noise_multiplier"] = 9.0
        case "taken out":
            del document["rows"][4]
        case "unsigned":
            del document["signatures"][-1]
        case "forged":
            document["signatures"][-1][1] = document["signatures"][-2][1]
    data = canonical_bytes(document) + (b"\n" if fault == "spelled otherwise" else b"")
    assert run_program(CHECK_ROWS, tmp_path, data).returncode == 1


def test_the_program_that_checks_prices_agrees(tmp_path: Path) -> None:
    book = full_book()
    book.reserve("scored", sessions=3, scores=4.0)
    done = run_program(CHECK_PRICES, tmp_path, book.export().to_bytes())
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == list(book.ledger.plans), done.stderr
    for _, charged, found in lines:
        assert float(charged) >= float(found) - 1e-3
        assert float(charged) == pytest.approx(float(found), abs=2e-3)
