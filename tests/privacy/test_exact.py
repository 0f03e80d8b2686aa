"""The pair in whole numbers is Box and Muller's, digit by digit, as another library computes it."""

from __future__ import annotations

import mpmath
import pytest

from fedslm.crypto.prg import SecureStream
from fedslm.privacy.exact import KNOWN_BITS, rounded_pair

HALF = mpmath.mpf(1) / 2


def reference(uniform: int, turn: int, scale: float) -> tuple[int, int]:
    with mpmath.workprec(500):
        u, v = ((digits + HALF) / mpmath.mpf(2) ** KNOWN_BITS for digits in (uniform, turn))
        radius = mpmath.sqrt(-2 * mpmath.log(u)) * scale
        return int(mpmath.nint(radius * mpmath.cospi(2 * v))), int(mpmath.nint(radius * mpmath.sinpi(2 * v)))


def digits(stream: SecureStream) -> int:
    first, second, third = (int(word) for word in stream.uint64(3))
    return first << 128 | second << 64 | third


@pytest.mark.parametrize("scale", [0.3, 2.0**30, 1.7 * 2.0**30, 2.0**42])
def test_random_pairs_agree(scale: float) -> None:
    stream = SecureStream(bytes(32))
    for _ in range(100):
        uniform, turn = digits(stream), digits(stream) - 2 ** (KNOWN_BITS - 1)
        assert rounded_pair(uniform, turn, scale=scale) == reference(uniform, turn, scale)


@pytest.mark.parametrize("uniform", [0, 1, 2**127, 2**191 - 1, 2**191, 2**192 - 2**100, 2**192 - 1])
@pytest.mark.parametrize("turn", [-(2**191), -1, 0, 2**189, 2**189 - 1, 2**190, 2**188, 2**191 - 1])
def test_the_ends_of_the_range_and_the_joints_between_series_agree(uniform: int, turn: int) -> None:
    assert rounded_pair(uniform, turn, scale=2.0**30) == reference(uniform, turn, 2.0**30)


def test_no_scale_is_no_noise() -> None:
    assert rounded_pair(2**190, 2**180, scale=0.0) == (0, 0)
