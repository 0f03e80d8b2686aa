"""The pseudorandom stream behind every mask, every noise sample and every private draw, and the keys that start it.

One stream type serves secure aggregation (where hospitals must expand the same key to the same numbers) and the privacy
mechanism (where the key comes from the operating system and nobody can repeat it). Neither torch's nor NumPy's
generators come into it, so seeding them changes nothing here. Bytes in, numbers out: no tensors, no files.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
"""Bytes in a key: AES-256."""

_ZEROS = memoryview(bytes(1 << 20))
"""What is encrypted to obtain the bare keystream, shared by all streams and never written."""


class SecureStream:
    """Numbers from the keystream of AES-256 in counter mode.

    The nonce is zero because a key starts one stream only: two streams with one key are one stream. Numbers are read in
    little-endian order, so equal keys give equal numbers on every machine, however the reads are split into calls of
    `uint64`. One thread at a time.

    Args:
      key: 32 secret bytes that start no other stream.

    Raises:
      ValueError: the key does not have 32 bytes.

    Source: NIST SP 800-38A, section 6.5 (CTR).
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Expected a key of {KEY_BYTES} bytes, found {len(key)}.")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def from_os(cls) -> SecureStream:
        """Starts a stream that nobody can repeat, keyed by the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def __repr__(self) -> str:
        return "SecureStream(key hidden)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A SecureStream holds a key and is never pickled or copied.")

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """Draws `count` independent uniform 64-bit numbers."""
        numbers = np.empty(_checked(count), dtype="<u8")
        self.fill(numbers)
        return numbers.astype(np.uint64, copy=False)

    def fill(self, numbers: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Overwrites a contiguous array of little-endian unsigned numbers with the stream's next bytes, in place."""
        target = numbers.view(np.uint8).data
        for start in range(0, len(target), len(_ZEROS)):
            piece = target[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(piece)], piece)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Draws `count` uniform numbers in (0, 1], multiples of 2^-53; never 0, so that a logarithm is finite."""
        numbers = self.uint64(count)
        numbers >>= np.uint64(11)
        numbers += np.uint64(1)
        return numbers.astype(np.float64) * 2.0**-53

    def below(self, bound: int, count: int) -> npt.NDArray[np.int64]:
        """Draws `count` uniform integers in [0, bound).

        Guarantees: no modulo bias; numbers past the last whole multiple of `bound` are drawn again.

        Raises:
          ValueError: `bound` lies outside [1, 2^63].
        """
        if not 1 <= bound <= 2**63:
            raise ValueError(f"Expected a bound in [1, 2^63], found {bound}.")
        last = np.uint64(2**64 - 2**64 % bound - 1)
        numbers = self.uint64(count)
        while (rejected := np.flatnonzero(numbers > last)).size:
            numbers[rejected] = self.uint64(rejected.size)
        return (numbers % np.uint64(bound)).astype(np.int64)


def derive_key(secret: bytes, *, label: str, context: bytes = b"") -> bytes:
    """Derives a 32-byte key for one purpose from a shared or stored secret.

    Args:
      secret: at least 16 bytes of key material.
      label: what the key is for; each use in the protocol has its own.
      context: what else the key is bound to, such as a run and a session.

    Returns:
      32 bytes, independent of the keys of every other label and context.

    Guarantees: (label, context) is encoded injectively; the label's length comes first.

    Raises:
      ValueError: an empty label, or less than 16 bytes of secret.

    Source: RFC 5869 (HKDF-SHA256, no salt).
    """
    if not label or len(secret) < 16:
        raise ValueError("A derived key needs a label and at least 16 bytes of secret.")
    name = label.encode()
    return _hkdf_sha256(secret, info=b"fedslm/1" + len(name).to_bytes(4, "big") + name + context, length=KEY_BYTES)


def _hkdf_sha256(secret: bytes, *, info: bytes, length: int) -> bytes:
    """HKDF as in RFC 5869, with no salt."""
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


def _checked(count: int) -> int:
    if count < 0:
        raise ValueError(f"Expected a count of at least 0, found {count}.")
    return count
