"""The meaning of messages: what they may carry, what a signature in them covers, and that their sets are in order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fedslm.crypto.identity import SIGNATURE_BYTES
from fedslm.errors import DecodeError, SignatureError
from fedslm.secagg.messages import (
    HEAD_BYTES,
    MAX_PROOFS,
    AbortReply,
    Advert,
    ConfirmReply,
    HeadProof,
    Invitation,
    JoinReply,
    MaskedReply,
    ShareList,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
    confirm_body,
)
from tests.secagg.session import advert, identity, name_of, public

SIGNATURE = bytes(SIGNATURE_BYTES)
HASHES = tuple(bytes([number]) * 32 for number in range(9))


def listed(sender: int = 2, n: int = 4) -> ShareList:
    return ShareList.sign(
        identity(name_of(sender)),
        signer=name_of(sender),
        context=HASHES[0],
        sender=sender,
        hashes=HASHES[: n - 1],
        commitments=HASHES[: n - sender + 1],
    )


def test_what_a_hospital_sends_has_no_room_for_counts_or_weights() -> None:
    # A regression test: frameworks have sent the number of examples, or the weight, in the clear beside the mask.
    sent = {
        Advert: {"member", "serial", "sealing_key", "ledger_head", "signature"},
        JoinReply: {"advert", "proofs"},
        HeadProof: {"scope", "advert"},
        SharesReply: {"context", "shares", "ciphertexts", "next_advert", "receipt"},
        ShareList: {"sender", "hashes", "commitments", "signature"},
        MaskedReply: {"context", "sender", "vector"},
        ConfirmReply: {"context", "sender", "signature"},
        UnmaskReply: {"context", "sender", "self_shares", "pair_shares"},
        AbortReply: {"session", "member", "signature"},
    }
    for kind, fields in sent.items():
        assert {name for name, _ in kind.LAYOUT.fields} == fields  # type: ignore[attr-defined]
        assert {field.name for field in dataclasses.fields(kind)} == fields


def test_a_list_knows_the_hash_and_the_commitment_of_each() -> None:
    found = listed(sender=2, n=4)
    assert [found.hash_for(receiver) for receiver in (1, 3, 4)] == list(HASHES[:3])
    assert [found.pair_commitment(other) for other in (3, 4)] == list(HASHES[1:3])


@pytest.mark.parametrize("n", [3, 5])
def test_a_list_for_another_number_of_hospitals_is_refused(n: int) -> None:
    listed(n=4).require_shape(4)
    with pytest.raises(DecodeError, match="does not have the length"):
        listed(n=4).require_shape(n)


@pytest.mark.parametrize(
    "change",
    [
        {"hashes": HASHES[:2]},
        {"hashes": HASHES[:4]},
        {"commitments": HASHES[:2]},
        {"commitments": HASHES[:4]},
        {"sender": 1},
        {"sender": 3},
    ],
)
def test_a_list_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match="does not have the length"):
        dataclasses.replace(listed(), **change).require_shape(4)


@pytest.mark.parametrize(("sender", "hashes", "commitments"), [(0, 3, 5), (5, 3, 0), (9, 3, 0)])
def test_a_list_of_nobody_is_refused(sender: int, hashes: int, commitments: int) -> None:
    alien = ShareList(sender=sender, hashes=HASHES[:hashes], commitments=HASHES[:commitments], signature=SIGNATURE)
    with pytest.raises(DecodeError, match=f"point {sender}"):
        alien.require_shape(4)


@pytest.mark.parametrize(
    "change",
    [
        {"sender": 1},
        {"hashes": (*HASHES[:2], HASHES[8])},
        {"hashes": (HASHES[1], HASHES[0], HASHES[2])},
        {"hashes": HASHES[:4], "commitments": HASHES[1:3]},
        {"commitments": (*HASHES[:2], HASHES[8])},
    ],
)
def test_a_list_is_signed_as_a_whole(change: dict[str, Any]) -> None:
    def verify(found: ShareList) -> None:
        public(name_of(2)).verify("shares", found.body, found.signature, signer=name_of(2), scope=HASHES[0])

    verify(listed())
    with pytest.raises(SignatureError):
        verify(dataclasses.replace(listed(), **change))


def test_the_body_of_an_advert_is_what_was_signed() -> None:
    honest = advert(name_of(1))
    bodies = {
        honest.body,
        dataclasses.replace(honest, serial=9).body,
        dataclasses.replace(honest, sealing_key=bytes(1216)).body,
        dataclasses.replace(honest, ledger_head=b"1" * 72).body,
    }
    assert len(bodies) == 4


def test_confirming_other_sets_is_signing_something_else() -> None:
    pairs = [((1, 2, 3), (1, 2)), ((1, 2), (1, 2)), ((1, 2), (3, 1, 2)), ((1, 2, 3), (1, 3)), ((1, 2, 3, 1, 2), ())]
    assert len({confirm_body(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("points", [(1, 1), (2, 1), (1, 3, 2), (1, 2, 2)])
def test_a_confirmation_twice_or_out_of_order_is_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError, match="not in ascending order"):
        UnmaskRequest(context=HASHES[0], confirmations=tuple((point, SIGNATURE) for point in points))


@pytest.mark.parametrize("names", [("b", "a"), ("a", "a"), ("a", "c", "b")])
def test_heads_of_a_hospital_twice_or_out_of_order_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DecodeError, match="not in ascending order of names, or a hospital stands twice"):
        Invitation(known=tuple((name, bytes(HEAD_BYTES)) for name in names), own=b"")


def test_whoever_joins_brings_so_many_proofs_and_not_one_more() -> None:
    assert len(JoinReply(advert=b"advert", proofs=(b"proof",) * MAX_PROOFS).proofs) == MAX_PROOFS
    with pytest.raises(DecodeError, match=r"17 proofs .*at most 16"):
        JoinReply(advert=b"advert", proofs=(b"proof",) * (MAX_PROOFS + 1))
