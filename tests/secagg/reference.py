"""The protocol's numbers once more, slowly and from its definition: no code of `fedslm` is used here.

HKDF from HMAC (RFC 5869), counter mode from AES on single blocks (SP 800-38A), the field of AES by shifting and adding,
and whole numbers of Python instead of arrays.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from hashlib import sha256

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def pack(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def hkdf(secret: bytes, info: bytes) -> bytes:
    """32 bytes with no salt: extract, then one block of expand."""
    extracted = hmac.new(bytes(32), secret, sha256).digest()
    return hmac.new(extracted, info + b"\x01", sha256).digest()


def keystream(key: bytes, length: int) -> list[int]:
    """The first numbers of 32 bits, little-endian, of AES-256 in counter mode from zero."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(encryptor.update(struct.pack(">QQ", 0, number)) for number in range(-(-length // 4)))
    return list(struct.unpack(f"<{length}I", blocks[: 4 * length]))


def mask(label: str, context: bytes, u: int, v: int, seed: bytes, length: int) -> list[int]:
    info = b"fedslm/1" + struct.pack(">I", len(label)) + label.encode() + context + bytes([u, v])
    return keystream(hkdf(seed, info), length)


def commitment(label: str, context: bytes, u: int, v: int, seed: bytes) -> bytes:
    return sha256(pack(label.encode(), context, bytes([u, v]), seed)).digest()


def masked(
    u: int, levels: Sequence[int], own: bytes, pairs: Mapping[tuple[int, int], bytes], context: bytes, bits: int
) -> list[int]:
    """y_u = x_u + PRG(b_u) + sum over v > u of PRG(r_uv) - sum over v < u of PRG(r_vu); `pairs` are those within U2."""
    total = list(levels)
    terms = [(1, mask("self", context, u, u, own, len(levels)))]
    for (low, high), seed in pairs.items():
        if u in (low, high):
            terms.append((1 if u == low else -1, mask("pair", context, low, high, seed, len(levels))))
    for sign, numbers in terms:
        total = [(a + sign * b) % 2**bits for a, b in zip(total, numbers, strict=True)]
    return total


def unmasked(
    vectors: Mapping[int, Sequence[int]],
    own: Mapping[int, bytes],
    cut: Mapping[tuple[int, int], bytes],
    context: bytes,
    bits: int,
) -> list[int]:
    """The sum over U3 from masked vectors, self seeds of U3 and pair seeds with exactly one end in U3."""
    length = len(next(iter(vectors.values())))
    total = [sum(column) for column in zip(*vectors.values(), strict=True)]
    for u, seed in own.items():
        total = [a - b for a, b in zip(total, mask("self", context, u, u, seed, length), strict=True)]
    for (low, high), seed in cut.items():
        sign = 1 if low in vectors else -1
        total = [a - sign * b for a, b in zip(total, mask("pair", context, low, high, seed, length), strict=True)]
    return [number % 2**bits for number in total]


def times(a: int, b: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    while b:
        product, a, b = product ^ (a if b & 1 else 0), a << 1 ^ (0x11B if a & 0x80 else 0), b >> 1
    return product


def inverse(a: int) -> int:
    return next(b for b in range(256) if times(a, b) == 1)


def share_of(secret: bytes, coefficients: bytes, point: int) -> bytes:
    """The share at a point; `coefficients` of degree 1 for every byte, then of degree 2 and so on."""
    size, share = len(secret), list(secret)
    power = 1
    for start in range(0, len(coefficients), size):
        power = times(power, point)
        share = [a ^ times(c, power) for a, c in zip(share, coefficients[start : start + size], strict=True)]
    return bytes(share)


def secret_of(shares: Mapping[int, bytes]) -> bytes:
    """Lagrange at zero."""
    weights = {
        point: reduce(times, (times(other, inverse(other ^ point)) for other in shares if other != point), 1)
        for point in shares
    }
    size = len(next(iter(shares.values())))
    return bytes(
        reduce(lambda a, b: a ^ b, (times(weights[point], shares[point][place]) for point in shares))
        for place in range(size)
    )


def context_of(
    *,
    run_id: str,
    numbers: Iterable[int],
    plan: bytes,
    roster: bytes,
    adverts: Iterable[bytes],
    fixed_point: bytes,
    adapter: bytes,
    config: bytes,
) -> bytes:
    """`numbers`: session, round, n, t, T, h, min_cohort; `adverts` and `fixed_point` encoded."""
    fields = (struct.pack(">7I", *numbers), plan, roster, pack(*adverts), fixed_point, adapter, config)
    return sha256(pack(b"fedslm-secagg/1", run_id.encode(), *fields)).digest()


def advert_bytes(member: str, serial: int, sealing_key: bytes, ledger_head: bytes, signature: bytes) -> bytes:
    name = member.encode()
    return (
        b"FSLM\x02\x01" + bytes([len(name)]) + name + struct.pack(">Q", serial) + sealing_key + ledger_head + signature
    )


def blob(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def proof_bytes(scope: bytes, advert: bytes) -> bytes:
    return b"FSLM\x02\x0e" + scope + blob(advert)


def join_bytes(advert: bytes, proofs: Sequence[bytes]) -> bytes:
    return b"FSLM\x02\x0f" + blob(advert) + struct.pack(">H", len(proofs)) + b"".join(map(blob, proofs))


def invitation_bytes(known: Sequence[tuple[str, bytes]], own: bytes) -> bytes:
    heads = b"".join(bytes([len(name.encode())]) + name.encode() + head for name, head in known)
    return b"FSLM\x02\x0d" + struct.pack(">H", len(known)) + heads + blob(own)


def fixed_point_bytes(ring_bits: int, parties: int, blocks: Iterable[tuple[str, int, float]]) -> bytes:
    described = [pack(name.encode(), struct.pack(">Qd", length, value_range)) for name, length, value_range in blocks]
    return pack(struct.pack(">II", ring_bits, parties), *described)
