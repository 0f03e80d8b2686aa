"""A hospital's records, from whatever source, are whole before anything is drawn from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from clients.records import read_records
from clients.site import RecordSource, Site
from fedslm.config.schema import ColumnMap
from fedslm.errors import DataError


def site(path: Path, *patients: str | None, **changes: object) -> Site:
    rows = [{"prompt": "p", "completion": "c", "patient": patient} for patient in patients]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ColumnMap(prompt="prompt", completion="completion", patient_id="patient")
    source = RecordSource(kind="jsonl", path=str(path), columns=columns, held_out_fraction=0.0)
    made = Site(hospital="north", sources=(source,), unit="patient", declared_population=1)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_the_patient_as_unit_needs_patient_ids(tmp_path: Path) -> None:
    some = site(tmp_path / "rows.jsonl", "a", None, " ")
    with pytest.raises(DataError, match=r"2 training rows of north have no patient id.*data\.columns\.patient_id"):
        read_records(some)
    assert len(read_records(dataclasses.replace(some, unit="record")).train) == 3
    assert len(read_records(site(tmp_path / "rows.jsonl", "a", "b")).train) == 2


def test_a_site_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="north has no records to train on"):
        read_records(site(tmp_path / "rows.jsonl"))


def test_the_records_of_all_sources_are_read(tmp_path: Path) -> None:
    one, two = site(tmp_path / "one.jsonl", "a", "b"), site(tmp_path / "two.jsonl", "c")
    both = dataclasses.replace(one, sources=(*one.sources, *two.sources))
    assert [example.patient_id for example in read_records(both).train] == ["a", "b", "c"]
