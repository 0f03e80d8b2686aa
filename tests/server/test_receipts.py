"""A receipt is its hospital's word for one session of one run, and is on the disk before anything rests on it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedslm.errors import LedgerError, RunError
from fedslm.governance.receipt import Head, Receipt
from fedslm.secagg.messages import Advert
from server.receipts import ReceiptFile, check_receipt
from tests.builders import masked_plan
from tests.masked import MaskedHospital, ToyLedger, masked_hospitals
from tests.server.test_checkpoints import full_disk

PLAN = masked_plan()
SESSION = 3


def hospitals() -> list[MaskedHospital]:
    return list(masked_hospitals(PLAN, lambda index, number, trained: trained).values())


def check(data: bytes, advert: Advert, hospital: MaskedHospital) -> Receipt:
    return check_receipt(data, advert=advert, run=PLAN.sha256, session=SESSION, key=hospital.identity.public)


def test_a_hospitals_own_receipt_is_taken() -> None:
    one = hospitals()[0]
    advert = one.new_advert()
    receipt = one.book(SESSION)
    assert check(receipt.to_bytes(), advert, one) == receipt
    one.ledger.add("another run's session, between the advert and the booking")
    assert check(one.book(SESSION).to_bytes(), advert, one).head.row == 4


def signed(hospital: MaskedHospital, head: Head, *, session: int = SESSION, run: str = PLAN.sha256) -> bytes:
    return Receipt.sign(hospital.identity, hospital=hospital.name, head=head, run=run, session=session).to_bytes()


FALSE: dict[str, Callable[[MaskedHospital, MaskedHospital], bytes]] = {
    "absent": lambda one, other: b"",
    "rubbish": lambda one, other: b"[]",
    "cut": lambda one, other: one.book(SESSION).to_bytes()[:-1],
    "another spelling": lambda one, other: one.book(SESSION).to_bytes() + b"\n",
    "of the session before": lambda one, other: signed(one, one.ledger.add("row"), session=SESSION - 1),
    "of a later session": lambda one, other: signed(one, one.ledger.add("row"), session=SESSION + 1),
    "of another run": lambda one, other: signed(one, one.ledger.add("row"), run="f" * 64),
    "another hospital's": lambda one, other: other.book(SESSION).to_bytes(),
    "in its name by another": lambda one, other: dataclasses.replace(other.book(SESSION), hospital=one.name).to_bytes(),
    "altered": lambda one, other: dataclasses.replace(
        signed_by(one), head=dataclasses.replace(signed_by(one).head, row=9)
    ).to_bytes(),
    "the row of its advert": lambda one, other: signed(one, one.ledger.head),
    "a row before its advert": lambda one, other: signed(one, ToyLedger(one.name, one.ledger.rows[:1]).head),
    "another ledger": lambda one, other: signed(one, ToyLedger("new", ["1" * 64, "2" * 64, "3" * 64, "4" * 64]).head),
}


def signed_by(hospital: MaskedHospital) -> Receipt:
    return hospital.book(SESSION)


@pytest.mark.parametrize("false", FALSE)
def test_any_other_receipt_is_refused_with_one_kind_of_error(false: str) -> None:
    one, other, _ = hospitals()
    one.ledger.add("row")
    advert = one.new_advert()
    with pytest.raises(LedgerError):
        check(FALSE[false](one, other), advert, one)


def test_receipts_are_lines_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    one, other, _ = hospitals()
    receipts = [one.book(1), other.book(1), one.book(2)]
    for receipt in receipts:
        ReceiptFile(tmp_path / "receipts.jsonl").add(receipt)  # as if each came in another process
    lines = (tmp_path / "receipts.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [Receipt.from_bytes(line) for line in lines] == receipts


def test_a_receipt_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    file, one = ReceiptFile(tmp_path / "receipts.jsonl"), hospitals()[0]
    file.add(one.book(1))
    assert synced == [str(tmp_path / "receipts.jsonl"), str(tmp_path)]  # the content, then the name
    file.add(one.book(2))
    assert synced[2:] == [str(tmp_path / "receipts.jsonl")]


@pytest.mark.parametrize("room", [0, 1, 100], ids="{} bytes left".format)
def test_a_full_disk_leaves_the_receipts_before_and_no_half_line(room: int, tmp_path: Path) -> None:
    path, one = tmp_path / "receipts.jsonl", hospitals()[0]
    file = ReceiptFile(path)
    file.add(one.book(1))
    before = path.read_bytes()
    lost = one.book(2)
    with full_disk(len(before) + room), pytest.raises(RunError, match=rf"{one.name} for session 2 .*make room"):
        file.add(lost)
    assert path.read_bytes() == before
    file.add(lost)
    assert path.read_bytes() == before + lost.to_bytes() + b"\n"


@pytest.mark.parametrize("rest", [b"{", b'{"half": "a line', b"x" * 10_000])
def test_what_a_killed_process_left_of_a_line_is_cut_off(rest: bytes, tmp_path: Path) -> None:
    path, one = tmp_path / "receipts.jsonl", hospitals()[0]
    first, second = one.book(1), one.book(2)
    for before in (b"", first.to_bytes() + b"\n"):
        path.write_bytes(before + rest)
        ReceiptFile(path).add(second)
        assert path.read_bytes() == before + second.to_bytes() + b"\n"


def test_a_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        ReceiptFile(tmp_path / "gone" / "receipts.jsonl").add(hospitals()[0].book(1))
