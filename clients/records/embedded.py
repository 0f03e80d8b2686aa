"""Reads one hospital of the synthetic consortium that travels in the package."""

from __future__ import annotations

from clients.site import RecordSource
from fedslm.data.example import Example
from fedslm.data.hospitals import build_hospital


def read_embedded(source: RecordSource) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The training and held-out examples of the embedded hospital that the source names.

    Raises:
      DataError: there is no such embedded hospital.
    """
    hospital = build_hospital(source.hospital or "", seed=source.seed, scale=source.scale)
    return hospital.train, hospital.held_out
