"""Readers of patients' records, one module a kind. They run only inside a hospital."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clients.records.embedded import read_embedded
from clients.records.jsonl import read_jsonl
from clients.site import RecordSource, Site
from fedslm.data.example import Example
from fedslm.data.hospitals import shuffle_answers
from fedslm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A hospital's examples: those it trains on and those it never does."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def read_records(site: Site) -> Records:
    """Reads all of a site's sources.

    Raises:
      DataError: a source cannot be read, nothing is left to train on, or rows do not say whose they are where the
        patient is the privacy unit.
    """
    readers: dict[str, Callable[[RecordSource], tuple[tuple[Example, ...], tuple[Example, ...]]]] = {
        "jsonl": read_jsonl,
        "embedded": read_embedded,
    }
    parts = [readers[source.kind](source) for source in site.sources]
    train = tuple(
        example for source, part in zip(site.sources, parts, strict=True) for example in _kept(source, part[0])
    )
    if not train:
        raise DataError(
            f"The hospital {site.hospital} has no records to train on; check its source and the hospital column."
        )
    missing = sum(example.patient_id is None for example in train)
    if site.unit == "patient" and missing:
        raise DataError(
            f"{missing} training rows of {site.hospital} have no patient id, and the privacy unit is the patient; map a "
            "column to it (in a simulation data.columns.patient_id), or agree on the record as unit."
        )
    return Records(train=train, held_out=tuple(example for part in parts for example in part[1]))


def _kept(source: RecordSource, train: tuple[Example, ...]) -> tuple[Example, ...]:
    return shuffle_answers(train, seed=source.seed) if source.shuffle_labels else train
