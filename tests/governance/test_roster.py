"""A roster has one encoding, one hash and one signer; a plan is signed under one roster, by its coordinator."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.encoding import canonical_bytes
from fedslm.errors import RosterError, SignatureError
from fedslm.governance.roster import Member, Roster, read_roster, sign_plan, sign_roster, verify_plan
from tests.builders import toy_plan


def identity(number: int) -> Identity:
    return Identity.from_seeds(bytes([number]) * 32, bytes([number]) * 32)


ROOT, COORDINATOR, MALLORY = identity(1), identity(2), identity(3)
HOSPITALS = {f"hospital-{number}": identity(10 + number) for number in range(4)}
ROSTER = Roster(
    version=1,
    consortium="toy",
    serial=3,
    root=ROOT.public,
    coordinator=Member(name="coordinator", key=COORDINATOR.public),
    members=tuple(Member(name=name, key=each.public) for name, each in HOSPITALS.items()),
)
SIGNED = sign_roster(ROSTER, ROOT)


def edited(path: str, value: Any, *, root: Identity = ROOT) -> bytes:
    """The document with one value set ("roster.serial"), or taken out (value `...`), canonical and signed afresh."""
    document = json.loads(SIGNED)
    *parents, last = path.split(".")
    part = document
    for parent in parents:
        part = part[int(parent)] if parent.isdigit() else part[parent]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    if parents:  # whoever edits the body also signs it: the refusal is not the signature's
        body = document["roster"]
        signature = root.sign("roster", canonical_bytes(body), signer=str(body.get("consortium")), scope=b"")
        document["signature"] = signature.hex()
    return canonical_bytes(document)


def test_a_roster_reads_back_and_hashes_alike() -> None:
    assert read_roster(SIGNED) == ROSTER
    assert read_roster(sign_roster(ROSTER, ROOT)).sha256 == ROSTER.sha256


def test_the_encoding_is_pinned() -> None:
    # A change here makes every pinned roster unreadable: it needs another ROSTER_VERSION.
    assert ROSTER.sha256 == "1f3bf004388fa24d4e0f043137113fd46bf26f83b93ec28061e26c14a541d51e"


@pytest.mark.parametrize(
    "changes",
    [
        {"consortium": "other"},
        {"serial": 4},
        {"root": MALLORY.public},
        {"coordinator": Member(name="coordinator", key=MALLORY.public)},
        {"coordinator": Member(name="other", key=COORDINATOR.public)},
        {"members": ROSTER.members[:3]},
        {"members": ROSTER.members[::-1]},
        {"revoked": (HOSPITALS["hospital-0"].public.fingerprint,)},
    ],
    ids=str,
)
def test_one_changed_field_changes_the_hash(changes: dict[str, Any]) -> None:
    changed = dataclasses.replace(ROSTER, **changes)
    assert changed.sha256 != ROSTER.sha256
    assert read_roster(sign_roster(changed, MALLORY if "root" in changes else ROOT)) == changed


def test_only_the_named_root_signs() -> None:
    with pytest.raises(RosterError, match="another root"):
        sign_roster(ROSTER, COORDINATOR)


def test_a_roster_signed_by_somebody_else_is_refused() -> None:
    with pytest.raises(RosterError, match="does not verify"):
        read_roster(edited("roster.serial", 4, root=COORDINATOR))


def test_a_signature_for_another_purpose_or_consortium_is_refused() -> None:
    body = ROSTER.to_bytes()
    for signature in (
        ROOT.sign("plan", body, signer="toy", scope=b""),
        ROOT.sign("roster", body, signer="other", scope=b""),
        ROOT.sign("roster", body, signer="toy", scope=b"x"),
    ):
        with pytest.raises(RosterError, match="does not verify"):
            read_roster(canonical_bytes({"roster": json.loads(body), "signature": signature.hex()}))


@given(position=st.integers(0, len(SIGNED) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused(position: int, bit: int) -> None:
    altered = bytearray(SIGNED)
    altered[position] ^= 1 << bit
    with pytest.raises(RosterError):
        read_roster(bytes(altered))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("surprise", 1, "roster and its signature"),
        ("signature", ..., "roster and its signature"),
        ("signature", 5, "roster and its signature"),
        ("roster", [], "roster and its signature"),
        ("signature", "", "bytes in lower-case hex"),
        ("signature", "zz", "not hex"),
        ("signature", json.loads(SIGNED)["signature"].upper(), "lower-case hex"),
        ("signature", json.loads(SIGNED)["signature"][:-2], "bytes in lower-case hex"),
        ("roster.surprise", 1, "surprise"),
        ("roster.serial", ..., "serial"),
        ("roster.revoked", ..., "canonical"),
        ("roster.version", 2, "version 2"),
        ("roster.version", ..., "version None"),
        ("roster.version", True, "version|canonical"),
        ("roster.version", "1", "version"),
        ("roster.serial", 0, "serial"),
        ("roster.serial", "3", "serial"),
        ("roster.serial", True, "serial"),
        ("roster.consortium", "", "consortium"),
        ("roster.consortium", "toy\n", "consortium"),
        ("roster.root", "00", "root"),
        ("roster.root", 5, "root"),
        ("roster.root", "zz", "root"),
        ("roster.root", ROOT.public.to_bytes().hex().upper(), "canonical"),
        ("roster.coordinator", None, "coordinator"),
        ("roster.coordinator.name", "../etc", "name"),
        ("roster.coordinator.name", "hospital-1", "'hospital-1' twice"),
        ("roster.coordinator.key", ROOT.public.to_bytes().hex(), "key .* twice"),
        ("roster.coordinator.key", HOSPITALS["hospital-0"].public.to_bytes().hex(), "key .* twice"),
        ("roster.members", [], "members"),
        ("roster.members", json.loads(SIGNED)["roster"]["members"][:2], "at least 3"),
        ("roster.members.0.name", "hospital-1", "'hospital-1' twice"),
        ("roster.members.0.key", HOSPITALS["hospital-1"].public.to_bytes().hex(), "key .* twice"),
        ("roster.members.0.key", ROOT.public.to_bytes().hex(), "key .* twice"),
        ("roster.members.0.surprise", 1, "surprise"),
        ("roster.members.0.key", ..., "key"),
        ("roster.revoked", ["12345"], "revoked"),
        ("roster.revoked", [MALLORY.public.fingerprint] * 2, "twice"),
        ("roster.revoked", [ROOT.public.fingerprint], "revokes the root"),
    ],
)
def test_a_document_that_is_not_exactly_a_roster_is_refused(path: str, value: Any, named: str) -> None:
    with pytest.raises(RosterError, match=named) as caught:
        read_roster(edited(path, value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", SIGNED + b"\n", SIGNED.replace(b",", b", ", 1), SIGNED[:-1] + b',"signature":"00"}'],
    ids=["empty", "no field", "list", "not UTF-8", "newline", "space", "duplicate key"],
)
def test_another_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(RosterError):
        read_roster(data)


def test_keys_are_found_by_the_members_names_only() -> None:
    assert dict(ROSTER.keys) == {name: each.public for name, each in HOSPITALS.items()}
    assert ROSTER.key_of("hospital-2") == HOSPITALS["hospital-2"].public
    for name in ("coordinator", "elsewhere", ""):
        with pytest.raises(RosterError, match=f"no member '{name}'; it names hospital-0, hospital-1"):
            ROSTER.key_of(name)
    with pytest.raises(TypeError):
        ROSTER.keys["elsewhere"] = MALLORY.public  # type: ignore[index]


def test_a_revoked_key_counts_nowhere() -> None:
    revised = ROSTER.revoke("hospital-1")
    assert revised.serial == ROSTER.serial + 1
    assert sorted(revised.keys) == ["hospital-0", "hospital-2", "hospital-3"]
    with pytest.raises(RosterError, match="'hospital-1' is revoked"):
        revised.key_of("hospital-1")
    with pytest.raises(RosterError, match="'hospital-1' is revoked"):
        revised.revoke("hospital-1")
    again = revised.revoke("hospital-2")
    assert sorted(again.keys) == ["hospital-0", "hospital-3"]
    assert read_roster(sign_roster(again, ROOT)) == again


def test_nobody_unknown_is_revoked() -> None:
    with pytest.raises(RosterError, match="no member 'coordinator'"):
        ROSTER.revoke("coordinator")


def test_a_roster_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROSTER.serial = 4  # type: ignore[misc]


@pytest.mark.parametrize("key", [b"raw bytes", None, ("ed25519", "mldsa")])
def test_a_member_has_a_public_identity(key: Any) -> None:
    with pytest.raises(ValidationError, match="hex"):
        Member(name="hospital", key=key)


def test_a_plan_is_signed_by_the_coordinator_under_one_roster() -> None:
    plan = toy_plan()
    signature = sign_plan(plan, COORDINATOR, ROSTER)
    verify_plan(plan, signature, ROSTER)
    for other, roster in [
        (toy_plan(nonce="1" * 32), ROSTER),
        (plan, dataclasses.replace(ROSTER, serial=4)),
        (plan, dataclasses.replace(ROSTER, coordinator=Member(name="other", key=COORDINATOR.public))),
        (plan, dataclasses.replace(ROSTER, coordinator=Member(name="coordinator", key=MALLORY.public))),
    ]:
        with pytest.raises(SignatureError):
            verify_plan(other, signature, roster)


def test_nobody_else_signs_a_plan() -> None:
    plan = toy_plan()
    with pytest.raises(RosterError, match="another key for the coordinator"):
        sign_plan(plan, MALLORY, ROSTER)
    scope = bytes.fromhex(ROSTER.sha256)
    for signer in (MALLORY, ROOT, HOSPITALS["hospital-0"]):
        with pytest.raises(SignatureError):
            verify_plan(plan, signer.sign("plan", plan.to_bytes(), signer="coordinator", scope=scope), ROSTER)


def test_a_revoked_coordinator_signs_no_plan() -> None:
    plan, roster = toy_plan(), dataclasses.replace(ROSTER, revoked=(COORDINATOR.public.fingerprint,))
    with pytest.raises(RosterError, match="'coordinator' is revoked"):
        sign_plan(plan, COORDINATOR, roster)
    with pytest.raises(RosterError, match="'coordinator' is revoked"):
        verify_plan(plan, sign_plan(plan, COORDINATOR, ROSTER), roster)


def test_the_largest_consortium_fits() -> None:
    keys = [PublicIdentity(ed25519=number.to_bytes(32, "big"), mldsa=bytes(1952)) for number in range(255)]
    members = tuple(Member(name=f"hospital-{number}", key=key) for number, key in enumerate(keys))
    large = dataclasses.replace(ROSTER, members=members)
    assert len(read_roster(sign_roster(large, ROOT)).keys) == 255
