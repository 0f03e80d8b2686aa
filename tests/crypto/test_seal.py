"""Sealing against the vectors of RFC 9180, FIPS 203 and draft-ietf-hpke-pq; locking chunk by chunk."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fedslm.crypto.prg import derive_key
from fedslm.crypto.seal import OVERHEAD_BYTES, PUBLIC_KEY_BYTES, SealingKey, lock, seal, unlock
from fedslm.encoding import pack
from fedslm.errors import SealError

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
HPKE = json.loads((VECTORS / "hpke.json").read_text())
ALICE = SealingKey.generate()
SEALED = seal(b"seed", to=ALICE.public, info=b"session 1")
KEY = bytes(range(32))
MIB = 1 << 20


def key_schedule(vector: dict[str, Any], aead_id: int) -> tuple[bytes, bytes]:
    """Key and nonce from a KEM's shared secret: RFC 9180, section 5.1, base mode, written down once more from the text."""
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (vector["kem_id"], vector["kdf_id"], aead_id))

    def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
        return hmac.digest(secret, labelled + b"\x01", "sha256")[:length]  # one block is enough up to 32 bytes

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", bytes.fromhex(vector["info"]))
    secret = extract(bytes.fromhex(vector["shared_secret"]), b"secret", b"")
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)


def expanded(seed: str) -> SealingKey:
    """The key pair that the draft derives from a seed of 32 bytes: SHAKE256 gives ML-KEM's seed and X25519's key."""
    return SealingKey.from_bytes(hashlib.shake_256(bytes.fromhex(seed)).digest(96))


@pytest.mark.parametrize("entry", ["mlkem768_x25519", "rfc9180_x25519_aes256gcm"])
def test_the_key_schedule_of_these_tests_is_the_published_one(entry: str) -> None:
    vector = HPKE[entry]
    key, nonce = key_schedule(vector, vector["aead_id"])
    assert (key.hex(), nonce.hex()) == (vector["key"], vector["base_nonce"])


def test_public_keys_match_the_published_ones() -> None:
    kem, hybrid = json.loads((VECTORS / "mlkem768.json").read_text()), HPKE["mlkem768_x25519"]
    curve = HPKE["rfc9180_x25519_aes256gcm"]
    key = SealingKey.from_bytes(bytes.fromhex(kem["d"] + kem["z"] + curve["skRm"]))
    assert key.public.hex() == kem["pk"] + curve["pkRm"]
    assert expanded(hybrid["skRm"]).public.hex() == hybrid["pkRm"]


def test_a_published_encapsulation_opens() -> None:
    # The draft publishes this KEM with ChaCha20-Poly1305 only; from its shared secret on, the schedule is RFC 9180's.
    vector = HPKE["mlkem768_x25519"]
    key, nonce = key_schedule(vector, 0x0002)  # AES-256-GCM
    info = bytes.fromhex(vector["info"])
    sealed = bytes.fromhex(vector["enc"]) + AESGCM(key).encrypt(nonce, b"a pair seed", b"")
    assert expanded(vector["skRm"]).open(sealed, info=info) == b"a pair seed"


@given(plaintext=st.binary(max_size=300), info=st.binary(max_size=100))
def test_what_is_sealed_opens(plaintext: bytes, info: bytes) -> None:
    sealed = seal(plaintext, to=ALICE.public, info=info)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert ALICE.open(sealed, info=info) == plaintext


def test_a_stored_key_opens_what_was_sealed_before() -> None:
    again = SealingKey.from_bytes(ALICE.to_bytes())
    assert again.public == ALICE.public
    assert len(again.public) == PUBLIC_KEY_BYTES
    assert again.open(SEALED, info=b"session 1") == b"seed"


def test_no_two_ciphertexts_and_no_two_keys_are_alike() -> None:
    assert seal(b"seed", to=ALICE.public, info=b"session 1") != SEALED
    assert SealingKey.generate().public != ALICE.public


def test_another_key_or_session_opens_nothing() -> None:
    for key, info in [(SealingKey.generate(), b"session 1"), (ALICE, b"session 2"), (ALICE, b"")]:
        with pytest.raises(SealError, match="does not open"):
            key.open(SEALED, info=info)


@given(position=st.integers(0, len(SEALED) - 1), flip=st.integers(1, 255))
def test_one_flipped_bit_opens_nothing(position: int, flip: int) -> None:
    altered = bytearray(SEALED)
    altered[position] ^= flip
    with pytest.raises(SealError):
        ALICE.open(bytes(altered), info=b"session 1")


@pytest.mark.parametrize("length", [0, 1, 1119, 1120, 1135, len(SEALED) - 1])
def test_a_ciphertext_cut_short_opens_nothing(length: int) -> None:
    with pytest.raises(SealError):
        ALICE.open(SEALED[:length], info=b"session 1")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        ALICE.public[:-1],
        ALICE.public + b"\0",
        b"\xff" * PUBLIC_KEY_BYTES,  # coefficients above ML-KEM's modulus
        ALICE.public[:1184] + bytes(32),  # a point of low order: the shared secret would be known
    ],
    ids=["empty", "short", "long", "out of range", "low order"],
)
def test_nothing_is_sealed_to_a_malformed_key(key: bytes) -> None:
    with pytest.raises(SealError, match="malformed"):
        seal(b"seed", to=key, info=b"")


@pytest.mark.parametrize("length", [0, 64, 95, 97])
def test_a_stored_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"96 bytes, found {length}"):
        SealingKey.from_bytes(bytes(length))


def test_sealing_keys_never_show() -> None:
    assert ALICE.to_bytes().hex() not in repr(ALICE)
    assert "hidden" in repr(ALICE)
    with pytest.raises(TypeError, match="private"):
        pickle.dumps(ALICE)


@pytest.mark.parametrize("length", [0, 1, 1000, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 17])
def test_what_is_locked_unlocks(length: int) -> None:
    plaintext = np.random.default_rng(length).bytes(length)
    locked = lock(KEY, plaintext, associated=b"state")
    assert len(locked) == 32 + length + 16 * max(1, -(-length // MIB))
    assert unlock(KEY, locked, associated=b"state") == plaintext
    assert unlock(KEY, memoryview(bytearray(locked)), associated=b"state") == plaintext


@pytest.mark.parametrize("shape", [(0,), (3,), (4, 5)])
def test_arrays_are_locked_by_their_bytes(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 7, dtype=np.uint32)
    assert unlock(KEY, lock(KEY, array, associated=b""), associated=b"") == array.tobytes()


def test_the_layout_is_pinned() -> None:
    plaintext = bytes(MIB) + b"rest"
    locked = lock(KEY, plaintext, associated=b"run 1")
    cipher = AESGCM(derive_key(KEY, label="lock", context=locked[:32]))
    first = cipher.encrypt(bytes(12), plaintext[:MIB], pack(b"run 1", bytes(8), b"\0"))
    last = cipher.encrypt((1).to_bytes(12, "big"), b"rest", pack(b"run 1", (1).to_bytes(8, "big"), b"\1"))
    assert locked[32:] == first + last


def test_locking_twice_gives_different_bytes() -> None:
    first, second = (lock(KEY, b"state", associated=b"") for _ in range(2))
    assert first[:32] != second[:32]
    assert first[32:] != second[32:]


def test_another_key_or_purpose_unlocks_nothing() -> None:
    locked = lock(KEY, b"state", associated=b"run 1")
    for key, associated in [(bytes(32), b"run 1"), (KEY, b"run 2"), (KEY, b""), (KEY, b"run 1\0")]:
        with pytest.raises(SealError, match="does not open"):
            unlock(key, locked, associated=associated)


def test_chunks_are_bound_to_their_place_and_their_call() -> None:
    chunk = MIB + 16
    locked = lock(KEY, bytes(3 * MIB), associated=b"")
    salt, chunks = locked[:32], [locked[32 + start : 32 + start + chunk] for start in range(0, 3 * chunk, chunk)]
    other = lock(KEY, bytes(3 * MIB), associated=b"")
    for wrong in [
        [salt, *chunks[:2]],  # cut at a chunk's end
        [salt, *chunks[1:]],
        [salt, chunks[1], chunks[0], chunks[2]],
        [salt, *chunks, chunks[2]],
        [salt, chunks[0], chunks[0], chunks[2]],
        [salt, *chunks[:2], other[-chunk:]],
        [other[:32], *chunks],
        [salt],
    ]:
        with pytest.raises(SealError):
            unlock(KEY, b"".join(wrong), associated=b"")


@given(position=st.integers(0, 32 + 5 + 16 - 1), flip=st.integers(1, 255))
def test_one_flipped_bit_unlocks_nothing(position: int, flip: int) -> None:
    altered = bytearray(lock(KEY, b"state", associated=b""))
    altered[position] ^= flip
    with pytest.raises(SealError):
        unlock(KEY, bytes(altered), associated=b"")


@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, 52])
def test_locked_data_cut_short_unlocks_nothing(length: int) -> None:
    with pytest.raises(SealError):
        unlock(KEY, lock(KEY, b"state", associated=b"")[:length], associated=b"")


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(33)])
def test_a_lock_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        lock(key, b"", associated=b"")
    with pytest.raises(ValueError, match="32 bytes"):
        unlock(key, bytes(48), associated=b"")
