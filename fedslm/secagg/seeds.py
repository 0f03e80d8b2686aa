"""What both sides know about seeds: how one is committed to, which key it becomes, and which are revealed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from fedslm.crypto.prg import derive_key
from fedslm.encoding import pack

SEED_BYTES = 32
SELF, PAIR = "self", "pair"


def cut_pairs(sharers: tuple[int, ...], survivors: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The pairs v < w of U2 with exactly one end in U3, ascending: those whose mask is left in the sum."""
    inside = set(survivors)
    return ((v, w) for v in sharers for w in sharers if v < w and (v in inside) != (w in inside))


def seed_of(block: bytes, u: int, v: int) -> bytes:
    """Of the seeds that u dealt, or the shares of them: the one for its pair with v > u; its self seed for v == u."""
    return block[SEED_BYTES * (v - u) : SEED_BYTES * (v - u + 1)]


def commitment(label: str, context: bytes, u: int, v: int, seed: bytes) -> bytes:
    """SHA-256 over label, context, dealer u, other end v (u itself for a self seed) and the seed."""
    return sha256(pack(label.encode(), context, bytes([u, v]), seed)).digest()


def mask_key(label: str, context: bytes, u: int, v: int, seed: bytes) -> bytes:
    """The key whose keystream is the mask of a seed; `u < v` for a pair, `u == v` for a self seed."""
    return derive_key(seed, label=label, context=context + bytes([u, v]))
