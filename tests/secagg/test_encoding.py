"""Fixed point, masks and packing: nothing wraps, nothing is biased, nothing is lost, and memory does not grow."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedslm.crypto.prg import SecureStream
from fedslm.errors import BoundError, DecodeError, RangeError
from fedslm.secagg.encoding import Block, FixedPoint, add_masks, pack_ring, unpack_ring

WIDTHS = range(16, 33)
every_width = pytest.mark.parametrize("bits", WIDTHS)


def one_block(length: int, *, bits: int = 32, parties: int = 10, value_range: float = 4.0) -> FixedPoint:
    block = Block(name="update", length=length, value_range=value_range)
    return FixedPoint(ring_bits=bits, parties=parties, blocks=(block,))


def stream(tag: int = 0) -> SecureStream:
    return SecureStream(sha256(b"%d" % tag).digest())


def step_of(fixed_point: FixedPoint) -> float:
    return fixed_point.blocks[0].value_range / fixed_point.half


def key(tag: int) -> bytes:
    return sha256(b"key %d" % tag).digest()


@every_width
@pytest.mark.parametrize("parties", [1, 2, 3, 7, 100, 255])
def test_a_sum_of_the_highest_levels_does_not_wrap(bits: int, parties: int) -> None:
    fixed_point = one_block(3, bits=bits, parties=parties)
    assert parties * fixed_point.max_level < 2**bits
    assert parties * (fixed_point.max_level + 2) >= 2**bits - 1  # and the levels are as fine as that allows
    values = np.full(3, 4.0, dtype=np.float32)
    total = np.zeros(3, dtype=np.uint32)
    for party in range(parties):
        levels = fixed_point.encode(values, stream(party))
        assert levels.max() <= fixed_point.max_level
        total += levels
    assert np.allclose(fixed_point.decode(total, count=parties, divisor=parties), values)
    assert np.allclose(fixed_point.decode(np.zeros(3, np.uint32), count=parties, divisor=parties), -values)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(16, 32),
    parties=st.integers(1, 20),
    used=st.integers(1, 20),
    values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30),
)
def test_a_decoded_sum_is_within_one_step_a_vector(bits: int, parties: int, used: int, values: list[float]) -> None:
    used = min(used, parties)
    fixed_point = one_block(len(values), bits=bits, parties=parties)
    vector, total = np.array(values, dtype=np.float32), np.zeros(len(values), dtype=np.uint32)
    for party in range(used):
        total += fixed_point.encode(vector, stream(party))
    found = fixed_point.decode(total, count=used)
    slack = 4 * used * 2.0**-23  # float32 rounds the result once
    assert np.abs(found - used * vector.astype(np.float64)).max() < used * step_of(fixed_point) + slack


@every_width
def test_decoding_is_exact_and_ignores_bits_above_the_ring(bits: int) -> None:
    fixed_point, count = one_block(5, bits=bits, parties=3), 2
    total = np.array([0, 1, 2, fixed_point.half + 1, count * fixed_point.max_level - 1], dtype=np.uint32)
    exact = (total.astype(np.float64) - count * fixed_point.half) * step_of(fixed_point)
    above = np.array([0, 1, 2, 3, 4], dtype=np.uint64) << np.uint64(bits)
    for numbers in (total, (total + above).astype(np.uint32)):
        assert np.array_equal(fixed_point.decode(numbers, count=count), exact.astype(np.float32))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.5, 0.999])
def test_rounding_is_unbiased(share: float) -> None:
    fixed_point, draws = one_block(200_000, bits=16, parties=100), 200_000
    value = np.float32((7 + share) * step_of(fixed_point))
    exact = Fraction(float(value)) / Fraction(step_of(fixed_point)) + fixed_point.half
    levels = fixed_point.encode(np.full(draws, value), stream())
    assert set(np.unique(levels)) <= {int(exact), int(exact) + 1}
    deviation = max(float(exact % 1) * (1 - float(exact % 1)), 1e-9) ** 0.5 / draws**0.5
    assert abs(levels.mean() - float(exact)) < 5 * deviation + 1e-6


def test_rounding_does_not_repeat_itself_across_chunks() -> None:
    fixed_point = one_block(1 << 18, bits=16)
    levels = fixed_point.encode(np.full(1 << 18, 0.5 * step_of(fixed_point), dtype=np.float64), stream())
    chunks = levels.reshape(4, 1 << 16)
    assert all(not np.array_equal(chunks[0], chunk) for chunk in chunks[1:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 99_999])
def test_what_is_not_finite_is_not_sent(bad: float, place: int) -> None:
    values = np.zeros(100_000, dtype=np.float32)
    values[place] = bad
    with pytest.raises(FloatingPointError, match="not finite; nothing of it was sent"):
        one_block(100_000).encode(values, stream())


@pytest.mark.parametrize("sign", [1, -1])
def test_up_to_one_percent_outside_the_range_is_cut_to_it(sign: int) -> None:
    values = np.zeros(200_000, dtype=np.float32)
    values[-2_000:] = 40.0 * sign
    fixed_point = one_block(200_000)
    found = fixed_point.decode(fixed_point.encode(values, stream()), count=1)
    assert np.allclose(found, np.clip(values, -4, 4), atol=2 * step_of(fixed_point))


@pytest.mark.parametrize("sign", [1, -1])
def test_more_than_one_percent_outside_the_range_is_not_sent(sign: int) -> None:
    values = np.zeros(200_000, dtype=np.float32)
    values[:1] = values[-2_000:] = 4.001 * sign
    with pytest.raises(RangeError, match="Over 1% of block 'update' lies outside"):
        one_block(200_000).encode(values, stream())


def test_the_edge_of_the_range_is_inside() -> None:
    fixed_point = one_block(2)
    levels = fixed_point.encode(np.array([4.0, -4.0], dtype=np.float32), stream())
    assert list(levels) == [fixed_point.max_level, 0]


def test_each_block_has_its_own_range() -> None:
    blocks = (Block(name="update", length=3, value_range=1.0), Block(name="scores", length=2, value_range=100.0))
    fixed_point = FixedPoint(ring_bits=32, parties=2, blocks=blocks)
    values = np.array([1, -1, 0.5, 100, -37], dtype=np.float32)
    assert np.allclose(fixed_point.decode(fixed_point.encode(values, stream()), count=1), values, atol=1e-4)
    for place in range(3):
        outside = values.copy()
        outside[place] = 1.5
        with pytest.raises(RangeError, match="'update'"):
            fixed_point.encode(outside, stream())


def test_encoding_leaves_the_values_alone() -> None:
    values = np.linspace(-4, 4, 9)
    before = values.copy()
    one_block(9).encode(values, stream())
    assert np.array_equal(values, before)


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BoundError, match="5 were announced"):
        one_block(5).encode(np.zeros(shape, dtype=np.float32), stream())


def test_no_value_is_in_any_message() -> None:
    for bad in (np.nan, 123.456):
        values = np.full(50, 123.456, dtype=np.float32)
        values[7] = bad
        with pytest.raises((FloatingPointError, RangeError)) as refusal:
            one_block(50).encode(values, stream())
        assert "123" not in str(refusal.value)


@pytest.mark.parametrize("bits", [0, 8, 15, 33, 64])
def test_a_ring_of_another_width_is_refused(bits: int) -> None:
    with pytest.raises(BoundError, match="16 to 32 are allowed"):
        one_block(1, bits=bits)


@pytest.mark.parametrize("parties", [0, -1, 256])
def test_an_impossible_number_of_parties_is_refused(parties: int) -> None:
    with pytest.raises(BoundError, match="1 to 255"):
        one_block(1, parties=parties)


def test_no_block_is_refused() -> None:
    with pytest.raises(BoundError, match="0 blocks"):
        FixedPoint(ring_bits=32, parties=3, blocks=())


@pytest.mark.parametrize(
    ("length", "value_range"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0), (1, np.inf), (1, np.nan)]
)
def test_an_impossible_block_is_refused(length: int, value_range: float) -> None:
    with pytest.raises(BoundError, match="must be above 0"):
        Block(name="update", length=length, value_range=value_range)


def slow_packing(numbers: npt.NDArray[np.uint32], bits: int) -> bytes:
    """The definition: one large number in base 2^bits, least significant first."""
    packed = sum((number & 2**bits - 1) << place * bits for place, number in enumerate(numbers.tolist()))
    size = -(-len(numbers) * bits // 8)
    return bytes(packed.to_bytes(size, "little"))


@every_width
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31, 64, 101])
def test_packing_is_as_defined_and_is_undone_by_unpacking(bits: int, length: int) -> None:
    numbers = stream(length).below(2**32, length).astype(np.uint32)
    packed = bytes(pack_ring(numbers, bits))
    assert packed == slow_packing(numbers, bits)
    assert len(packed) == one_block(length, bits=bits).packed_bytes
    assert np.array_equal(unpack_ring(packed, bits, length), numbers & np.uint32(2**bits - 1))


@every_width
def test_packing_goes_on_beyond_a_chunk(bits: int) -> None:
    numbers = stream(1).below(2**bits, (1 << 17) + 13).astype(np.uint32)
    packed = pack_ring(numbers, bits)
    assert np.array_equal(unpack_ring(packed, bits, len(numbers)), numbers)


@pytest.mark.parametrize(("bits", "length"), [(bits, length) for bits in WIDTHS for length in (1, 3, 5, 9)])
def test_bits_after_the_last_number_are_refused(bits: int, length: int) -> None:
    packed = bytearray(pack_ring(np.full(length, 2**32 - 1, dtype=np.uint32), bits))
    spare = len(packed) * 8 - length * bits
    unpack_ring(bytes(packed), bits, length)
    for bit in range(8 - spare, 8):
        packed[-1] ^= 1 << bit
        with pytest.raises(DecodeError, match="bits set after its last number"):
            unpack_ring(bytes(packed), bits, length)
        packed[-1] ^= 1 << bit


@every_width
@pytest.mark.parametrize("change", [-1, 1, 4])
def test_a_vector_of_another_length_is_refused(bits: int, change: int) -> None:
    length = -(-9 * bits // 8) + change
    with pytest.raises(DecodeError, match=f"has {length} bytes; 9 numbers of {bits} bits"):
        unpack_ring(bytes(length), bits, 9)


def test_masks_are_added_and_subtracted_modulo_the_ring() -> None:
    length = (1 << 16) + 17
    vector = stream().below(2**32, length).astype(np.uint32)
    masked = vector.copy()
    add_masks(masked, plus=[key(1), key(2)], minus=[key(3)])
    keystreams = [np.empty(length, dtype="<u4") for _ in range(3)]
    for tag, numbers in enumerate(keystreams, start=1):
        SecureStream(key(tag)).fill(numbers)
    wide = vector.astype(object) + keystreams[0] + keystreams[1] - keystreams[2]
    assert np.array_equal(masked, (wide % 2**32).astype(np.uint32))
    add_masks(masked, plus=[key(3)], minus=[key(2), key(1)])
    assert np.array_equal(masked, vector)


@every_width
def test_masks_cancel_in_every_ring(bits: int) -> None:
    numbers = stream(bits).below(2**bits, 33).astype(np.uint32)
    masked = numbers.copy()
    add_masks(masked, plus=[key(1)], minus=[])
    received = unpack_ring(bytes(pack_ring(masked, bits)), bits, 33).copy()
    assert not np.array_equal(received, numbers)
    add_masks(received, plus=[], minus=[key(1)])
    assert np.array_equal(received & np.uint32(2**bits - 1), numbers)


def peak_of_masking(keys: int, length: int) -> int:
    vector = np.zeros(length, dtype=np.uint32)
    chosen = [key(tag) for tag in range(keys)]
    add_masks(vector[:16], plus=chosen, minus=[])  # whatever is allocated once
    tracemalloc.start()
    add_masks(vector, plus=chosen[: keys // 2], minus=chosen[keys // 2 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_masking_grows_neither_with_the_keys_nor_with_the_vector() -> None:
    small, many_keys, long_vector = (
        peak_of_masking(2, 1 << 18),
        peak_of_masking(60, 1 << 18),
        peak_of_masking(2, 1 << 21),
    )
    assert small < 200_000
    assert many_keys < small + 60 * 1_000  # a cipher's state a key, no keystream
    assert long_vector < small + 10_000
