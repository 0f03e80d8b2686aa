"""Secret sharing: any `threshold` of the shares give the secret back, fewer say nothing about it but its length.

Each byte is shared on its own, by a random polynomial over GF(2^8) whose value at 0 is that byte; share i holds the values
at point i + 1. Many secrets of one dealer are one call on their concatenation. Whether a share is the one that was dealt
cannot be seen from it: whoever combines shares compares the outcome with a commitment.

Bytes in, bytes out. Look-ups are indexed by secrets, so the running time is not constant: deal and combine only where
nobody untrusted measures time on the same machine.

Source: Shamir 1979, "How to share a secret"; the field is that of AES (FIPS 197, section 4), modulo
x^8 + x^4 + x^3 + x + 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

MAX_SHARES = 255
"""The field's points other than 0, which is where the secret lies."""

_POLYNOMIAL = 0x11B


def split(
    secret: bytes, *, threshold: int, shares: int, randomness: Callable[[int], bytes] = os.urandom
) -> list[bytes]:
    """Deals shares of a secret.

    Args:
      secret: any number of bytes.
      threshold: how many shares give it back; at least 2, as one share would be the secret itself.
      shares: how many are dealt, at most 255.
      randomness: gives so many random bytes; another source than the operating system is for tests.

    Returns:
      One share for each of the points 1, 2, ..., `shares`, as long as the secret.

    Guarantees: any `threshold` - 1 shares are uniform and independent of the secret.

    Raises:
      ValueError: not 2 <= `threshold` <= `shares` <= 255, or the randomness has another length than asked for.
    """
    if not 2 <= threshold <= shares <= MAX_SHARES:
        raise ValueError(f"Expected 2 <= threshold <= shares <= {MAX_SHARES}, found {threshold} of {shares}.")
    wanted = len(secret) * (threshold - 1)
    drawn = randomness(wanted)
    if len(drawn) != wanted:
        raise ValueError(f"Expected {wanted} random bytes, found {len(drawn)}.")
    totals = [_numbers(secret).copy() for _ in range(shares)]
    for degree in range(1, threshold):
        _add_term(totals, drawn[(degree - 1) * len(secret) : degree * len(secret)], degree)
    return [total.tobytes() for total in totals]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Gives the secret that shares belong to.

    Args:
      shares: point to share. All of them are used, so hand in `threshold` of them.

    Returns:
      The secret; something else, without any sign of it, when a share is wrong or there are fewer than were needed.

    Raises:
      ValueError: no share, shares of different lengths, or a point outside 1 to 255.
    """
    return evaluate(shares, 0)


def evaluate(shares: Mapping[int, bytes], point: int) -> bytes:
    """Gives the value at a point of the polynomial of lowest degree through the shares.

    With `threshold` true shares that is the share dealt for `point`: who sent another one is named that way.

    Args:
      shares: point (1 to 255) to share.
      point: 0 (the secret) to 255.

    Raises:
      ValueError: no share, shares of different lengths, or a point out of range.

    Source: Lagrange interpolation.
    """
    _check(shares, point)
    total = np.zeros(len(next(iter(shares.values()))), dtype=np.uint8)
    for own, share in shares.items():
        total ^= _numbers(bytes(share).translate(_times(_weight(own, shares, point))))
    return total.tobytes()


def _check(shares: Mapping[int, bytes], point: int) -> None:
    if len({len(share) for share in shares.values()}) != 1:
        raise ValueError(f"Expected at least one share, all of one length, found {len(shares)} shares.")
    if wrong := [own for own in shares if not 1 <= own <= MAX_SHARES]:
        raise ValueError(f"Expected shares at points 1 to {MAX_SHARES}, found one at {wrong[0]}.")
    if not 0 <= point <= MAX_SHARES:
        raise ValueError(f"Expected a point from 0 to {MAX_SHARES}, found {point}.")


def _add_term(totals: list[npt.NDArray[np.uint8]], coefficients: bytes, degree: int) -> None:
    """Adds coefficient * point^degree to the total at each of the points 1, 2, ..., in place.

    Multiplication distributes over a factor's two halves, so 32 multiples serve all 255 points by additions alone.
    """
    low = [_numbers(coefficients.translate(_times(half))) for half in range(16)]
    high = [_numbers(coefficients.translate(_times(half << 4))) for half in range(16)]
    for point, total in enumerate(totals, start=1):
        power = _EXP[_LOG[point] * degree % 255]
        total ^= low[power & 15]
        total ^= high[power >> 4]


def _weight(own: int, points: Mapping[int, bytes], at: int) -> int:
    """The Lagrange coefficient of the point `own` among `points`, for the value at `at`."""
    if at in points:
        return int(own == at)
    # In this field minus is plus is xor; a product is a sum of logarithms.
    logarithm = sum(_LOG[at ^ other] - _LOG[own ^ other] for other in points if other != own)
    return _EXP[logarithm % 255]


def _times(factor: int) -> bytes:
    """The table for `bytes.translate` that multiplies every byte by `factor`."""
    if factor == 0:
        return bytes(256)
    turned = _EXP[_LOG[factor] :] + _EXP[: _LOG[factor]]
    return b"\0" + _LOG[1:].translate(turned + b"\0")


def _numbers(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _powers() -> bytes:
    """The generator's powers 0 to 254: every element but zero, once."""
    powers, element = bytearray(), 1
    for _ in range(255):
        powers.append(element)
        double = element << 1  # times 3 is times 2 plus once
        element ^= double ^ (_POLYNOMIAL if double > 0xFF else 0)
    return bytes(powers)


_EXP = _powers()
_LOG = bytes([0, *(_EXP.index(element) for element in range(1, 256))])
"""Logarithms to the base of the generator. Entry 0 stands for nothing: zero has none."""
