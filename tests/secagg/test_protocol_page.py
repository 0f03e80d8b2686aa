"""`docs/protocol.md` states the bytes that the code writes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from fedslm.secagg import messages, wire
from fedslm.secagg.wire import Blob, Codec, Fixed, Many, Number, Points, Text, Tuple

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def described(codec: Codec) -> str:
    match codec:
        case Number(width):
            return f"u{8 * width}"
        case Fixed(length):
            return f"{length} bytes"
        case Many(item):
            return f"list of {described(item)}"
        case Tuple(items):
            return f"({', '.join(map(described, items))})"
        case Blob():
            return "bytes"
        case Text():
            return "text"
        case Points():
            return "points"
    raise AssertionError(codec)


def rows() -> list[str]:
    kinds = [kind for _, kind in inspect.getmembers(messages, inspect.isclass) if hasattr(kind, "LAYOUT")]
    lines = {
        kind.LAYOUT.kind: f"| {kind.LAYOUT.kind} | {kind.__name__} | "
        + "; ".join(f"{name}: {described(codec)}" for name, codec in kind.LAYOUT.fields)
        + " |"
        for kind in kinds
    }
    return [lines[number] for number in sorted(lines)]


def test_the_page_lists_every_message_with_its_bytes_and_no_other() -> None:
    table = PAGE.read_text().split("<!-- layouts")[1].split("<!-- end of layouts")[0]
    assert [line for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()] == rows()


@pytest.mark.parametrize("fact", [wire.MAGIC.decode(), f"version in one byte ({wire.VERSION})"])
def test_the_page_names_magic_and_version(fact: str) -> None:
    assert fact in PAGE.read_text()
