"""Masked vectors look like noise, with tests that have the power to see when they do not.

Each test is run on the real masks and on those of systems that were found to be broken. Where a mutant of the latter kind
passes, the test is worth nothing; so that is tested too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest

from fedslm.crypto.prg import SecureStream
from fedslm.secagg.encoding import Ring, pack_ring
from fedslm.secagg.messages import MaskedReply
from fedslm.secagg.seeds import PAIR, SEED_BYTES, mask_key
from fedslm.secagg.wire import decode
from tests.secagg.session import Session, terms_for

LENGTH = 40_000
ROUNDS = (1, 2)
Masker = Callable[[int], Ring]
"""Number of a session to the masked vector of one hospital; the clear one is the same in both."""


def clear() -> Ring:
    """An update as it is: nearly all of it close to zero, padded at its end."""
    vector = np.random.default_rng(0).normal(2**30, 1000, LENGTH).astype(np.uint32)
    vector[-LENGTH // 4 :] = 2**30
    return vector


def real(session: int) -> Ring:
    run = Session(terms_for(3, session=session, d=LENGTH), draw=SecureStreamBytes(session))
    run.levels[2] = clear()
    vector = decode(MaskedReply, run.mask(2, run.after_shares()[2])).vector
    return np.frombuffer(vector, dtype="<u4").astype(np.uint32)


class SecureStreamBytes:
    """Seeds that are the same in every run of the tests, so that a test that passes once passes always."""

    def __init__(self, tag: int) -> None:
        self._stream = SecureStream(sha256(b"seeds %d" % tag).digest())

    def __call__(self, count: int) -> bytes:
        return self._stream.uint64(-(-count // 8)).tobytes()[:count]


def keystream(key: bytes, length: int = LENGTH) -> Ring:
    numbers = np.empty(length, dtype="<u4")
    SecureStream(key).fill(numbers)
    return numbers


def one_scalar_a_client(session: int) -> Ring:
    """One number for all coordinates and rounds."""
    return clear() + np.uint32(0x9E3779B9)


def one_scalar_a_round(session: int) -> Ring:
    return clear() + np.uint32(0x9E3779B9 * session)


def gaussian(session: int) -> Ring:
    """A float mask, wide against the update and narrow against the ring."""
    noise = np.random.default_rng(session).normal(0, 2.0**26, LENGTH)
    return (clear().astype(np.int64) + np.rint(noise).astype(np.int64)).astype(np.uint32)


def padding_in_clear(session: int) -> Ring:
    vector = clear() + keystream(sha256(b"%d" % session).digest())
    vector[-LENGTH // 4 :] = clear()[-LENGTH // 4 :]
    return vector


def one_mask_for_all_rounds(session: int) -> Ring:
    return clear() + keystream(bytes(32))


def chi_square(numbers: Ring) -> float:
    """The largest of the four statistics of the bytes' places, each against 256 equal cells."""
    planes = numbers.astype("<u4").view(np.uint8).reshape(-1, 4).T
    expected = len(numbers) / 256
    return max(float(((np.bincount(plane, minlength=256) - expected) ** 2 / expected).sum()) for plane in planes)


# 255 degrees of freedom: mean 255, standard deviation 22.6; beyond this lies a part in 10^9.
LIMIT = 255 + 7 * math.sqrt(2 * 255)


def looks_uniform(masked: Masker) -> bool:
    return all(chi_square(masked(session)) < LIMIT for session in ROUNDS)


def looks_fresh(masked: Masker) -> bool:
    """Whether two rounds of the same update differ by something uniform."""
    return chi_square(masked(1) - masked(2)) < LIMIT


def test_masked_vectors_are_uniform_and_two_rounds_have_nothing_in_common() -> None:
    assert looks_uniform(real)
    assert looks_fresh(real)


@pytest.mark.parametrize("broken", [one_scalar_a_client, one_scalar_a_round, gaussian, padding_in_clear])
def test_a_mask_that_covers_too_little_would_be_seen(broken: Masker) -> None:
    assert not looks_uniform(broken)


@pytest.mark.parametrize("broken", [one_scalar_a_client, one_mask_for_all_rounds, padding_in_clear])
def test_a_mask_that_is_used_again_would_be_seen(broken: Masker) -> None:
    assert not looks_fresh(broken)


def test_every_coordinate_is_masked_to_the_last_bit_of_the_message() -> None:
    # A regression test: padding has been set to zero after masking, which told its place and the mask.
    for bits, length in ((32, 101), (19, 101), (16, 99), (31, 107)):
        seen = np.zeros(length, dtype=np.uint32)
        for session in range(1, 5):
            run = Session(terms_for(3, session=session, d=length, bits=bits))
            run.levels[2] = np.zeros(length, dtype=np.uint32)
            reply = decode(MaskedReply, run.mask(2, run.after_shares()[2]))
            assert len(reply.vector) == run.terms.fixed_point.packed_bytes
            seen |= unpacked(bytes(reply.vector), bits, length)
        assert seen.all()  # each fails by chance once in 2^64
        assert np.bitwise_or.reduce(seen) == 2**bits - 1


def unpacked(data: bytes, bits: int, length: int) -> npt.NDArray[np.uint32]:
    number = int.from_bytes(data, "little")
    return np.array([number >> place * bits & 2**bits - 1 for place in range(length)], dtype=np.uint32)


def test_what_is_sent_says_nothing_about_the_update_by_its_length() -> None:
    lengths = set()
    for tag, vector in enumerate((np.zeros(9), np.arange(9), np.full(9, 2**32 - 1))):
        run = Session(terms_for(3, d=9, bits=21), draw=SecureStreamBytes(tag))
        run.levels[2] = vector.astype(np.uint32)
        lengths.add(len(run.mask(2, run.after_shares()[2])))
    assert len(lengths) == 1
    assert len(bytes(pack_ring(np.zeros(9, dtype=np.uint32), 21))) == 24


# --- seeds that are shorter than they look -------------------------------------------------------------------------------

SEEDS = 1 << 16
Stretch = Callable[[bytes], bytes]
"""Seed to key."""


def stretch(seed: bytes) -> bytes:
    return mask_key(PAIR, bytes(32), 1, 2, seed)


def folded(seed: bytes) -> bytes:
    """As in systems that seeded a Mersenne Twister or a like generator: 28 bits are left of 256."""
    return sha256((int.from_bytes(sha256(seed).digest(), "big") % 2**28).to_bytes(4, "big")).digest()


def repeated(stretched: Stretch) -> int:
    """How many of 2^16 seeds start a keystream that another one started, by its first 64 bits.

    Of 2^28 keystreams 8 repeat on average; that none does has a chance of e^-8. Of 2^256 none repeats.
    """
    data = SecureStreamBytes(7)(SEEDS * SEED_BYTES)
    seeds = (data[start : start + SEED_BYTES] for start in range(0, len(data), SEED_BYTES))
    return SEEDS - len({SecureStream(stretched(seed)).uint64(1)[0] for seed in seeds})


def test_no_two_seeds_give_one_keystream() -> None:
    assert repeated(stretch) == 0


def test_seeds_folded_to_28_bits_would_be_seen_though_their_masks_look_uniform() -> None:
    assert repeated(folded) > 0
    assert looks_uniform(lambda session: clear() + keystream(folded(bytes([session]))))
