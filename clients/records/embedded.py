"""Reads one hospital of the synthetic consortium that travels in the package."""

from __future__ import annotations

from clients.site import RecordSource
from fedslm.data.example import Example
from fedslm.data.hospitals import build_hospitals
from fedslm.errors import DataError


def read_embedded(source: RecordSource) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The training and held-out examples of the embedded hospital that the source names.

    Raises:
      DataError: there is no such embedded hospital.
    """
    hospitals = {hospital.name: hospital for hospital in build_hospitals(seed=source.seed, scale=source.scale)}
    if source.hospital not in hospitals:
        raise DataError(f"There is no embedded hospital '{source.hospital}'; there are {', '.join(hospitals)}.")
    hospital = hospitals[source.hospital]
    return hospital.train, hospital.held_out
