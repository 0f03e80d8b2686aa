"""Shares against published vectors and an independent field; any `threshold` suffice, fewer say nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedslm.crypto.shamir import combine, evaluate, split


def slow_product(left: int, right: int) -> int:
    """The field's product as FIPS 197, section 4.2 writes it: multiply polynomials over GF(2), then reduce."""
    total = 0
    for bit in range(8):
        total ^= (left << bit) if right >> bit & 1 else 0
    for bit in range(14, 7, -1):
        total ^= (0x11B << (bit - 8)) if total >> bit & 1 else 0
    return total


def product(left: int, right: int) -> int:
    """The same by `split`: the share at `right` of the line through 0 with slope `left`."""
    return split(b"\0", threshold=2, shares=255, randomness=lambda _: bytes([left]))[right - 1][0]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    # FIPS 197, sections 4.2 and 4.2.1.
    [
        (0x57, 0x83, 0xC1),
        (0x57, 0x02, 0xAE),
        (0x57, 0x04, 0x47),
        (0x57, 0x08, 0x8E),
        (0x57, 0x10, 0x07),
        (0x57, 0x13, 0xFE),
    ],
)
def test_the_field_is_that_of_fips_197(left: int, right: int, expected: int) -> None:
    assert product(left, right) == expected
    assert slow_product(left, right) == expected


def test_every_product_is_the_slow_ones() -> None:
    table = split(bytes(256), threshold=2, shares=255, randomness=lambda _: bytes(range(256)))
    assert table == [bytes(slow_product(left, right) for left in range(256)) for right in range(1, 256)]


def test_published_shares_give_the_published_secret() -> None:
    # draft-mcgrew-tss-03, section 9.
    shares = {1: bytes.fromhex("b9fa07e185"), 2: bytes.fromhex("f5409b4511")}
    assert combine(shares) == bytes.fromhex("7465737400")


@given(coefficients=st.binary(min_size=2, max_size=9), secret=st.integers(0, 255))
def test_a_share_is_the_polynomials_value(coefficients: bytes, secret: int) -> None:
    degrees = len(coefficients)
    shares = split(bytes([secret]), threshold=degrees + 1, shares=12, randomness=lambda _: coefficients)
    for point in range(1, 13):
        power, value = 1, secret
        for coefficient in coefficients:
            power = slow_product(power, point)
            value ^= slow_product(coefficient, power)
        assert shares[point - 1] == bytes([value])


@settings(deadline=None)
@given(data=st.data(), secret=st.binary(max_size=80))
def test_any_threshold_of_the_shares_give_the_secret(data: st.DataObject, secret: bytes) -> None:
    count = data.draw(st.integers(2, 255))
    threshold = data.draw(st.integers(2, min(count, 40)))
    shares = split(secret, threshold=threshold, shares=count)
    chosen = data.draw(st.lists(st.integers(1, count), min_size=threshold, max_size=threshold + 3, unique=True))
    assert combine({point: shares[point - 1] for point in chosen}) == secret


def test_every_set_of_shares_of_a_small_sharing_gives_the_secret() -> None:
    shares = split(b"both seeds", threshold=3, shares=6)
    for chosen in itertools.combinations(range(1, 7), 3):
        assert combine({point: shares[point - 1] for point in chosen}) == b"both seeds"


@pytest.mark.parametrize("secret", [0x00, 0x5A, 0xFF])
@pytest.mark.parametrize("points", [(1, 2), (7, 255)])
def test_one_share_too_few_is_uniform_whatever_the_secret(secret: int, points: tuple[int, int]) -> None:
    # All 2^16 polynomials of degree 2 at once: each pair of shares comes from exactly one of them.
    polynomials = np.stack(np.divmod(np.arange(65536), 256)).astype(np.uint8).tobytes()
    shares = split(bytes([secret]) * 65536, threshold=3, shares=255, randomness=lambda _: polynomials)
    left, right = (np.frombuffer(shares[point - 1], np.uint8).astype(int) for point in points)
    assert np.array_equal(np.sort(left * 256 + right), np.arange(65536))


def test_too_few_shares_leave_every_secret_possible() -> None:
    share = {1: split(b"\x2a", threshold=2, shares=2)[0]}
    assert {combine({**share, 2: bytes([other])}) for other in range(256)} == {bytes([value]) for value in range(256)}


@given(point=st.integers(1, 30), wrong=st.integers(1, 255))
def test_a_false_share_spoils_the_secret_and_is_found_out(point: int, wrong: int) -> None:
    shares = split(b"\x01\x02", threshold=5, shares=30)
    honest = {own: shares[own - 1] for own in range(1, 31) if own != point}
    chosen = dict(list(honest.items())[:4])
    claimed = bytes([shares[point - 1][0] ^ wrong, shares[point - 1][1]])
    assert combine({**chosen, point: claimed}) != b"\x01\x02"
    assert evaluate(dict(list(honest.items())[:5]), point) == shares[point - 1] != claimed


def test_a_given_share_is_its_own_value() -> None:
    shares = {3: b"\x11", 9: b"\x22", 200: b"\x33"}
    assert all(evaluate(shares, point) == share for point, share in shares.items())


def test_shares_of_one_secret_differ_from_call_to_call() -> None:
    first, second = (split(bytes(32), threshold=2, shares=3) for _ in range(2))
    assert all(left != right for left, right in zip(first, second, strict=True))


def test_an_empty_secret_has_empty_shares() -> None:
    assert split(b"", threshold=2, shares=3) == [b""] * 3
    assert combine({1: b"", 2: b""}) == b""


@pytest.mark.parametrize(("threshold", "shares"), [(1, 3), (0, 3), (4, 3), (2, 256), (2, 0), (-1, -1)])
def test_impossible_numbers_of_shares_are_refused(threshold: int, shares: int) -> None:
    with pytest.raises(ValueError, match=f"found {threshold} of {shares}"):
        split(b"secret", threshold=threshold, shares=shares)


@pytest.mark.parametrize("length", [0, 5, 7])
def test_randomness_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"6 random bytes, found {length}"):
        split(b"key", threshold=3, shares=3, randomness=lambda _: bytes(length))


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({}, "at least one share"),
        ({1: b"ab", 2: b"a"}, "one length"),
        ({0: b"a", 1: b"b"}, "found one at 0"),
        ({1: b"a", 256: b"b"}, "found one at 256"),
        ({-1: b"a"}, "found one at -1"),
    ],
)
def test_shares_that_cannot_be_combined_are_refused(shares: dict[int, bytes], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        combine(shares)


@pytest.mark.parametrize("point", [-1, 256])
def test_a_point_outside_the_field_is_refused(point: int) -> None:
    with pytest.raises(ValueError, match=f"found {point}"):
        evaluate({1: b"a"}, point)
