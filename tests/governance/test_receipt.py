"""A head is 72 bytes; a receipt counts only as it was signed, for one hospital, ledger, row, run and session."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedslm.crypto.identity import SIGNATURE_BYTES, Identity
from fedslm.encoding import canonical_bytes
from fedslm.errors import LedgerError, SignatureError
from fedslm.governance.receipt import HEAD_BYTES, MAX_ROW, NO_HEAD, Head, Receipt, sign_head, verify_head

KEY = Identity.from_seeds(b"h" * 32, b"h" * 32)
MALLORY = Identity.from_seeds(b"m" * 32, b"m" * 32)
HEAD = Head(ledger="1a" * 32, row=259, sha256="2b" * 32)
RECEIPT = Receipt.sign(KEY, hospital="hospital-0", head=HEAD, run="3c" * 32, session=7)
DATA = RECEIPT.to_bytes()
heads = st.builds(
    Head,
    ledger=st.binary(min_size=32, max_size=32).map(bytes.hex),
    row=st.integers(1, MAX_ROW),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


def edited(path: str, value: Any) -> bytes:
    """The receipt with one value set ("head.row"), or taken out (value `...`), canonical."""
    document = json.loads(DATA)
    *parents, last = path.split(".")
    part = document[parents[0]] if parents else document
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return canonical_bytes(document)


# --- heads --------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_head_are_pinned() -> None:
    assert HEAD.to_bytes() == b"\x1a" * 32 + b"\0\0\0\0\0\0\x01\x03" + b"\x2b" * 32
    assert HEAD_BYTES == len(HEAD.to_bytes()) == 72
    assert bytes(72) == NO_HEAD


@given(heads)
def test_a_head_reads_back(head: Head) -> None:
    assert Head.from_bytes(head.to_bytes()) == head


@pytest.mark.parametrize("length", [0, 71, 73])
def test_a_head_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(LedgerError, match=f"has 72 bytes, found {length}"):
        Head.from_bytes(b"\x01" * length)


@pytest.mark.parametrize("row", [0, MAX_ROW + 1, 2**64 - 1])
def test_a_head_of_an_impossible_row_is_refused(row: int) -> None:
    with pytest.raises(LedgerError, match=f"names row {row}"):
        Head.from_bytes(bytes(32) + row.to_bytes(8, "big") + bytes(32))


def test_no_head_is_no_head() -> None:
    with pytest.raises(LedgerError, match="row 0"):
        Head.from_bytes(NO_HEAD)


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": "1A" * 32},
        {"ledger": "1a" * 31},
        {"sha256": "g" * 64},
        {"row": 0},
        {"row": MAX_ROW + 1},
        {"row": True},
    ],
    ids=str,
)
def test_an_impossible_head_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        dataclasses.replace(HEAD, **changes)


def test_a_signed_head_verifies_as_it_was_signed_only() -> None:
    signature = sign_head(KEY, HEAD, hospital="hospital-0")
    verify_head(KEY.public, HEAD, signature, hospital="hospital-0")
    other = {name: dataclasses.replace(HEAD, **{name: value}) for name, value in CHANGED_HEAD.items()}
    for head in other.values():
        with pytest.raises(SignatureError):
            verify_head(KEY.public, head, signature, hospital="hospital-0")
    with pytest.raises(SignatureError):
        verify_head(KEY.public, HEAD, signature, hospital="hospital-1")
    with pytest.raises(SignatureError):
        verify_head(MALLORY.public, HEAD, signature, hospital="hospital-0")


CHANGED_HEAD: dict[str, Any] = {"ledger": "1b" * 32, "row": 260, "sha256": "2c" * 32}


def test_what_is_signed_is_pinned() -> None:
    # Another purpose, scope or body would make every signature of an older release void.
    ledger, run = b"\x1a" * 32, b"\x3c" * 32
    signature = sign_head(KEY, HEAD, hospital="hospital-0")
    KEY.public.verify("ledger", HEAD.to_bytes(), signature, signer="hospital-0", scope=ledger)
    body = b"\0\0\0\x48" + HEAD.to_bytes() + b"\0\0\0\x20" + run + b"\0\0\0\x04" + b"\0\0\0\x07"
    KEY.public.verify("receipt", body, RECEIPT.signature, signer="hospital-0", scope=ledger)


# --- receipts -----------------------------------------------------------------------------------------------------


def test_a_receipt_verifies_and_reads_back() -> None:
    RECEIPT.verify(KEY.public)
    assert Receipt.from_bytes(DATA) == RECEIPT


@given(heads, st.binary(min_size=32, max_size=32), st.integers(1, 2**32 - 1))
def test_any_receipt_reads_back(head: Head, run: bytes, session: int) -> None:
    receipt = Receipt(hospital="h 1", head=head, run=run.hex(), session=session, signature=bytes(SIGNATURE_BYTES))
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt


def test_the_encoding_is_pinned() -> None:
    receipt = dataclasses.replace(RECEIPT, signature=bytes(SIGNATURE_BYTES))
    head = f'{{"ledger":"{"1a" * 32}","row":259,"sha256":"{"2b" * 32}"}}'
    rest = f'"run":"{"3c" * 32}","session":7,"signature":"{"00" * SIGNATURE_BYTES}","version":1'
    assert receipt.to_bytes().decode() == f'{{"head":{head},"hospital":"hospital-0",{rest}}}'


@pytest.mark.parametrize(
    "changes",
    [
        {"hospital": "hospital-1"},
        {"run": "3d" * 32},
        {"session": 8},
        *({"head": dataclasses.replace(HEAD, **{name: value})} for name, value in CHANGED_HEAD.items()),
    ],
    ids=str,
)
def test_a_receipt_for_anything_else_does_not_verify(changes: dict[str, Any]) -> None:
    with pytest.raises(SignatureError):
        dataclasses.replace(RECEIPT, **changes).verify(KEY.public)


def test_a_receipt_of_another_key_does_not_verify() -> None:
    with pytest.raises(SignatureError):
        RECEIPT.verify(MALLORY.public)
    with pytest.raises(SignatureError):
        Receipt.sign(MALLORY, hospital="hospital-0", head=HEAD, run="3c" * 32, session=7).verify(KEY.public)


def test_a_head_signature_is_no_receipt() -> None:
    signature = sign_head(KEY, HEAD, hospital="hospital-0")
    with pytest.raises(SignatureError):
        dataclasses.replace(RECEIPT, signature=signature).verify(KEY.public)
    with pytest.raises(SignatureError):
        verify_head(KEY.public, HEAD, RECEIPT.signature, hospital="hospital-0")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("version", ..., "version None"),
        ("version", 2, "version 2"),
        ("version", True, "canonical"),
        ("version", 1.0, "canonical"),
        ("surprise", 1, "surprise"),
        ("session", ..., "session is missing"),
        ("session", 0, "session=0"),
        ("session", 2**32, "session="),
        ("session", True, "session=True"),
        ("session", "7", "session='7'"),
        ("hospital", "", "hospital=''"),
        ("hospital", "a\n", "hospital"),
        ("run", "3C" * 32, "run="),
        ("run", "3c" * 31, "run="),
        ("head", None, "head=None"),
        ("head", HEAD.to_bytes().hex(), "head="),
        ("head.row", 0, "head.row=0"),
        ("head.row", MAX_ROW + 1, "head.row="),
        ("head.row", "259", "head.row="),
        ("head.ledger", ..., "head.ledger is missing"),
        ("head.sha256", "", "head.sha256="),
        ("head.surprise", 1, "head.surprise"),
        ("signature", ..., "signature is missing"),
        ("signature", 5, "signature"),
        ("signature", "", "signature=''"),
        ("signature", "zz" * SIGNATURE_BYTES, "signature"),
        ("signature", "00" * (SIGNATURE_BYTES + 1), "signature of 3373 bytes"),
        ("signature", RECEIPT.signature.hex().upper(), "canonical"),
        ("signature", " " + RECEIPT.signature.hex(), "canonical"),
    ],
)
def test_only_a_receipt_is_read_as_one(path: str, value: Any, named: str) -> None:
    with pytest.raises(LedgerError, match=r"^The receipt is refused: .*" + named):
        Receipt.from_bytes(edited(path, value))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", DATA + b"\n", b" " + DATA, DATA[:-1], b"[" * 100_000])
def test_what_is_no_canonical_object_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError, match="The receipt is refused"):
        Receipt.from_bytes(data)


def test_every_flipped_bit_outside_the_signature_is_found() -> None:
    start = DATA.index(RECEIPT.signature.hex().encode())
    places = [n for n in range(len(DATA)) if not start <= n < start + 2 * SIGNATURE_BYTES]
    assert sum(not is_found(place, bit) for place in places for bit in range(8)) == 0


def test_flipped_bits_of_the_signature_are_found() -> None:
    start, draw = DATA.index(RECEIPT.signature.hex().encode()), random.Random(4)
    flips = [(start + draw.randrange(2 * SIGNATURE_BYTES), draw.randrange(8)) for _ in range(1500)]
    assert sum(not is_found(place, bit) for place, bit in flips) == 0


def is_found(place: int, bit: int) -> bool:
    data = bytearray(DATA)
    data[place] ^= 1 << bit
    try:
        Receipt.from_bytes(bytes(data)).verify(KEY.public)
    except (LedgerError, SignatureError):
        return True
    return False
