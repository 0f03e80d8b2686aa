"""A row has one spelling and one hash; what this release does not know it refuses, and says that it is newer."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedslm.encoding import canonical_bytes, sha256_hex
from fedslm.errors import LedgerError, PrivacyError
from fedslm.governance.plan import PlannedScores
from fedslm.governance.receipt import MAX_ROW
from fedslm.privacy.ledger_rows import NO_ROW, Closed, Data, Entry, Forfeited, Reserved, Row
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.planned import planned_mechanism, planned_reservation
from tests.builders import UNPRIVATE, masked_plan, toy_plan
from tests.privacy.ledgers import KEY, TIME, booked, closed, opened, plan, reserved, unbounded

FORFEITED = Forfeited(ledger="1a" * 32, row=9, sha256="2b" * 32, epsilon=1.5, delta=1e-6)
ENTRIES: dict[str, Entry] = {
    "opened": opened(),
    "reserved": reserved(coordinator=KEY.public.fingerprint, max_records_per_patient=8),
    "booked": booked(1, 7),
    "closed": closed(1, 3, 0.5),
    "data": Data(fingerprint="3c" * 32),
    "forfeited": FORFEITED,
}


def row(entry: Entry, **changes: Any) -> Row:
    fields: dict[str, Any] = {"number": 5, "time": TIME, "previous": "4d" * 32, "entry": entry}
    return Row(**(fields | changes))


def edited(kind: str, field: str, value: Any) -> bytes:
    """The bytes of a row with one value set, or taken out (value `...`), canonical."""
    values = row(ENTRIES[kind]).to_values()
    if value is ...:
        del values[field]
    else:
        values[field] = value
    return canonical_bytes(values)


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_row_reads_back(kind: str) -> None:
    made = row(ENTRIES[kind])
    assert Row.from_bytes(made.to_bytes()) == made
    assert Row.from_values(made.to_values()) == made
    assert made.to_values()["kind"] == kind


@pytest.mark.parametrize("kind", ENTRIES)
def test_the_hash_is_that_of_the_bytes(kind: str) -> None:
    made = row(ENTRIES[kind])
    assert made.sha256 == sha256_hex(made.to_bytes()) == Row.from_bytes(made.to_bytes()).sha256
    assert dataclasses.replace(made, number=6).sha256 != made.sha256


PINNED = {  # Another encoding or meaning needs another kind: hospitals keep these rows for life.
    "opened": "1a4fc59e8b6acdcf7dc4721a2e739ddcc8526bb5a3e80841be7e15882ac19780",
    "reserved": "9fd2b1a8c2c14a64d798536fd7a6f696d4903ed17223c9d2c6c1a829688f8c1a",
    "booked": "602761cff242ed10350e81f9629d4a9e78d5356db0f3b3e9bde638911635ca3e",
    "closed": "976ae5fd7d02b07c5210851985330daf556cbc9d5a0ea52e9fa6291fda4b1fab",
    "data": "4b7fa171871d18fd24cae218fab99ce5100dcb07b3423cda35e84a6aa77a4d0b",
    "forfeited": "6b478ebcb9888955ad72394fa113dc2328d04415e6d77c1346b075b140b23f08",
}


@pytest.mark.parametrize("kind", PINNED)
def test_the_encoding_is_pinned(kind: str) -> None:
    assert row(ENTRIES[kind]).sha256 == PINNED[kind]


def test_a_row_is_one_flat_object() -> None:
    text = f'{{"kind":"booked","number":5,"plan":"{plan(1)}","previous":"{"4d" * 32}","session":7,"time":"{TIME}"}}'
    assert row(booked(1, 7)).to_bytes().decode() == text


@pytest.mark.parametrize("kind", ENTRIES)
def test_no_field_of_an_entry_hides_one_of_the_row(kind: str) -> None:
    fields = [field.name for field in dataclasses.fields(ENTRIES[kind])]
    assert {"number", "time", "previous", "kind"}.isdisjoint(fields)
    assert len(row(ENTRIES[kind]).to_values()) == 4 + len(fields)


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_flipped_bit_is_refused_or_changes_the_hash(kind: str) -> None:
    made = row(ENTRIES[kind])
    data = made.to_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        try:
            read = Row.from_bytes(bytes(flipped))
            assert read.to_bytes() == flipped
            assert read.sha256 != made.sha256
        except LedgerError:
            continue


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_epsilon_reads_back(epsilon: float) -> None:
    made = row(closed(1, 3, epsilon))
    assert Row.from_bytes(made.to_bytes()) == made


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pardoned", "Booked", "", None, 1, [], {}, ..., "x" * 1000])
def test_an_unknown_kind_is_of_a_newer_release(kind: Any) -> None:
    with pytest.raises(LedgerError, match=r"kind .* newer release") as refusal:
        Row.from_bytes(edited("booked", "kind", kind))
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("event", ["dp-sgd/2", "skellam/1", "", None, 1, []])
def test_an_unknown_event_is_of_a_newer_release(event: Any) -> None:
    with pytest.raises(LedgerError, match=r"event .* newer release"):
        Row.from_bytes(edited("reserved", "event", event))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *(("booked", "number", value) for value in (0, -1, MAX_ROW + 1, True, "5", 5.0, None, ...)),
        *(("booked", "previous", value) for value in ("4D" * 32, "4d" * 31, "", None, ...)),
        *(("booked", "time", value) for value in ("", "2026-11-22 23:11:18Z", TIME[:-1], TIME + "\n", None, 0, ...)),
        *(
            ("booked", "time", value)
            for value in ("2026-13-22T23:11:18Z", "2026-11-31T23:11:18Z", "2026-11-22T24:11:18Z")
        ),
        *(
            ("booked", "time", value)
            for value in ("2026-11-22T23:11:18.5Z", "2026-11-22T23:11:18+00:00", "２026-11-22T23:11:18Z")
        ),
        *(("booked", "session", value) for value in (0, -1, 2**32, True, 7.0, "7", None, ...)),
        *(("booked", "plan", value) for value in ("1" * 63, "G" * 64, plan(1) + "\n", None, ...)),
        *(("booked", "surprise", value) for value in (1, None)),
        *(("booked", name, 1) for name in ("entry", "self", "__dataclass_self__", "sha256")),
        *(("opened", "hospital", value) for value in ("", "a\n", "../etc", None, ...)),
        *(("opened", "population", value) for value in ("", "x" * 65, None, ...)),
        *(("opened", "unit", value) for value in ("hospital", "", None, ...)),
        *(("opened", "identity", value) for value in ("00" * 1983, "00" * 1985, "0G" * 1984, "AA" * 1984, ...)),
        *(("opened", "nonce", value) for value in ("0" * 31, "0" * 33, "A" * 32, ...)),
        *(("reserved", "sample_rate", value) for value in (0.0, 1.1, -0.5, 1, True, "0.25", None, ...)),
        *(("reserved", "clip_norm", value) for value in (0.0, -1.0, 1, None, ...)),
        *(("reserved", "noise_multiplier", value) for value in (0.0, -1.0, 1, None, ...)),
        *(("reserved", "epsilon", value) for value in (0.0, -1.0, 2, True, "2.0", None, ...)),
        *(("reserved", "delta", value) for value in (0.0, 1.0, -1e-6, None, ...)),
        *(("reserved", "budget_epsilon", value) for value in (0.0, -1.0, 8, ...)),
        *(("reserved", "budget_delta", value) for value in (0.0, 1.0, None, ...)),
        *(("reserved", "unit", value) for value in ("hospital", None, ...)),
        *(("reserved", "coordinator", value) for value in ("12345", None, "1" * 71, KEY.public.fingerprint + " ", ...)),
        *(
            ("reserved", field, value)
            for field in ("steps", "declared_population", "max_records_per_unit", "max_parameters", "max_sessions")
            for value in (0, -1, 2**63, True, 2.0, "2", None, ...)
        ),
        *(("reserved", "max_sessions", value) for value in (2**32,)),
        *(("reserved", "max_records_per_patient", value) for value in (0, True, 2.0, ...)),
        *(("closed", "sessions", value) for value in (-1, True, 3.0, 2**32, None, ...)),
        *(("closed", "epsilon", value) for value in (-0.5, 1, True, "0.5", ...)),
        *(("data", "fingerprint", value) for value in ("", "3C" * 32, None, ...)),
        *(("forfeited", "row", value) for value in (0, MAX_ROW + 1, True, 9.0, ...)),
        *(("forfeited", "ledger", value) for value in ("", "1A" * 32, None, ...)),
        *(("forfeited", "sha256", value) for value in ("", "2B" * 32, None, ...)),
        *(("forfeited", "epsilon", value) for value in (-0.5, 1, "1.5", ...)),
        *(("forfeited", "delta", value) for value in (-1e-9, 1.0, 0, None, ...)),
    ],
)
def test_a_damaged_value_is_refused_by_name(kind: str, field: str, value: Any) -> None:
    with pytest.raises(LedgerError) as refusal:
        Row.from_bytes(edited(kind, field, value))
    message = str(refusal.value)
    assert message.startswith("A row of the ledger is refused: ")
    assert field in message
    assert message.endswith(".")
    assert len(message) < 300


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"a":NaN}', b"[" * 100_000])
def test_what_is_no_row_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError):
        Row.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: text.replace(",", ", ", 1),
        lambda text: text.replace('"session":7', '"session":7,"session":7'),
        lambda text: text.replace('"session":7', '"session":07'),
        lambda text: "{" + text[1:-1].split(",", 1)[1] + "," + text[1:-1].split(",", 1)[0] + "}",
        lambda text: text.replace("booked", "\\u0062ooked"),
    ],
)
def test_another_spelling_of_a_row_is_refused(change: Any) -> None:
    with pytest.raises(LedgerError, match=r"^The row of the ledger is refused: .*(canonical|JSON)"):
        Row.from_bytes(change(row(booked(1, 7)).to_bytes().decode()).encode())


@pytest.mark.parametrize("text", ["0.50", "5e-1", "0.5000000000000000001"])
def test_a_number_has_one_spelling(text: str) -> None:
    data = row(closed(1, 3, 0.5)).to_bytes().replace(b"0.5", text.encode())
    with pytest.raises(LedgerError, match="canonical"):
        Row.from_bytes(data)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(LedgerError, match="refused"):
        Row.from_bytes(row(closed(1, 3, 0.5)).to_bytes().replace(b"0.5", text.encode()))


@pytest.mark.parametrize("entry", [None, {}, {"plan": plan(1), "session": 1}, "booked", row(booked(1, 1)), Closed])
def test_a_row_holds_an_entry(entry: Any) -> None:
    with pytest.raises(ValidationError, match="expected an entry"):
        row(entry)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["epsilon", "delta", "budget_epsilon", "budget_delta", "sample_rate", "clip_norm"])
def test_nothing_is_reserved_without_a_number(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        reserved(**{field: value})


# --- a reservation and its mechanism ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"event": "none"}, {"epsilon": None}, {"event": "none", "noise_multiplier": 0.0}], ids=str
)
def test_only_a_plan_without_privacy_is_unbounded(changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="cannot be reserved"):
        reserved(**changes)


def test_what_gives_no_guarantee_is_read_and_has_no_mechanism() -> None:
    # A later release may ask more of a plan; it must still read the rows of plans that ran.
    for entry in (reserved(unit="record", max_records_per_unit=4), reserved(noise_multiplier=1e9)):
        assert Row.from_bytes(row(entry).to_bytes()).entry == entry
        with pytest.raises(PrivacyError):
            entry.mechanism()


def test_a_plan_without_privacy_has_no_mechanism() -> None:
    with pytest.raises(PrivacyError, match="without privacy"):
        unbounded().mechanism()


def test_the_mechanism_is_the_one_reserved() -> None:
    fields: dict[str, Any] = {
        "unit": "record",
        "sample_rate": 0.1,
        "clip_norm": 0.5,
        "noise_multiplier": 1.25,
        "steps": 7,
        "declared_population": 90,
        "max_records_per_unit": 1,
        "max_records_per_patient": 8,
        "max_parameters": 20_000_000,
        "scores_noise_multiplier": None,
    }
    assert {field.name for field in dataclasses.fields(Mechanism)} == set(fields)
    assert reserved(**fields).mechanism() == Mechanism(**fields)
    scored = {**fields, "unit": "patient", "max_records_per_patient": None, "scores_noise_multiplier": 3.5}
    assert reserved(**scored, event="dp-sgd+scores/1").mechanism() == Mechanism(**scored)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "dp-sgd+scores/1"},
        {"scores_noise_multiplier": 3.5},
        {"event": "none", "epsilon": None, "noise_multiplier": 0.0, "scores_noise_multiplier": 3.5},
    ],
    ids=str,
)
def test_scores_have_an_event_of_their_own(changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="scores_noise_multiplier"):
        reserved(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy": {"noise_multiplier": 0.7, "clip_norm": 0.25, "sample_rate": 0.5, "max_records_per_unit": 7}},
        {"privacy": {"unit": "record"}},
        {"privacy": {"unit": "record", "max_records_per_patient": 4}},
        {"privacy": {"scores": PlannedScores(noise_multiplier=3.5)}},
        {"training": {"local_steps": 9}},
        {"adapter": {"trained_parameters": 20_000_000}},
        {"adapter": {"trained_parameters": 1}},
    ],
    ids=str,
)
def test_the_mechanism_is_the_planned_one(changes: dict[str, Any]) -> None:
    agreed = (masked_plan if "scores" in changes.get("privacy", {}) else toy_plan)(**changes)
    entry = planned_reservation(agreed, "hospital-1", coordinator="", budget_epsilon=8.0, budget_delta=1e-4)
    assert entry.mechanism() == planned_mechanism(agreed, "hospital-1")
    read = Row.from_bytes(row(entry).to_bytes()).entry
    assert isinstance(read, Reserved)
    assert read.mechanism() == planned_mechanism(agreed, "hospital-1")


def test_a_plan_without_privacy_is_reserved_as_that() -> None:
    agreed = toy_plan(privacy=UNPRIVATE)
    entry = planned_reservation(agreed, "hospital-1", coordinator="", budget_epsilon=None, budget_delta=1e-4)
    assert (entry.event, entry.epsilon, entry.plan) == ("none", None, agreed.sha256)


def test_an_opening_names_its_key() -> None:
    assert opened().key == KEY.public


def test_the_first_row_points_nowhere() -> None:
    assert NO_ROW == "0" * 64
    assert row(opened(), number=1, previous=NO_ROW).to_values()["previous"] == "0" * 64


def test_rows_need_no_accountant_and_no_tensors() -> None:
    heavy = "{'torch', 'dp_accounting', 'scipy', 'sqlite3', 'opacus', 'transformers', 'flwr'}"
    code = f"import sys, fedslm.privacy.ledger; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout.replace("'", '"')) == []
