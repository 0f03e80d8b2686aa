"""The one encoding of every message and of every kept state: fixed order, big-endian, one spelling for one value.

A document is the magic, the version, its kind and then its fields, with nothing after them. Whatever is not exactly that
is refused, so that two parties who hold equal bytes hold equal meaning, and a signature covers one thing only.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from fedslm.errors import DecodeError

MAGIC = b"FSLM"
VERSION = 2
"""Of the layouts of all documents: where one changes, this does."""
MAX_POINT = 255

Data = bytes | memoryview


class Reader:
    """Takes fields off the front of a byte string."""

    def __init__(self, data: Data) -> None:
        self._rest = memoryview(data)

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, not copied.

        Raises:
          DecodeError: fewer are left.
        """
        if count > len(self._rest):
            raise DecodeError(
                f"A message ends {count - len(self._rest)} bytes early; it was cut or altered on the way."
            )
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def number(self, width: int) -> int:
        """An unsigned number of `width` bytes."""
        return int.from_bytes(self.take(width), "big")

    def finish(self) -> None:
        """Ends the reading.

        Raises:
          DecodeError: bytes are left over.
        """
        if self._rest:
            raise DecodeError(
                f"A message has {len(self._rest)} bytes too many; it was altered or is of another version."
            )


class Codec(Protocol):
    """How one kind of field is written and read."""

    def write(self, value: Any) -> bytes:
        """The field's bytes."""
        ...

    def read(self, reader: Reader) -> Any:
        """The field's value, or a DecodeError."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """An unsigned number of `width` bytes."""

    width: int

    def write(self, value: int) -> bytes:
        """Big-endian."""
        if not 0 <= value < 256**self.width:
            raise DecodeError(f"The number {value} does not fit in {self.width} bytes.")
        return value.to_bytes(self.width, "big")

    def read(self, reader: Reader) -> int:
        """Big-endian."""
        return reader.number(self.width)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Exactly `length` bytes."""

    length: int

    def write(self, value: bytes) -> bytes:
        """As they are."""
        if len(value) != self.length:
            raise DecodeError(f"A field has {len(value)} bytes where {self.length} are needed.")
        return bytes(value)

    def read(self, reader: Reader) -> bytes:
        """As they are."""
        return bytes(reader.take(self.length))


@dataclass(frozen=True, slots=True)
class Blob:
    """Any bytes after their length in four bytes. Read without copying where `is_view`: an update has many megabytes."""

    is_view: bool = False

    def write(self, value: Data) -> bytes:
        """Length, then bytes."""
        return b"".join((len(value).to_bytes(4, "big"), value))

    def read(self, reader: Reader) -> Data:
        """Length, then bytes."""
        data = reader.take(reader.number(4))
        return data if self.is_view else bytes(data)


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 after its length in one byte; never empty."""

    def write(self, value: str) -> bytes:
        """Length, then UTF-8."""
        data = value.encode()
        if not 1 <= len(data) <= 255:
            raise DecodeError(f"A name has {len(data)} bytes; 1 to 255 are allowed.")
        return bytes([len(data)]) + data

    def read(self, reader: Reader) -> str:
        """Strict UTF-8."""
        data = reader.take(reader.number(1))
        if not data:
            raise DecodeError("A name in a message is empty.")
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise DecodeError("A name in a message is not UTF-8.") from None


@dataclass(frozen=True, slots=True)
class Points:
    """A set of hospitals as their points 1 to 255, ascending."""

    def write(self, value: tuple[int, ...]) -> bytes:
        """Count, then points."""
        _check_ascending(value)
        return bytes([len(value), *value])

    def read(self, reader: Reader) -> tuple[int, ...]:
        """Count, then points."""
        points = tuple(reader.take(reader.number(1)))
        _check_ascending(points)
        return points


def _check_ascending(points: tuple[int, ...]) -> None:
    inside = all(1 <= point <= MAX_POINT for point in points)
    if not inside or any(a >= b for a, b in itertools.pairwise(points)):
        raise DecodeError("A set of hospitals is not a list of ascending points from 1 to 255.")


@dataclass(frozen=True, slots=True)
class Many:
    """Values of one kind after their count in two bytes."""

    item: Codec

    def write(self, value: tuple[Any, ...]) -> bytes:
        """Count, then values."""
        if len(value) > 0xFFFF:
            raise DecodeError(f"A list has {len(value)} entries; at most 65535 are allowed.")
        return len(value).to_bytes(2, "big") + b"".join(self.item.write(item) for item in value)

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """Count, then values."""
        return tuple(self.item.read(reader) for _ in range(reader.number(2)))


@dataclass(frozen=True, slots=True)
class Tuple:
    """One value after the other, each of its own kind."""

    items: tuple[Codec, ...]

    def write(self, value: tuple[Any, ...]) -> bytes:
        """In order."""
        return b"".join(codec.write(item) for codec, item in zip(self.items, value, strict=True))

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """In order."""
        return tuple(codec.read(reader) for codec in self.items)


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of document: its number and its fields in order."""

    kind: int
    fields: tuple[tuple[str, Codec], ...]

    def write(self, document: object) -> bytes:
        """The document's bytes."""
        parts = [codec.write(getattr(document, name)) for name, codec in self.fields]
        return b"".join((MAGIC, bytes([VERSION, self.kind]), *parts))

    def read(self, data: Data) -> Mapping[str, Any]:
        """The values by name.

        Raises:
          DecodeError: another magic, version or kind; bytes missing or left over; a field out of its range.
        """
        reader = Reader(data)
        if bytes(reader.take(len(MAGIC))) != MAGIC:
            raise DecodeError("A message is not one of secure aggregation.")
        if (version := reader.number(1)) != VERSION:
            raise DecodeError(f"A message has version {version}; this release speaks version {VERSION}.")
        if (kind := reader.number(1)) != self.kind:
            raise DecodeError(f"A message is of kind {kind} where kind {self.kind} is expected.")
        values = {name: codec.read(reader) for name, codec in self.fields}
        reader.finish()
        return values


class Document(Protocol):
    """A frozen dataclass with a layout that names all its fields."""

    LAYOUT: ClassVar[Layout]


Kind = TypeVar("Kind", bound=Document)


def encode(document: Document) -> bytes:
    """A document's bytes."""
    return document.LAYOUT.write(document)


def decode(kind: type[Kind], data: Data) -> Kind:
    """Reads a document of that kind, and refuses every other spelling of it.

    Raises:
      DecodeError: see `Layout.read`.
    """
    return kind(**kind.LAYOUT.read(data))


def kind_of(data: Data) -> int:
    """The kind a document says it has, without reading further.

    Raises:
      DecodeError: it is too short, or of another protocol or version.
    """
    reader = Reader(data)
    if bytes(reader.take(len(MAGIC))) != MAGIC or reader.number(1) != VERSION:
        raise DecodeError("A message is not one of secure aggregation in this version.")
    return reader.number(1)
