"""An exported ledger counts only as its hospital signed it; receipts and accountants find what it leaves out."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedslm.crypto.identity import PUBLIC_BYTES, SIGNATURE_BYTES
from fedslm.encoding import canonical_bytes
from fedslm.errors import LedgerError, SignatureError
from fedslm.governance.receipt import Head, Receipt, sign_head
from fedslm.privacy import ledger as door
from fedslm.privacy.accounting import epsilon_spent
from fedslm.privacy.ledger import (
    Closed,
    Data,
    Export,
    Forfeited,
    Ledger,
    Row,
    check_receipts,
    recompute,
)
from tests.privacy.ledgers import (
    KEY,
    MALLORY,
    TIME,
    booked,
    closed,
    ledger_of,
    opened,
    plan,
    reserved,
    signed,
    unbounded,
)

DATA = Data(fingerprint="3c" * 32)
PUBLIC = KEY.public
LEDGER = ledger_of(reserved(1), booked(1, 1), booked(1, 3), closed(1, 2, 1.5), DATA)
EXPORT = signed(LEDGER)
BYTES = EXPORT.to_bytes()
SMALL = signed(ledger_of(reserved(1), booked(1, 1)))
SMALL_BYTES = SMALL.to_bytes()
SMALL_ROWS = range(SMALL_BYTES.index(b'"signatures"'))  # sorted names: rows, signatures, version


def resigned(rows: tuple[Row, ...], **changes: Any) -> Export:
    """An export of these rows as somebody would make it who has the key, or another (`key=`)."""
    return signed(Ledger.replay(rows), **changes)


def edited(**changes: Any) -> bytes:
    """The export with a part replaced, or taken out (value `...`), canonical."""
    document = json.loads(BYTES) | changes
    return canonical_bytes({name: value for name, value in document.items() if value is not ...})


def is_found(data: bytes) -> bool:
    """Whether an altered export is refused, with no error but these two."""
    try:
        Export.from_bytes(data).verify(PUBLIC)
    except (LedgerError, SignatureError):
        return True
    return False


def flipped(data: bytes, place: int, bit: int) -> bytes:
    altered = bytearray(data)
    altered[place] ^= 1 << bit
    return bytes(altered)


# --- an export that is right --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [PUBLIC, None], ids=["known key", "its own key"])
def test_an_export_verifies(key: Any) -> None:
    ledger = Export.from_bytes(BYTES).verify(key)
    assert Export.from_bytes(BYTES) == EXPORT
    assert (ledger.head, ledger.rows, ledger.epsilon) == (LEDGER.head, LEDGER.rows, 1.5)


def test_more_rows_may_be_signed_than_have_to_be() -> None:
    assert signed(LEDGER, rows=range(1, 7)).verify(PUBLIC).head == LEDGER.head


@pytest.mark.parametrize(
    "entries",
    [(), (unbounded(1), booked(1, 1)), (reserved(1), DATA)],
    ids=["opened only", "without privacy", "no session"],
)
def test_any_ledger_verifies(entries: Any) -> None:
    export = signed(ledger_of(*entries))
    assert Export.from_bytes(export.to_bytes()).verify(PUBLIC).rows == export.rows


def test_any_hospitals_ledger_verifies() -> None:
    export = signed(ledger_of(reserved(1), booked(1, 1), opening=opened(hospital="St. Anna")))
    assert export.verify(PUBLIC).opened.hospital == "St. Anna"
    with pytest.raises(LedgerError, match=r"ask 'St\. Anna'"):
        export.verify(MALLORY.public)


def test_rows_lost_and_forfeited_verify() -> None:
    ledger = ledger_of(reserved(1))
    lost = Forfeited(ledger=ledger.id, row=40, sha256="7f" * 32, epsilon=6.0, delta=0.0)
    for entry in (lost, DATA):
        ledger.add(ledger.check(entry, TIME))
    assert Export.from_bytes(signed(ledger).to_bytes()).verify(PUBLIC).head.row == 42


def test_a_clock_that_goes_back_verifies_and_shows() -> None:
    ledger = ledger_of()
    ledger.add(ledger.check(DATA, "2020-01-01T00:00:00Z"))
    assert Export.from_bytes(signed(ledger).to_bytes()).verify(PUBLIC).clock_went_back == (2,)


# --- signatures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [3, 4, 6])
def test_bookings_and_the_last_row_have_to_be_signed(missing: int) -> None:
    export = signed(LEDGER, rows=[row for row in (3, 4, 6) if row != missing])
    with pytest.raises(LedgerError, match=f"Row {missing} has to be signed"):
        export.verify(PUBLIC)


def test_signatures_cannot_change_places() -> None:
    first, second, last = EXPORT.signatures
    swapped = Export(rows=EXPORT.rows, signatures=((3, second[1]), (4, first[1]), last))
    with pytest.raises(SignatureError):
        swapped.verify(PUBLIC)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_every_signature_is_checked(position: int) -> None:
    signatures = list(EXPORT.signatures)
    number = signatures[position][0]
    signatures[position] = (number, sign_head(MALLORY, LEDGER.head_of(number), hospital="hospital-0"))
    with pytest.raises(SignatureError):
        Export(rows=EXPORT.rows, signatures=tuple(signatures)).verify(PUBLIC)


def test_a_needless_signature_has_to_be_right_as_well() -> None:
    wrong = (1, sign_head(MALLORY, LEDGER.head_of(1), hospital="hospital-0"))
    with pytest.raises(SignatureError):
        Export(rows=EXPORT.rows, signatures=(wrong, *EXPORT.signatures)).verify(PUBLIC)


def test_a_signature_on_no_row_is_refused() -> None:
    stray = (7, EXPORT.signatures[-1][1])
    with pytest.raises(LedgerError, match="has no row 7"):
        Export(rows=EXPORT.rows, signatures=(*EXPORT.signatures, stray)).verify(PUBLIC)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 1, 2), (2, 1, 0)], ids=str)
def test_signatures_stand_in_order_once_each(order: tuple[int, ...]) -> None:
    with pytest.raises(LedgerError, match="ascending order"):
        Export(rows=EXPORT.rows, signatures=tuple(EXPORT.signatures[position] for position in order))


def test_a_head_signed_for_another_hospital_does_not_count() -> None:
    signatures = tuple((row, sign_head(KEY, LEDGER.head_of(row), hospital="hospital-1")) for row in (3, 4, 6))
    with pytest.raises(SignatureError):
        Export(rows=EXPORT.rows, signatures=signatures).verify(PUBLIC)


def test_a_receipt_is_no_signature_on_a_head() -> None:
    head = LEDGER.head_of(3)
    receipt = Receipt.sign(KEY, hospital="hospital-0", head=head, run=plan(1), session=1)
    with pytest.raises(SignatureError):
        Export(rows=EXPORT.rows, signatures=((3, receipt.signature), *EXPORT.signatures[1:])).verify(PUBLIC)


def test_another_keys_ledger_is_refused_by_its_fingerprint() -> None:
    with pytest.raises(
        LedgerError, match=f"of the key {KEY.public.fingerprint}, expected is {MALLORY.public.fingerprint}"
    ):
        EXPORT.verify(MALLORY.public)


def test_a_ledger_signed_afresh_by_another_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        resigned(EXPORT.rows, key=MALLORY).verify(PUBLIC)
    with pytest.raises(SignatureError):
        resigned(EXPORT.rows, key=MALLORY).verify(None)


def test_a_ledger_made_up_by_another_key_verifies_only_as_that() -> None:
    forged = signed(ledger_of(opening=opened(identity=MALLORY.public.to_bytes().hex())), key=MALLORY)
    assert forged.verify(None).opened.key == MALLORY.public
    with pytest.raises(LedgerError, match="expected is"):
        forged.verify(PUBLIC)


def test_an_empty_export_is_refused() -> None:
    export = Export(rows=(), signatures=())
    assert Export.from_bytes(export.to_bytes()) == export
    with pytest.raises(LedgerError, match="ledger is empty"):
        export.verify(PUBLIC)


# --- rows that were tampered with ---------------------------------------------------------------------------------

Tamper = Callable[[tuple[Row, ...]], tuple[Row, ...]]
TAMPERS: dict[str, Tamper] = {
    "truncated": lambda rows: rows[:-1],
    "truncated to what was signed": lambda rows: rows[:4],
    "opening only": lambda rows: rows[:1],
    "beginning cut off": lambda rows: rows[1:],
    "row deleted": lambda rows: rows[:2] + rows[3:],
    "row repeated": lambda rows: (*rows[:3], rows[2], *rows[3:]),
    "rows reordered": lambda rows: (*rows[:2], rows[3], rows[2], *rows[4:]),
    "last row altered": lambda rows: (*rows[:-1], dataclasses.replace(rows[-1], time="2026-11-22T23:11:19Z")),
    "opening altered": lambda rows: (dataclasses.replace(rows[0], entry=opened(population="b")), *rows[1:]),
    "row appended": lambda rows: (*rows, Ledger.replay(rows).check(DATA, TIME)),
    "row inserted": lambda rows: (*rows[:1], Ledger.replay(rows[:1]).check(DATA, TIME), *rows[1:]),
    "another population's": lambda rows: (
        ledger_of(*(row.entry for row in rows[1:]), opening=opened(population="b")).rows
    ),
    "session left out": lambda rows: ledger_of(reserved(1), booked(1, 3), closed(1, 1, 1.0), DATA, DATA).rows,
    "price lowered": lambda rows: ledger_of(*(cheaper(row) for row in rows[1:])).rows,
}


def cheaper(row: Row) -> Any:
    return closed(1, 2, 0.5) if isinstance(row.entry, Closed) else row.entry


@pytest.mark.parametrize("tamper", TAMPERS)
def test_tampering_is_found(tamper: str) -> None:
    rows = TAMPERS[tamper](EXPORT.rows)
    assert rows != EXPORT.rows
    assert is_found(Export(rows=rows, signatures=EXPORT.signatures).to_bytes())


def test_tampering_where_signatures_are_dropped_with_the_rows() -> None:
    # Everything up to a signed head is a ledger: that the rest is missing, a receipt or a later head has to say.
    shorter = Export(rows=EXPORT.rows[:4], signatures=EXPORT.signatures[:2])
    receipt = Receipt.sign(KEY, hospital="hospital-0", head=LEDGER.head_of(4), run=plan(1), session=3)
    assert check_receipts(shorter.verify(PUBLIC), [receipt]) == (receipt,)
    shortest = Export(rows=EXPORT.rows[:3], signatures=EXPORT.signatures[:1]).verify(PUBLIC)
    with pytest.raises(LedgerError, match="names row 4, which is not in this ledger"):
        check_receipts(shortest, [receipt])


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_the_rows_is_found(bit: int) -> None:
    assert [place for place in SMALL_ROWS if not is_found(flipped(SMALL_BYTES, place, bit))] == []


def test_flipped_bits_of_a_signature_are_found() -> None:
    draw = random.Random(20261122)
    assert len(SMALL.signatures) == 1
    ((number, signature),) = SMALL.signatures
    for place in draw.sample(range(8 * SIGNATURE_BYTES), 1500):
        altered = flipped(signature, place // 8, place % 8)
        with pytest.raises(SignatureError):
            Export(rows=SMALL.rows, signatures=((number, altered),)).verify(PUBLIC)


def test_flipped_bits_of_the_written_signatures_are_found() -> None:
    draw = random.Random(20261123)
    behind = 8 * (len(SMALL_BYTES) - len(SMALL_ROWS))
    places = [*draw.sample(range(behind), 1500), *range(8 * 20), *range(behind - 8 * 20, behind)]
    missed = [place for place in places if not is_found(flipped(SMALL_BYTES, len(SMALL_ROWS) + place // 8, place % 8))]
    assert missed == []


def test_flipped_bits_of_a_key_that_nothing_is_chained_to_are_found() -> None:
    export, draw = signed(ledger_of()), random.Random(20261124)
    data = export.to_bytes()
    start = data.index(b'"identity":"') + len(b'"identity":"')
    for place in draw.sample(range(8 * 2 * PUBLIC_BYTES), 1500):
        altered = flipped(data, start + place // 8, place % 8)
        with pytest.raises((LedgerError, SignatureError)):
            Export.from_bytes(altered).verify(None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_flipped_bit_of_an_export_is_found() -> None:
    places = range(8 * len(SMALL_BYTES))
    assert [place for place in places if not is_found(flipped(SMALL_BYTES, place // 8, place % 8))] == []


@given(st.data())
def test_damaged_bytes_are_found(data: Any) -> None:
    start = data.draw(st.integers(0, len(SMALL_BYTES) - 1))
    piece = data.draw(st.binary(max_size=8))
    altered = SMALL_BYTES[:start] + piece + SMALL_BYTES[start + data.draw(st.integers(0, 8)) :]
    assert altered == SMALL_BYTES or is_found(altered)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": ...}, "version None"),
        ({"version": 2}, "version 2; this release reads 1"),
        ({"version": "1"}, "version '1'"),
        ({"version": True}, "canonical"),
        ({"version": 1.0}, "canonical"),
        ({"surprise": 1}, "canonical"),
        ({"rows": ...}, "no list of rows"),
        ({"rows": {}}, "no list of rows"),
        ({"rows": [1]}, "no list of rows"),
        ({"rows": [{}]}, "newer release"),
        ({"signatures": ...}, "no list of signatures"),
        ({"signatures": {}}, "canonical"),
        ({"signatures": [1]}, "no list of signatures"),
        ({"signatures": [[1]]}, "no list of signatures"),
        ({"signatures": [[1, "00", 1]]}, "no list of signatures"),
        ({"signatures": [[True, "00"]]}, "no list of signatures"),
        ({"signatures": [["1", "00"]]}, "no list of signatures"),
        ({"signatures": [[1.0, "00"]]}, "no list of signatures"),
        ({"signatures": [[1, 0]]}, "no list of signatures"),
        ({"signatures": [[1, "zz"]]}, "no list of signatures"),
        ({"signatures": [[1, "0A"]]}, "canonical"),
        ({"signatures": [[1, "00 "]]}, "canonical"),
        ({"signatures": [[2, "00"], [1, "00"]]}, "ascending"),
        ({"signatures": "12"}, "no list of signatures"),
    ],
    ids=str,
)
def test_only_an_export_is_read_as_one(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Export.from_bytes(edited(**changes))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", BYTES + b"\n", BYTES[:-1], b"[" * 100_000])
def test_what_is_no_canonical_object_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError, match="exported ledger"):
        Export.from_bytes(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"event":"dp-sgd/1"', '"event":"dp-sgd/2"'), ('"kind":"booked"', '"kind":"pardoned"')],
)
def test_what_a_newer_release_wrote_is_said_to_be_that(old: str, new: str) -> None:
    with pytest.raises(LedgerError, match="newer release"):
        Export.from_bytes(BYTES.decode().replace(old, new).encode())


@pytest.mark.parametrize(("old", "new"), [('"epsilon":2.0', '"epsilon":2'), ('"session":1', '"session":1.0')])
def test_a_number_of_another_type_is_refused(old: str, new: str) -> None:
    with pytest.raises(LedgerError, match="refused"):
        Export.from_bytes(BYTES.decode().replace(old, new).encode())


def test_the_encoding_is_pinned() -> None:
    document = {"version": 1, "rows": [row.to_values() for row in LEDGER.rows]}
    signatures = [[number, signature.hex()] for number, signature in EXPORT.signatures]
    assert canonical_bytes(document | {"signatures": signatures}) == BYTES


def test_the_door_names_what_it_says() -> None:
    assert all(hasattr(door, name) for name in door.__all__)


# --- receipts -----------------------------------------------------------------------------------------------------


def receipt(row: int, session: int, **changes: Any) -> Receipt:
    fields: dict[str, Any] = {"hospital": "hospital-0", "head": LEDGER.head_of(row), "run": plan(1), "session": session}
    return Receipt.sign(changes.pop("key", KEY), **(fields | changes))


def test_receipts_of_booked_sessions_are_right() -> None:
    receipts = (receipt(3, 1), receipt(4, 3))
    assert check_receipts(LEDGER, receipts) == receipts
    assert check_receipts(LEDGER, ()) == ()


def test_receipts_of_others_are_skipped() -> None:
    other = ledger_of(reserved(1), booked(1, 1), opening=opened(population="b"))
    others = [
        receipt(3, 1, hospital="hospital-1"),
        receipt(3, 1, head=other.head),
        receipt(3, 1, key=MALLORY, hospital="hospital-1"),
    ]
    assert [each.head.row for each in check_receipts(LEDGER, [*others, receipt(4, 3)])] == [4]


@pytest.mark.parametrize(
    ("row", "session", "changes", "message"),
    [
        (3, 2, {}, "for session 2 of plan 000000000000 names row 3, which books something else"),
        (3, 1, {"run": plan(2)}, "names row 3, which books something else"),
        (4, 1, {}, "for session 1 .* names row 4, which books something else"),
        (2, 1, {}, "names row 2, which books something else"),
        (5, 2, {}, "names row 5, which books something else"),
    ],
)
def test_a_receipt_names_the_row_of_its_session(row: int, session: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        check_receipts(LEDGER, [receipt(row, session, **changes)])


@pytest.mark.parametrize("changes", [{"row": 7}, {"sha256": "0" * 64}], ids=str)
def test_a_receipt_for_a_row_that_is_missing_is_named(changes: dict[str, Any]) -> None:
    head = dataclasses.replace(LEDGER.head_of(3), **changes)
    with pytest.raises(
        LedgerError, match=f"'hospital-0' for session 1 .* names row {head.row}, which is not in this ledger"
    ):
        check_receipts(LEDGER, [receipt(4, 3), receipt(3, 1, head=head)])


def test_a_receipt_that_the_hospital_did_not_sign_is_refused() -> None:
    with pytest.raises(SignatureError):
        check_receipts(LEDGER, [receipt(4, 3), receipt(3, 1, key=MALLORY)])
    with pytest.raises(SignatureError):  # before it can accuse the hospital of anything
        check_receipts(LEDGER, [receipt(3, 1, key=MALLORY, head=dataclasses.replace(LEDGER.head, row=99))])


def test_a_receipt_for_rows_that_were_forfeited_is_settled() -> None:
    ledger = Ledger.replay(LEDGER.rows)
    lost = Head(ledger=ledger.id, row=9, sha256="7f" * 32)
    with pytest.raises(LedgerError, match="names row 9"):
        check_receipts(ledger, [receipt(3, 1, head=lost)])
    entry = Forfeited(ledger=ledger.id, row=9, sha256="7f" * 32, epsilon=6.5, delta=0.0)
    ledger.add(ledger.check(entry, TIME))
    assert len(check_receipts(ledger, [receipt(3, 1, head=lost), receipt(4, 3)])) == 2
    with pytest.raises(LedgerError, match="names row 11"):
        check_receipts(ledger, [receipt(3, 1, head=dataclasses.replace(lost, row=11))])


# --- epsilon again ------------------------------------------------------------------------------------------------


@functools.cache
def priced(sessions: int, **changes: Any) -> float:
    """What that many sessions of a plan cost."""
    entry = reserved(**changes)
    return epsilon_spent(entry.mechanism(), sessions=sessions, delta=entry.delta)


def honest(number: int, *, excess: float = 0.0, **changes: Any) -> Any:
    """Plan `number`, reserved at what it costs and so much more."""
    epsilon = priced(3, **changes) + excess
    return reserved(number, **({"budget_epsilon": None, "epsilon": epsilon} | changes))


def scored(sigma: float, **changes: Any) -> dict[str, Any]:
    return {"event": "dp-sgd+scores/1", "scores_noise_multiplier": sigma, **changes}


def test_scores_are_priced_again_and_the_larger_cost_counts() -> None:
    trained = priced(3)
    dear = priced(3, **scored(1.0))
    assert dear > trained == priced(3, **scored(50.0))
    ledger = ledger_of(honest(1, **scored(1.0)), honest(2, **scored(50.0)))
    one, two = recompute(ledger)
    assert (one.pld, two.pld) == (dear, trained)
    assert one.pld < one.rdp
    with pytest.raises(LedgerError, match="but they cost"):
        recompute(ledger_of(reserved(1, budget_epsilon=None, epsilon=trained, **scored(1.0))))


def test_plans_are_priced_again() -> None:
    one, two = honest(1, excess=0.1), honest(2, noise_multiplier=3.0)
    ledger = ledger_of(
        one, booked(1, 1), two, booked(2, 1), booked(2, 2), closed(2, 2, priced(2, noise_multiplier=3.0))
    )
    first, second = recompute(ledger)
    assert (first.plan, first.sessions, first.epsilon) == (plan(1), 3, one.epsilon)
    assert first.pld == pytest.approx(one.epsilon - 0.1)
    assert (second.plan, second.sessions, second.epsilon) == (plan(2), 2, second.pld)
    assert second.pld == priced(2, noise_multiplier=3.0) < two.epsilon
    assert first.pld < first.rdp < 2 * first.pld
    assert second.pld < second.rdp < 2 * second.pld


def test_a_plan_reserved_for_too_little_is_found() -> None:
    with pytest.raises(LedgerError, match=f"charges plan {plan(1)[:12]} epsilon .* for 3 sessions, but they cost"):
        recompute(ledger_of(honest(1, excess=-1e-5)))


def test_a_plan_closed_for_too_little_is_found() -> None:
    price = priced(2)
    for epsilon, is_right in ((price, True), (price - 1e-7, True), (price - 1e-5, False)):
        ledger = ledger_of(honest(1), booked(1, 1), booked(1, 2), closed(1, 2, epsilon))
        if is_right:
            assert recompute(ledger)[0].epsilon == epsilon
        else:
            with pytest.raises(LedgerError, match="for 2 sessions"):
                recompute(ledger)


def test_a_closed_plan_was_reserved_at_its_price_as_well() -> None:
    with pytest.raises(LedgerError, match="for 3 sessions"):
        recompute(ledger_of(honest(1, excess=-1e-5), booked(1, 1), closed(1, 1, priced(1))))


def test_a_plan_that_never_started_costs_nothing() -> None:
    (found,) = recompute(ledger_of(honest(1), closed(1, 0, 0.0)))
    assert (found.sessions, found.epsilon, found.pld, found.rdp) == (0, 0.0, 0.0, 0.0)


def test_a_plan_without_privacy_is_unbounded_or_never_started() -> None:
    ledger = ledger_of(unbounded(1), unbounded(2), booked(2, 1), closed(2, 1, None), unbounded(3), closed(3, 0, 0.0))
    found = recompute(ledger)
    assert [(each.epsilon, each.pld, each.rdp) for each in found] == [(math.inf,) * 3, (math.inf,) * 3, (0.0,) * 3]
    assert [each.sessions for each in found] == [3, 1, 0]


def test_an_empty_ledger_costs_nothing() -> None:
    assert recompute(ledger_of()) == ()


def test_plans_of_one_kind_are_priced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, calls = honest(1), []

    def counted(*args: Any, **settings: Any) -> float:
        calls.append(args)
        return epsilon_spent(*args, **settings)

    monkeypatch.setattr("fedslm.privacy.accounting.epsilon_spent", counted)
    same = [dataclasses.replace(entry, plan=plan(number)) for number in range(1, 6)]
    assert len(recompute(ledger_of(*same))) == 5
    assert len(calls) == 1
    recompute(ledger_of(*same, dataclasses.replace(entry, plan=plan(6), delta=2e-6)))
    assert len(calls) == 3


# --- speed --------------------------------------------------------------------------------------------------------


def test_a_thousand_signed_sessions_verify_in_two_seconds() -> None:
    sessions = [booked(1, session) for session in range(1, 1001)]
    export = signed(ledger_of(reserved(1, max_sessions=1000), *sessions))
    assert len(export.signatures) == 1000
    data, started = export.to_bytes(), time.process_time()
    assert len(Export.from_bytes(data).verify(PUBLIC).plans[plan(1)].sessions) == 1000
    assert time.process_time() - started < 2.0
