"""Reads JSON lines: one object a row, mapped to examples by a column map.

Errors name the file and the line, never the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.site import RecordSource
from fedslm.config.schema import ColumnMap
from fedslm.data.example import Example
from fedslm.data.partition import split_held_out
from fedslm.errors import DataError


def read_jsonl(source: RecordSource) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Reads a file's rows (of one hospital, where the source names it) and splits off the held-out patients.

    Raises:
      DataError: the file, a column or a row is missing or malformed, with file and line number.
    """
    path, columns = _location(source)
    examples = [
        _example(row, columns, path, line)
        for line, row in read_rows(path)
        if source.hospital is None or _text(row, columns.hospital, path, line) == source.hospital
    ]
    return split_held_out(examples, fraction=source.held_out_fraction, salt=f"held-out {source.hospital}")


def hospitals_in(source: RecordSource) -> list[str]:
    """The distinct values of the hospital column, sorted."""
    path, columns = _location(source)
    return sorted({_text(row, columns.hospital, path, line) for line, row in read_rows(path)})


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for every line that is not blank.

    Raises:
      DataError: no such file, not UTF-8, not JSON, or not an object.
    """
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield line, _parse(raw, path, line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check data.path.") from None


def _parse(raw: bytes, path: Path, line: int) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path} line {line} is not UTF-8; convert the file first.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} line {line} is not JSON; every line must be one JSON object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{path} line {line} is not a JSON object; every line must be one.")
    return row


def _location(source: RecordSource) -> tuple[Path, ColumnMap]:
    if source.path is None or source.columns is None:
        raise DataError("A jsonl source needs a path and a column map; set both.")
    return Path(source.path).expanduser(), source.columns


def _cell(row: dict[str, Any], column: str | None, path: Path, line: int) -> Any:
    if column is None or column not in row:
        raise DataError(f"{path} line {line} has no column '{column}'; it has {_columns(row)}.")
    return row[column]


def _text(row: dict[str, Any], column: str | None, path: Path, line: int) -> str:
    """A cell that must hold text, or a number to be read as text."""
    value = _cell(row, column, path, line)
    if value is None:
        raise DataError(f"{path} line {line}: column '{column}' is empty (null); every row needs a value.")
    if not isinstance(value, str | int | float):
        raise DataError(f"{path} line {line}: column '{column}' is not text; check the column map.")
    return _valid(str(value), column, path, line)


def _valid(text: str, column: str | None, path: Path, line: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no tokenizer can read
        raise DataError(
            f"{path} line {line}: column '{column}' is not valid Unicode; write the file anew as UTF-8."
        ) from None
    return text


def _columns(row: dict[str, Any]) -> str:
    # Names only where they look like names: in a damaged file a key can be a piece of text.
    names = [name for name in sorted(row) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name)]
    return ", ".join(names[:12]) or f"{len(row)} others"


def _example(row: dict[str, Any], columns: ColumnMap, path: Path, line: int) -> Example:
    choices = _choices(row, columns, path, line)
    completion = row.get(columns.completion)
    if choices and isinstance(completion, int) and not isinstance(completion, bool):
        completion = _by_index(choices, completion, path, line)
    else:
        completion = _text(row, columns.completion, path, line)
    prompt = _text(row, columns.prompt, path, line)
    patient = row.get(columns.patient_id) if columns.patient_id else None
    identity = "" if patient is None else _valid(str(patient).strip(), columns.patient_id, path, line)
    try:
        return Example(
            prompt=prompt,
            completion=_spaced(completion),
            choices=tuple(_spaced(choice) for choice in choices),
            patient_id=identity or None,  # a blank cell is nobody
        )
    except DataError as error:
        raise DataError(f"{path} line {line}: {error}") from None


def _choices(row: dict[str, Any], columns: ColumnMap, path: Path, line: int) -> tuple[str, ...]:
    if columns.choices is None:
        return ()
    value = _cell(row, columns.choices, path, line)
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"{path} line {line}: column '{columns.choices}' must be a list of at least two options.")
    if not all(isinstance(option, str | int | float) for option in value):
        raise DataError(f"{path} line {line}: an option in column '{columns.choices}' is not text; correct the row.")
    return tuple(_valid(str(option), columns.choices, path, line) for option in value)


def _by_index(choices: tuple[str, ...], index: int, path: Path, line: int) -> str:
    if not 0 <= index < len(choices):
        raise DataError(
            f"{path} line {line}: answer index {index} is outside 0 to {len(choices) - 1}; indices count from 0."
        )
    return choices[index]


def _spaced(text: str) -> str:
    # Byte-level tokenizers write a word's leading space into its token: " yes" and "yes" are different answers.
    return text if text[:1].isspace() else f" {text}"
