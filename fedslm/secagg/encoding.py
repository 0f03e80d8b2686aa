"""Numbers on their way into the ring and back: fixed point with stochastic rounding, masks, bit-packing.

The ring is Z_{2^k}. All arithmetic is done in 32 bits, which is exact modulo 2^k for every k up to 32; only what travels
is cut to k bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedslm.crypto.prg import SecureStream
from fedslm.encoding import pack
from fedslm.errors import BoundError, DecodeError, RangeError
from fedslm.secagg.wire import Data

Ring = npt.NDArray[np.uint32]

MIN_RING_BITS = 16
MAX_RING_BITS = 32
MAX_OUTSIDE = 0.01
"""Share of a block's coordinates that may lie outside its range; they are cut to it. Beyond that nothing is sent."""

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Coordinates that share a range.

    Attributes:
      length: how many; at least 1.
      value_range: each coordinate lies in [-value_range, value_range], in the units of the vector.
    """

    name: str
    length: int
    value_range: float

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 < self.value_range < float("inf"):
            raise BoundError(
                f"Block '{self.name}' has length {self.length} and range {self.value_range:g}; both must be above 0."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPoint:
    """The map between real vectors and the ring.

    A coordinate x of a block with range c becomes round(x / step) + half, a level in [0, max_level], where max_level =
    2 * half and step = c / half. Rounding is stochastic: the level's expectation is exact.

    Attributes:
      ring_bits: k, 16 to 32.
      parties: how many vectors may be added; the levels are as fine as that allows.
      blocks: in the vector's order.

    Guarantees:
      parties * max_level < 2^k: a sum of honest vectors never wraps.
      A decoded sum of m vectors differs from the true one by less than m * step in every coordinate, 0 on average.

    Raises:
      BoundError: bits outside 16 to 32, parties outside 1 to 255, or no block.
    """

    ring_bits: int
    parties: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if not MIN_RING_BITS <= self.ring_bits <= MAX_RING_BITS:
            raise BoundError(f"ring_bits={self.ring_bits}; {MIN_RING_BITS} to {MAX_RING_BITS} are allowed.")
        if not 1 <= self.parties <= 255 or not self.blocks:
            raise BoundError(
                f"{self.parties} parties and {len(self.blocks)} blocks; 1 to 255 and at least 1 are allowed."
            )

    @property
    def half(self) -> int:
        """The level that stands for zero."""
        return int(2**self.ring_bits - 1) // self.parties // 2

    @property
    def max_level(self) -> int:
        """The highest level; the lowest is 0."""
        return 2 * self.half

    @property
    def length(self) -> int:
        """d: coordinates of all blocks together."""
        return sum(block.length for block in self.blocks)

    @property
    def packed_bytes(self) -> int:
        """Bytes of a vector on the wire."""
        return -(-self.length * self.ring_bits // 8)

    def described(self) -> bytes:
        """An injective encoding, for the context."""
        blocks = [
            pack(block.name.encode(), struct.pack(">Qd", block.length, block.value_range)) for block in self.blocks
        ]
        return pack(struct.pack(">II", self.ring_bits, self.parties), *blocks)

    def encode(self, values: npt.NDArray[np.floating], stream: SecureStream) -> Ring:
        """Encodes one vector.

        Args:
          values: any float type, shape [d].
          stream: rounds with it; from the operating system outside a seeded simulation.
        Returns:
          uint32 levels, shape [d].
        Raises:
          FloatingPointError: a NaN or an infinity. RangeError: over 1 % of a block lies outside its range.
            BoundError: another length than announced. Nothing of the values is in any message.
        """
        if values.shape != (self.length,):
            raise BoundError(f"The vector has {values.size} coordinates, {self.length} were announced.")
        levels = np.empty(self.length, dtype=np.uint32)
        for block, span in self._spans():
            self._encode_block(block, values[span], levels[span], stream)
        return levels

    def decode(self, total: Ring, *, count: int, divisor: float = 1.0) -> npt.NDArray[np.float32]:
        """The real sum of `count` vectors from the sum of their levels, divided by `divisor`.

        Args:
          total: uint32, shape [d]; bits above the ring's are ignored.
          divisor: what turns the sum into a mean, such as the sum of public weights.
        Returns:
          float32, shape [d], rounded once.
        """
        values = np.empty(self.length, dtype=np.float32)
        mask = np.uint32(2**self.ring_bits - 1)
        for block, span in self._spans():
            step = block.value_range / self.half / divisor
            for start in range(span.start, span.stop, _CHUNK):
                piece = slice(start, min(start + _CHUNK, span.stop))
                values[piece] = ((total[piece] & mask).astype(np.float64) - count * self.half) * step
        return values

    def _spans(self) -> Iterator[tuple[Block, slice]]:
        start = 0
        for block in self.blocks:
            yield block, slice(start, start + block.length)
            start += block.length

    def _encode_block(self, block: Block, values: npt.NDArray[np.floating], levels: Ring, stream: SecureStream) -> None:
        outside = 0
        dice = np.empty(_CHUNK, dtype="<u4")
        for start in range(0, block.length, _CHUNK):
            piece = values[start : start + _CHUNK].astype(np.float64)
            if not np.isfinite(piece).all():
                raise FloatingPointError("The update is not finite; nothing of it was sent. Lower the learning rate.")
            outside += int(np.count_nonzero(np.abs(piece) > block.value_range))
            stream.fill(dice[: len(piece)])
            levels[start : start + _CHUNK] = self._levels(piece, block, dice[: len(piece)])
        if outside > MAX_OUTSIDE * block.length:
            raise RangeError(
                f"Over {MAX_OUTSIDE:.0%} of block '{block.name}' lies outside [-{block.value_range:g}, "
                f"{block.value_range:g}]; nothing of it was sent. Raise secagg.value_range, or lower the learning rate."
            )

    def _levels(self, piece: npt.NDArray[np.float64], block: Block, dice: Ring) -> npt.NDArray[np.float64]:
        """Rounds up with the probability of what is left of each number; overwrites `piece`."""
        piece *= self.half / block.value_range
        piece += self.half
        np.clip(piece, 0, self.max_level, out=piece)
        piece += dice * 2.0**-32
        np.floor(piece, out=piece)
        return np.minimum(piece, self.max_level, out=piece)


def add_masks(vector: Ring, *, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Adds and subtracts the keystreams of many keys in place, modulo 2^32.

    Args:
      vector: uint32, shape [d].
      plus, minus: 32-byte keys; each starts one stream and is never used for another vector.

    Guarantees: needs 128 KiB beside the vector, however many keys there are.
    """
    added, subtracted = [SecureStream(key) for key in plus], [SecureStream(key) for key in minus]
    keystream = np.empty(min(len(vector), _CHUNK // 2), dtype="<u4")
    for start in range(0, len(vector), _CHUNK // 2):
        chunk = vector[start : start + _CHUNK // 2]
        part = keystream[: len(chunk)]
        for stream in added:
            stream.fill(part)
            np.add(chunk, part, out=chunk)
        for stream in subtracted:
            stream.fill(part)
            np.subtract(chunk, part, out=chunk)


def pack_ring(vector: Ring, bits: int) -> Data:
    """The low `bits` of every number, one after the other, little-endian, zero bits at the end.

    Args:
      vector: uint32, shape [d].
    Returns:
      ceil(d * bits / 8) bytes; with 32 bits a view, so the vector must not change before it is sent.
    """
    little = vector.astype("<u4", copy=False)
    if bits == MAX_RING_BITS:
        return little.data.cast("B")
    packed = b"".join(_pack_groups(little[start : start + _CHUNK], bits) for start in range(0, len(little), _CHUNK))
    return packed[: -(-len(vector) * bits // 8)]


def _pack_groups(numbers: Ring, bits: int) -> bytes:
    """Packs eight numbers at a time into `bits` bytes: byte j of a group holds its bits 8j to 8j + 7."""
    padded = np.zeros(-(-len(numbers) // 8) * 8, dtype=np.uint64)
    padded[: len(numbers)] = numbers & np.uint32(2**bits - 1)
    groups = padded.reshape(-1, 8)
    packed = np.zeros((len(groups), bits), dtype=np.uint8)
    for byte in range(bits):
        for index in range(8 * byte // bits, min((8 * byte + 7) // bits, 7) + 1):
            shift = 8 * byte - index * bits
            column = groups[:, index]
            packed[:, byte] |= (column >> np.uint64(shift) if shift >= 0 else column << np.uint64(-shift)).astype(
                np.uint8
            )
    return packed.tobytes()


def unpack_ring(data: Data, bits: int, length: int) -> Ring:
    """The inverse of `pack_ring`.

    Returns:
      uint32, shape [length]; with 32 bits a read-only view into `data`.
    Raises:
      DecodeError: another number of bytes, or bits set after the last number.
    """
    if len(data) != -(-length * bits // 8):
        raise DecodeError(
            f"A vector has {len(data)} bytes; {length} numbers of {bits} bits take {-(-length * bits // 8)}."
        )
    if bits == MAX_RING_BITS:
        return np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False)
    if (spare := -length * bits % 8) and data[-1] >> (8 - spare):
        raise DecodeError("A vector has bits set after its last number.")
    vector = np.empty(length, dtype=np.uint32)
    for start in range(0, length, _CHUNK):
        count = min(_CHUNK, length - start)
        vector[start : start + count] = _unpack_groups(
            data[start * bits // 8 : -(-(start + count) * bits // 8)], bits, count
        )
    return vector


def _unpack_groups(data: Data, bits: int, count: int) -> Ring:
    groups = -(-count // 8)
    padded = np.zeros(groups * bits, dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    bytewise = padded.reshape(groups, bits).astype(np.uint64)
    numbers = np.zeros((groups, 8), dtype=np.uint64)
    for byte in range(bits):
        for index in range(8 * byte // bits, min((8 * byte + 7) // bits, 7) + 1):
            shift = 8 * byte - index * bits
            column = bytewise[:, byte]
            numbers[:, index] |= column << np.uint64(shift) if shift >= 0 else column >> np.uint64(-shift)
    return (numbers.reshape(-1)[:count] & np.uint64(2**bits - 1)).astype(np.uint32)
