"""One spelling for one value: everything else is refused with a `DecodeError`, and nothing else is ever raised."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedslm.crypto.identity import SIGNATURE_BYTES
from fedslm.errors import DecodeError
from fedslm.secagg.hospital import Confirmed, Masked, Seat, Shared
from fedslm.secagg.messages import (
    AbortReply,
    AbortRequest,
    Advert,
    ConfirmReply,
    ConfirmRequest,
    HeadProof,
    Invitation,
    JoinReply,
    MaskedReply,
    MaskRequest,
    Opening,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
)
from fedslm.secagg.wire import (
    MAGIC,
    VERSION,
    Blob,
    Codec,
    Document,
    Fixed,
    Many,
    Number,
    Points,
    Reader,
    Text,
    decode,
    encode,
    kind_of,
)

HASH, SIGNATURE = bytes(range(32)), bytes(number % 251 for number in range(SIGNATURE_BYTES))

DOCUMENTS: tuple[Document, ...] = (
    Advert(member="ä" * 3, serial=7, sealing_key=bytes(1216), ledger_head=bytes(range(72)), signature=SIGNATURE),
    Opening(session=1, round=2, attempt=0, adverts=(b"one", b""), aborts=((3, "name", SIGNATURE),)),
    ShareList(sender=2, hashes=(HASH, HASH), commitments=(HASH,), signature=SIGNATURE),
    SharesReply(context=HASH, shares=b"list", ciphertexts=(b"a", b"bc"), next_advert=b"advert", receipt=b"{}"),
    MaskRequest(context=HASH, deliveries=((b"list", b"ciphertext"), (b"", b""))),
    MaskedReply(context=HASH, sender=1, vector=b"12345678"),
    ConfirmRequest(context=HASH, sharers=(1, 2, 255), survivors=(1, 255)),
    ConfirmReply(context=HASH, sender=255, signature=SIGNATURE),
    UnmaskRequest(context=HASH, confirmations=((1, SIGNATURE), (3, SIGNATURE))),
    UnmaskReply(context=HASH, sender=1, self_shares=HASH, pair_shares=b""),
    AbortRequest(session=2**32 - 1),
    AbortReply(session=0, member="name", signature=SIGNATURE),
    Invitation(known=(("a", bytes(range(72))), ("b", bytes(72))), own=b"proof"),
    HeadProof(scope=HASH + HASH, advert=b"advert"),
    JoinReply(advert=b"advert", proofs=(b"one", b"")),
    Seat(context=HASH, point=1, names=("a", "b", "c"), colluders=0, honest=2, ring_bits=32),
    Shared(seat=b"seat", seeds=HASH, own_share=HASH, sealing_key=HASH),
    Masked(seat=b"seat", shares=((1, HASH), (2, HASH))),
    Confirmed(masked=b"masked", survivors=(1, 2)),
)
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)


@every_document
def test_a_document_is_read_back(document: Document) -> None:
    assert decode(type(document), encode(document)) == document
    assert decode(type(document), memoryview(encode(document))) == document
    assert kind_of(encode(document)) == document.LAYOUT.kind


def test_the_numbers_of_the_kinds_are_fixed() -> None:
    assert [document.LAYOUT.kind for document in DOCUMENTS] == [*range(1, 16), *range(101, 105)]


def test_the_bytes_are_fixed_where_no_transcript_fixes_them() -> None:
    opening = Opening(session=1, round=2, attempt=3, adverts=(b"one", b""), aborts=((4, "ab", SIGNATURE),))
    assert encode(opening) == (
        b"FSLM\x02\x02\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\x02\0\0\0\x03one\0\0\0\0\0\x01\0\0\0\x04\x02ab" + SIGNATURE
    )
    assert encode(AbortRequest(session=2**32 - 1)) == b"FSLM\x02\x0b\xff\xff\xff\xff"
    assert encode(AbortReply(session=1, member="ab", signature=SIGNATURE)) == (
        b"FSLM\x02\x0c\0\0\0\x01\x02ab" + SIGNATURE
    )
    head = bytes(range(72))
    invitation = Invitation(known=(("ab", head),), own=b"own")
    assert encode(invitation) == b"FSLM\x02\x0d\0\x01\x02ab" + head + b"\0\0\0\x03own"
    assert encode(HeadProof(scope=HASH + HASH, advert=b"x")) == b"FSLM\x02\x0e" + HASH + HASH + b"\0\0\0\x01x"
    assert encode(JoinReply(advert=b"x", proofs=(b"yz",))) == b"FSLM\x02\x0f\0\0\0\x01x\0\x01\0\0\0\x02yz"


@every_document
def test_a_cut_document_is_refused_wherever_it_was_cut(document: Document) -> None:
    data = encode(document)
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode(type(document), data[:length])


@every_document
def test_bytes_after_a_document_are_refused(document: Document) -> None:
    for tail in (b"\0", b"x", encode(document)):
        with pytest.raises(DecodeError, match=f"{len(tail)} bytes too many"):
            decode(type(document), encode(document) + tail)


@every_document
def test_every_other_kind_version_and_protocol_is_refused(document: Document) -> None:
    data = encode(document)
    for other in DOCUMENTS:
        if type(other) is not type(document):
            with pytest.raises(DecodeError, match="of kind"):
                decode(type(other), data)
    for version in set(range(256)) - {VERSION}:
        with pytest.raises(DecodeError, match=f"version {version};"):
            decode(type(document), data[:4] + bytes([version]) + data[5:])
    with pytest.raises(DecodeError, match="not one of secure aggregation"):
        decode(type(document), b"FSLN" + data[4:])


@every_document
def test_altered_bytes_are_refused_or_are_the_one_spelling_of_something_else(document: Document) -> None:
    data, generator = encode(document), random.Random(0)
    places = set(range(min(len(data), 60))) | {generator.randrange(len(data)) for _ in range(60)}
    for place in sorted(places):
        for bit in range(8):
            altered = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            try:
                found = decode(type(document), altered)
            except DecodeError:
                continue
            assert encode(found) == altered
            assert found != document


@settings(max_examples=300, deadline=None)
@given(document=st.sampled_from(DOCUMENTS), tail=st.binary(max_size=200), has_head=st.booleans())
def test_rubbish_is_refused_with_no_other_error(document: Document, tail: bytes, has_head: bool) -> None:
    data = MAGIC + bytes([VERSION, document.LAYOUT.kind]) + tail if has_head else tail
    with contextlib.suppress(DecodeError):
        assert encode(decode(type(document), data)) == data


@pytest.mark.parametrize("data", [b"", b"FSLM", b"FSLM\x02", b"FSLM\x01\x01", b"XSLM\x02\x01"])
def test_the_kind_of_what_is_no_message_is_not_told(data: bytes) -> None:
    with pytest.raises(DecodeError):
        kind_of(data)


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (Number(1), -1),
        (Number(1), 256),
        (Number(4), 2**32),
        (Fixed(3), b"12"),
        (Fixed(3), b"1234"),
        (Text(), ""),
        (Text(), "x" * 256),
        (Text(), "ä" * 128),
        (Points(), (0,)),
        (Points(), (256,)),
        (Points(), (2, 1)),
        (Points(), (1, 1)),
        (Many(Number(1)), (1,) * 65536),
    ],
)
def test_what_has_no_spelling_is_not_written(codec: Codec, value: object) -> None:
    with pytest.raises(DecodeError):
        codec.write(value)


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (Number(1), 255),
        (Text(), "x" * 255),
        (Points(), (1, 255)),
        (Points(), tuple(range(1, 256))),
        (Many(Number(1)), (1,) * 65535),
        (Many(Number(1)), ()),
    ],
)
def test_the_largest_and_the_smallest_values_are_written_and_read_back(codec: Codec, value: object) -> None:
    reader = Reader(codec.write(value))
    assert codec.read(reader) == value
    reader.finish()


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Text(), b"\0"),
        (Text(), b"\x01\xff"),
        (Text(), b"\x03\xed\xa0\x80"),  # a lone surrogate
        (Text(), b"\x02\xc1\x81"),  # an overlong spelling of "A"
        (Points(), b"\x01\0"),
        (Points(), b"\x02\x02\x01"),
        (Points(), b"\x02\x01\x01"),
        (Points(), b"\x03\x01\x02"),
        (Blob(), b"\xff\xff\xff\xff"),
        (Blob(), b"\0\0\0\x02x"),
        (Many(Number(1)), b"\0\x02\x01"),
    ],
)
def test_another_spelling_is_not_read(codec: Codec, data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.read(Reader(data))


@pytest.mark.parametrize("read", [lambda reader: reader.take(3), lambda reader: reader.number(3)])
def test_a_reader_says_how_much_is_missing(read: Callable[[Reader], object]) -> None:
    with pytest.raises(DecodeError, match="ends 1 bytes early"):
        read(Reader(b"12"))


def test_a_vector_is_read_without_a_copy() -> None:
    data = encode(MaskedReply(context=HASH, sender=1, vector=bytes(10**6)))
    found = decode(MaskedReply, data).vector
    assert isinstance(found, memoryview)
    assert found.obj is data
