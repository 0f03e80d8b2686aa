"""Confidentiality: sealing to a recipient's public key, and locking under a key that one machine keeps.

Sealing is HPKE with a hybrid of ML-KEM-768 and X25519: who records the traffic today needs to break both to read it.
Locking is AES-256-GCM in chunks, for state on disk and for vectors of many megabytes. Bytes in, bytes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedslm.crypto.prg import KEY_BYTES, derive_key
from fedslm.encoding import pack
from fedslm.errors import SealError

_MLKEM_PUBLIC_BYTES = 1184

PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + 32
"""Bytes in a sealing key's public half: ML-KEM-768, then X25519."""

OVERHEAD_BYTES = 1120 + 16
"""What sealing adds to a plaintext: both encapsulations, and the tag."""

_MLKEM_SEED_BYTES = 64
_PRIVATE_BYTES = _MLKEM_SEED_BYTES + 32
_CHUNK_BYTES = 1 << 20  # one call on a whole large buffer is some twenty times slower
_TAG_BYTES = 16
_SALT_BYTES = 32


class SealingKey:
    """A key that others seal to. It serves one context and is then dropped.

    Make one with `generate`. It has no plain `repr` and is not pickled.
    """

    __slots__ = ("_mlkem", "_x25519")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._mlkem = mlkem
        self._x25519 = x25519

    @classmethod
    def generate(cls) -> SealingKey:
        """Makes a key from the operating system's randomness."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, data: bytes) -> SealingKey:
        """Reads what `to_bytes` wrote.

        Raises:
          ValueError: `data` does not have 96 bytes.
        """
        if len(data) != _PRIVATE_BYTES:
            raise ValueError(f"Expected a sealing key of {_PRIVATE_BYTES} bytes, found {len(data)}.")
        mlkem = MLKEM768PrivateKey.from_seed_bytes(data[:_MLKEM_SEED_BYTES])
        return cls(mlkem, X25519PrivateKey.from_private_bytes(data[_MLKEM_SEED_BYTES:]))

    def to_bytes(self) -> bytes:
        """The private halves, in the clear (ML-KEM's seed, then X25519): only ever store them locked."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """The public halves, 1216 bytes, to give to whoever is to `seal`."""
        return self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()

    def open(self, ciphertext: bytes, *, info: bytes) -> bytes:
        """Opens what `seal` made for this key.

        Args:
          info: the same bytes as at sealing.

        Raises:
          SealError: altered, cut short, sealed to another key, or with another `info`.
        """
        try:
            return _suite().decrypt(ciphertext, hpke.MLKEM768X25519PrivateKey(self._mlkem, self._x25519), info=info)
        except (InvalidTag, ValueError):
            raise SealError(
                "A ciphertext does not open: it was altered, or sealed to another key or session; drop its sender."
            ) from None

    def __repr__(self) -> str:
        return "SealingKey(key hidden)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A SealingKey holds private keys and is never pickled or copied.")


def seal(plaintext: bytes, *, to: bytes, info: bytes) -> bytes:
    """Encrypts to the holder of a sealing key.

    Args:
      to: the recipient's `SealingKey.public`, 1216 bytes.
      info: what the ciphertext is bound to: session, sender, receiver. Not carried; the recipient must know it.

    Returns:
      1136 bytes more than `plaintext`. It says nothing about who sealed it: the sender signs.

    Raises:
      SealError: `to` is no public sealing key.

    Source: RFC 9180 (base mode, single shot) with the hybrid KEM of draft-ietf-hpke-pq.
    """
    try:
        return _suite().encrypt(plaintext, _public_key(to), info=info)
    except ValueError:  # a wrong length, an ML-KEM key out of range, a point of low order
        raise SealError(
            "A sealing key is malformed, so nothing was sealed to it; drop the member who sent it."
        ) from None


def lock(key: bytes, plaintext: bytes | Any, *, associated: bytes) -> bytes:
    """Encrypts under a key of one's own, in chunks of 1 MiB.

    Args:
      key: 32 secret bytes; may lock any number of times, as each call derives a key of its own.
      plaintext: bytes, or anything contiguous with a buffer, such as an array.
      associated: what the ciphertext is for. Not carried; `unlock` must be told the same.

    Returns:
      32 random bytes, then the chunks, each with a tag of 16 bytes.

    Guarantees: a chunk that is missing, out of place or from another call is noticed, and so is a cut at a chunk's end.

    Raises:
      ValueError: the key does not have 32 bytes.

    Source: NIST SP 800-38D (AES-256-GCM, counter as nonce under a key used once).
    """
    salt = os.urandom(_SALT_BYTES)
    cipher = _cipher(key, salt)
    pieces = _pieces(plaintext, _CHUNK_BYTES)
    return b"".join(
        [salt, *(cipher.encrypt(nonce, piece, header) for nonce, piece, header in _framed(pieces, associated))]
    )


def unlock(key: bytes, data: bytes | Any, *, associated: bytes) -> bytes:
    """Opens what `lock` made.

    Raises:
      SealError: altered, cut short, locked under another key, or for something else than `associated`.
      ValueError: the key does not have 32 bytes.
    """
    view = _bytewise(data)
    cipher = _cipher(key, bytes(view[:_SALT_BYTES]).ljust(_SALT_BYTES, b"\0"))
    pieces = _pieces(view[_SALT_BYTES:], _CHUNK_BYTES + _TAG_BYTES)
    try:
        return b"".join([cipher.decrypt(*framed) for framed in _framed(pieces, associated)])
    except InvalidTag:
        raise SealError(
            "Stored data does not open: it was altered or cut short, or belongs to another key, run or step."
        ) from None


def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _public_key(data: bytes) -> hpke.MLKEM768X25519PublicKey:
    mlkem = MLKEM768PublicKey.from_public_bytes(data[:_MLKEM_PUBLIC_BYTES])
    return hpke.MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(data[_MLKEM_PUBLIC_BYTES:]))


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"Expected a key of {KEY_BYTES} bytes, found {len(key)}.")
    return AESGCM(derive_key(key, label="lock", context=salt))


def _pieces(data: bytes | Any, size: int) -> list[memoryview]:
    """Cuts data into pieces of `size` bytes, the last one shorter; empty data is one empty piece."""
    view = _bytewise(data)
    return [view[start : start + size] for start in range(0, max(len(view), 1), size)]


def _framed(pieces: list[memoryview], associated: bytes) -> Iterator[tuple[bytes, memoryview, bytes]]:
    """Each piece between its nonce and what it is bound to: the purpose, its place, and whether it is the last."""
    for index, piece in enumerate(pieces):
        place, is_last = index.to_bytes(8, "big"), index == len(pieces) - 1
        yield place.rjust(12, b"\0"), piece, pack(associated, place, bytes([is_last]))


def _bytewise(data: bytes | Any) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty view cannot be cast
