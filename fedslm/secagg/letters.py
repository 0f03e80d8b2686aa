"""What one hospital seals to another in step 1: a share of every seed that it deals, and the seed of their pair.

The lower end of a pair draws its seed and sends it along; both ends stand in what is sealed and in what it is bound to.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedslm.crypto.seal import SealingKey, seal
from fedslm.errors import SealError
from fedslm.secagg.seeds import SEED_BYTES, seed_of


@dataclass(frozen=True, slots=True, repr=False)
class Letter:
    """A letter, opened; `pair_seed` only from a lower point to a higher one. Secret."""

    pair_seed: bytes
    share: bytes


def seal_letter(context: bytes, u: int, v: int, *, seeds: bytes, share: bytes, to: bytes) -> bytes:
    """Hospital u's letter to hospital v, sealed.

    Args:
      seeds: that u drew: its self seed, then the pair seed with every higher point.
      share: v's share of all of them.
      to: v's public key.
    """
    pair_seed = seed_of(seeds, u, v) if u < v else b""
    head = _ends(context, u, v)
    return seal(head + pair_seed + share, to=to, info=head)


def open_letter(sealing_key: SealingKey, ciphertext: bytes, *, context: bytes, u: int, v: int, n: int) -> Letter:
    """Opens hospital u's letter at hospital v, in a session of n.

    Raises:
      SealError: it does not open, or is of another session, sender, receiver or length.
    """
    head, pair_bytes = _ends(context, u, v), SEED_BYTES if u < v else 0
    try:
        plaintext = sealing_key.open(ciphertext, info=head)
    except SealError:
        raise SealError(f"What hospital {u} sealed to hospital {v} does not open; hospital {u} sent rubbish.") from None
    if plaintext[: len(head)] != head or len(plaintext) != len(head) + pair_bytes + SEED_BYTES * (1 + n - u):
        raise SealError(f"What hospital {u} sealed to hospital {v} is not meant for it in this session.")
    body = plaintext[len(head) :]
    return Letter(pair_seed=body[:pair_bytes], share=body[pair_bytes:])


def _ends(context: bytes, sender: int, receiver: int) -> bytes:
    return context + bytes([sender, receiver])
