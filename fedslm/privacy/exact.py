"""Box and Muller's pair in whole numbers: decides the roundings that float64 leaves open.

Fixed point, so that every machine and every thread finds the same digits. Called for some fifty pairs in a million.
"""

from __future__ import annotations

import math

KNOWN_BITS = 192
"""Binary digits of a uniform number that `rounded_pair` is given."""

_BITS = 256
"""Binary digits after the point in all that follows; 64 more than are known take up the error of the series."""

_ONE = 1 << _BITS
_TWO_PI = (
    628318530717958647692528676655900576839433879875021164194988918461563281257241799725606965 << _BITS
) // 10**89


def rounded_pair(uniform: int, turn: int, *, scale: float) -> tuple[int, int]:
    """Rounds scale sqrt(-2 ln U) cos(2 pi V), and the same with sin, to the nearest whole numbers.

    Args:
      uniform: the first 192 binary digits of U in (0, 1).
      turn: the same of V in [-1/2, 1/2), as a signed number.
      scale: finite and at least 0.

    Returns:
      The pair for the U and V whose further digits are a half.

    Guarantees: without the half and the rounding, off by less than 2^-191 scale (1 / (U R) + 8) with R = sqrt(-2 ln U).
    """
    half = 1 << (_BITS - KNOWN_BITS - 1)
    radius = math.isqrt(-2 * _log((uniform << (_BITS - KNOWN_BITS)) + half) << _BITS)
    numerator, denominator = scale.as_integer_ratio()
    cosine, sine = _cos_and_sin((turn << (_BITS - KNOWN_BITS)) + half)
    return (
        _nearest(radius * cosine * numerator, denominator << (2 * _BITS)),
        _nearest(radius * sine * numerator, denominator << (2 * _BITS)),
    )


def _log(number: int) -> int:
    """The natural logarithm of a number in (0, 1], as ln m + e ln 2 with m near 1."""
    exponent = number.bit_length() - _BITS
    mantissa = number << -exponent
    if 2 * mantissa * mantissa < _ONE * _ONE:  # below sqrt(1/2)
        mantissa, exponent = 2 * mantissa, exponent - 1
    return _twice_atanh(mantissa - _ONE, mantissa + _ONE) + exponent * _LN_2


def _twice_atanh(numerator: int, denominator: int) -> int:
    """Sums the series of 2 atanh(z), which is ln((1 + z) / (1 - z)), for z of at most 1/3."""
    power = (numerator << _BITS) // denominator
    square = power * power >> _BITS
    total, order = 0, 1
    while power not in (0, -1):  # rounding is downwards: a negative power ends at -1
        total += power // order
        power = power * square >> _BITS
        order += 2
    return 2 * total


_LN_2 = _twice_atanh(1, 3)


def _cos_and_sin(turn: int) -> tuple[int, int]:
    """Cosine and sine of 2 pi `turn`: Taylor's series within an eighth of a turn, and quarter turns."""
    quarters = _nearest(4 * turn, _ONE)
    angle = (turn - quarters * (_ONE >> 2)) * _TWO_PI >> _BITS
    sums, term, order = [0, 0], _ONE, 0
    while term not in (0, -1):
        sums[order % 2] += -term if order % 4 >= 2 else term
        order += 1
        term = (term * angle >> _BITS) // order
    cosine, sine = sums
    for _ in range(quarters % 4):
        cosine, sine = -sine, cosine
    return cosine, sine


def _nearest(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
