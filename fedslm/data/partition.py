"""Splits that depend on who the patient is, never on what a row says, so that both sides of a split stay apart for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedslm.data.example import Example

_DENOMINATOR = 2**64


def split_held_out(
    examples: Sequence[Example], *, fraction: float, salt: str
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Splits into training and held-out examples by a keyed hash of the patient id (or of the row without one).

    A patient's rows are all on one side, and stay there when rows are added.

    Args:
      fraction: share of patients held out, in (0, 1).
      salt: makes splits of different hospitals independent.
    Returns:
      (training, held out), each in the given order.
    """
    held = [_is_held_out(_identity(example, row), fraction=fraction, salt=salt) for row, example in enumerate(examples)]
    train = tuple(example for example, out in zip(examples, held, strict=True) if not out)
    return train, tuple(example for example, out in zip(examples, held, strict=True) if out)


def count_units(examples: Sequence[Example], *, unit: str) -> int:
    """How many privacy units the examples hold: distinct patients, or records."""
    return len({example.patient_id for example in examples}) if unit == "patient" else len(examples)


def _identity(example: Example, row: int) -> str:
    return f"patient:{example.patient_id}" if example.patient_id is not None else f"row:{row}"


def _is_held_out(identity: str, *, fraction: float, salt: str) -> bool:
    digest = hashlib.sha256(f"{salt}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * _DENOMINATOR
