"""A signature counts only when both halves are right, for one purpose, signer and scope; keys never show."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedslm.crypto.identity import (
    PUBLIC_BYTES,
    PURPOSES,
    SIGNATURE_BYTES,
    Identity,
    PublicIdentity,
    is_encrypted,
    is_private,
)
from fedslm.errors import ConfigError, SignatureError

MLDSA = json.loads((Path(__file__).resolve().parent.parent / "vectors" / "mldsa65.json").read_text())
ALICE = Identity.from_seeds(bytes(32), bytes(range(32)))
MALLORY = Identity.from_seeds(b"m" * 32, b"m" * 32)
SIGNED: dict[str, Any] = {"purpose": "confirm", "body": b"U2, U3", "signer": "hospital-1", "scope": b"context"}
SIGNATURE = ALICE.sign(**SIGNED)
PLAIN = ALICE.to_pem(None)
PUBLIC = ALICE.public.to_pem()
ENCRYPTED = ALICE.to_pem(b"correct horse")  # scrypt takes half a second: once for all tests


@pytest.mark.parametrize(
    ("seed", "public"),
    [  # RFC 8032, section 7.1, tests 1 to 3.
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        ),
    ],
)
def test_seeds_give_the_published_public_keys(seed: str, public: str) -> None:
    found = Identity.from_seeds(bytes.fromhex(seed), bytes.fromhex(MLDSA["xi"])).public
    assert found.ed25519.hex() == public
    assert found.mldsa.hex() == MLDSA["pk"]


def test_the_library_verifies_the_published_signature_in_its_context() -> None:
    key = MLDSA65PublicKey.from_public_bytes(bytes.fromhex(MLDSA["pk"]))
    signature, message, context = (bytes.fromhex(MLDSA[name]) for name in ("sig", "msg", "ctx"))
    key.verify(signature, message, context=context)
    assert len(signature) == SIGNATURE_BYTES - 64


def test_what_is_signed_is_pinned() -> None:
    # Each field after its length in four bytes; another spelling would make every signature of an older release void.
    message = b"\0\0\0\x08fedslm/1\0\0\0\x07confirm\0\0\0\x0ahospital-1\0\0\0\x07context\0\0\0\x06U2, U3"
    Ed25519PublicKey.from_public_bytes(ALICE.public.ed25519).verify(SIGNATURE[:64], message)
    MLDSA65PublicKey.from_public_bytes(ALICE.public.mldsa).verify(SIGNATURE[64:], message, context=b"confirm")
    assert Ed25519PrivateKey.from_private_bytes(bytes(32)).sign(message) == SIGNATURE[:64]


@pytest.mark.parametrize("purpose", sorted(PURPOSES))
def test_a_signature_verifies_for_what_it_was_made(purpose: str) -> None:
    signature = ALICE.sign(purpose, b"body", signer="St. Élodie", scope=b"")
    assert len(signature) == SIGNATURE_BYTES
    ALICE.public.verify(purpose, b"body", signature, signer="St. Élodie", scope=b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"purpose": "abort"},
        {"body": b"U2, U3 "},
        {"body": b""},
        {"signer": "hospital-2"},
        {"scope": b"another context"},
        {"scope": b""},
        {"signer": "hospital-", "scope": b"1context"},
        {"scope": b"contextU", "body": b"2, U3"},
    ],
    ids=str,
)
def test_a_signature_holds_for_nothing_else(changes: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="does not verify"):
        ALICE.public.verify(**{**SIGNED, **changes}, signature=SIGNATURE)


def test_both_halves_must_be_right() -> None:
    forged = MALLORY.sign(**SIGNED)
    for signature in (SIGNATURE[:64] + forged[64:], forged[:64] + SIGNATURE[64:], forged):
        with pytest.raises(SignatureError):
            ALICE.public.verify(**SIGNED, signature=signature)


def test_keys_of_two_people_do_not_make_a_third() -> None:
    mixed = PublicIdentity(ed25519=MALLORY.public.ed25519, mldsa=ALICE.public.mldsa)
    for signer in (ALICE, MALLORY):
        with pytest.raises(SignatureError):
            mixed.verify(**SIGNED, signature=signer.sign(**SIGNED))


@given(position=st.integers(0, SIGNATURE_BYTES - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_voids_a_signature(position: int, bit: int) -> None:
    altered = bytearray(SIGNATURE)
    altered[position] ^= 1 << bit
    with pytest.raises(SignatureError):
        ALICE.public.verify(**SIGNED, signature=bytes(altered))


@pytest.mark.parametrize("signature", [b"", SIGNATURE[:64], SIGNATURE[64:], SIGNATURE[:-1], SIGNATURE + b"\0"])
def test_a_signature_of_another_length_is_void(signature: bytes) -> None:
    with pytest.raises(SignatureError):
        ALICE.public.verify(**SIGNED, signature=signature)


def test_an_unknown_purpose_is_neither_signed_nor_verified() -> None:
    unknown = {**SIGNED, "purpose": "anything"}
    with pytest.raises(ValueError, match="'anything'"):
        ALICE.sign(**unknown)
    with pytest.raises(ValueError, match="'anything'"):
        ALICE.public.verify(**unknown, signature=SIGNATURE)


def test_a_fingerprint_is_sixty_digits_of_the_keys_hash() -> None:
    digest = hashlib.sha512(ALICE.public.ed25519 + ALICE.public.mldsa).digest()
    groups = ALICE.public.fingerprint.split(" ")
    assert [len(group) for group in groups] == [5] * 12
    assert [int(group) for group in groups] == [
        int.from_bytes(digest[i : i + 5], "big") % 10**5 for i in range(0, 60, 5)
    ]


def test_a_fingerprint_covers_both_keys() -> None:
    keys = ALICE.public, PublicIdentity(ed25519=MALLORY.public.ed25519, mldsa=ALICE.public.mldsa)
    others = PublicIdentity(ed25519=ALICE.public.ed25519, mldsa=MALLORY.public.mldsa), MALLORY.public
    assert len({key.fingerprint for key in (*keys, *others)}) == 4


def test_a_public_identity_reads_back() -> None:
    assert len(ALICE.public.to_bytes()) == PUBLIC_BYTES
    assert PublicIdentity.from_bytes(ALICE.public.to_bytes()) == ALICE.public
    assert PublicIdentity.from_pem(ALICE.public.to_pem()) == ALICE.public


@pytest.mark.parametrize("length", [0, 32, PUBLIC_BYTES - 1, PUBLIC_BYTES + 1])
def test_a_public_identity_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 and 1952 bytes"):
        PublicIdentity.from_bytes(bytes(length))


@pytest.mark.parametrize(("first", "second"), [(31, 32), (32, 33), (0, 32)])
def test_seeds_of_another_length_are_refused(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Identity.from_seeds(bytes(first), bytes(second))


def test_generated_identities_differ_in_both_keys() -> None:
    first, second = Identity.generate().public, Identity.generate().public
    assert first.ed25519 != second.ed25519
    assert first.mldsa != second.mldsa


@pytest.mark.parametrize(("text", "passphrase"), [(PLAIN, None), (ENCRYPTED, b"correct horse")])
def test_an_identity_reads_back_from_its_text(text: bytes, passphrase: bytes | None) -> None:
    surrounded = b"whose it is\r\n" + text.replace(b"\n", b"\r\n").rstrip() + b"  \nafterwards"
    for spelling in (text, text.rstrip(), surrounded):
        again = Identity.from_pem(spelling, passphrase)
        assert again.public == ALICE.public
        ALICE.public.verify(**SIGNED, signature=again.sign(**SIGNED))


def test_the_public_half_is_read_without_a_passphrase() -> None:
    assert PublicIdentity.from_pem(ENCRYPTED) == PublicIdentity.from_pem(PLAIN) == ALICE.public


def test_unencrypted_keys_are_standard_blocks() -> None:
    blocks = PLAIN.split(b"-----BEGIN PRIVATE KEY-----")
    assert len(blocks) == 3
    first = serialization.load_pem_private_key(b"-----BEGIN PRIVATE KEY-----" + blocks[1], None)
    assert isinstance(first, Ed25519PrivateKey)
    assert first.private_bytes_raw() == bytes(32)


def test_an_encrypted_text_holds_no_seed() -> None:
    secret = b"".join(PLAIN.split(b"-----BEGIN PRIVATE KEY-----\n")[1].splitlines()[:1])
    assert secret in PLAIN
    assert secret not in ENCRYPTED
    assert b"PRIVATE KEY" not in ENCRYPTED


def test_a_text_says_what_it_holds() -> None:
    assert [(is_private(text), is_encrypted(text)) for text in (PUBLIC, PLAIN, ENCRYPTED, b"")] == [
        (False, False),
        (True, False),
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize(
    ("text", "passphrase", "named"),
    [
        (ENCRYPTED, b"wrong horse", "passphrase is wrong"),
        (ENCRYPTED, b"", "passphrase is wrong"),
        (ENCRYPTED, None, "give its passphrase"),
        (PLAIN, b"correct horse", "leave the passphrase out"),
        (PUBLIC, None, "no private keys"),
        (PUBLIC, b"correct horse", "no private keys"),
        (b"", None, "no private keys"),
        (b"\xff\x00 anything", None, "no private keys"),
        (PLAIN + PLAIN, None, "one Ed25519 and one ML-DSA-65"),
        (ENCRYPTED + ENCRYPTED, b"correct horse", "one Ed25519 and one ML-DSA-65"),
        (PLAIN.replace(PUBLIC, MALLORY.public.to_pem()), None, "do not belong together"),
        (ENCRYPTED.replace(PUBLIC, MALLORY.public.to_pem()), b"correct horse", "do not belong together"),
        (PLAIN.replace(PUBLIC, b""), None, "one Ed25519 and one ML-DSA-65"),
    ],
)
def test_what_is_not_the_identity_is_refused_in_a_sentence(text: bytes, passphrase: bytes | None, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Identity.from_pem(text, passphrase)
    assert str(caught.value).count("\n") == 0


def damaged(block: bytes) -> bytes:
    """The encrypted text with one character of its private block replaced."""
    at = ENCRYPTED.index(b"ENCRYPTED IDENTITY-----") + 100
    return ENCRYPTED[:at] + block + ENCRYPTED[at + 1 :]


@pytest.mark.parametrize("character", [b"!", b"=", b"\n\n"])
def test_a_damaged_encrypted_block_is_refused(character: bytes) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        Identity.from_pem(damaged(character), b"correct horse")


def foreign(key: Any) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return bytes(key.private_bytes(*form))


@pytest.mark.parametrize(
    "text",
    [
        foreign(X25519PrivateKey.generate()),
        foreign(Ed25519PrivateKey.generate()),
        foreign(Ed25519PrivateKey.generate()) + foreign(MLDSA44PrivateKey.generate()),
        b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        b"".join(b"-----BEGIN PRIVATE KEY-----" + part for part in PLAIN.split(b"-----BEGIN PRIVATE KEY-----")[:0:-1]),
    ],
    ids=["X25519", "Ed25519 alone", "ML-DSA-44", "not a key", "empty", "swapped"],
)
def test_private_keys_of_another_kind_are_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="one Ed25519 and one ML-DSA-65"):
        Identity.from_pem(PUBLIC + text, None)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n",
        PUBLIC + PUBLIC,
        PUBLIC[: len(PUBLIC) // 2],
        b"".join(b"-----BEGIN PUBLIC KEY-----" + part for part in PUBLIC.split(b"-----BEGIN PUBLIC KEY-----")[:0:-1]),
    ],
    ids=["empty", "not a key", "twice", "cut short", "swapped"],
)
def test_public_text_of_another_kind_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="one Ed25519 and one ML-DSA-65"):
        PublicIdentity.from_pem(text)


def test_an_empty_passphrase_encrypts_nothing() -> None:
    with pytest.raises(ConfigError, match="passphrase is empty"):
        ALICE.to_pem(b"")


def test_identities_never_show() -> None:
    assert ALICE.public.fingerprint in repr(ALICE)
    assert "hidden" in repr(ALICE)
    assert bytes(range(32)).hex() not in repr(ALICE)
    with pytest.raises(TypeError, match="private"):
        pickle.dumps(ALICE)
