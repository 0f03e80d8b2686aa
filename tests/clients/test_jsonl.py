"""The reader says which file and line is wrong and never repeats what the line says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.records import Records, read_records
from clients.records.jsonl import hospitals_in, read_jsonl
from clients.site import RecordSource, Site
from fedslm.config.schema import ColumnMap
from fedslm.errors import DataError

CANARY = "zq7Xylophone"
COLUMNS = ColumnMap(prompt="note", completion="answer", choices="options", patient_id="mrn", hospital="site")
GOOD = {"note": "the patient has fever", "answer": "yes", "options": ["yes", "no"], "mrn": "p1", "site": "north"}


def source(path: Path, **changes: Any) -> RecordSource:
    values: dict[str, Any] = {"kind": "jsonl", "path": str(path), "columns": COLUMNS, "held_out_fraction": 0.0}
    return RecordSource(**{**values, **changes})


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, "note": CANARY}.items() if key != name}


def test_rows_become_examples(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, b"  ", {**GOOD, "answer": 1, "mrn": 7})
    first, second = read_jsonl(source(path))[0]
    assert (first.prompt, first.completion, first.choices) == ("the patient has fever", " yes", (" yes", " no"))
    assert (first.patient_id, second.patient_id) == ("p1", "7")
    assert second.completion == " no"


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_jsonl(source(path))[0]) == 1


def test_a_source_keeps_its_hospital_only(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "site": "south"}, {**GOOD, "site": 3})
    assert hospitals_in(source(path)) == ["3", "north", "south"]
    assert [len(read_jsonl(source(path, hospital=name))[0]) for name in ("north", "3", "west")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (CANARY.encode(), "is not JSON"),
        (f'{{"note": "{CANARY}'.encode(), "is not JSON"),
        (f'["{CANARY}"]'.encode(), "is not a JSON object"),
        (f'"{CANARY}"'.encode(), "is not a JSON object"),
        (b'{"note": "' + CANARY.encode() + b'\xff"}', "is not UTF-8"),
        (b'{"note": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not JSON"),
        (without("answer"), "no column 'answer'"),
        (without("options"), "no column 'options'"),
        ({**GOOD, "answer": CANARY}, "not among the row's 2 choices"),
        ({**GOOD, "answer": 2, "note": CANARY}, "answer index 2 is outside 0 to 1"),
        ({**GOOD, "answer": -1, "note": CANARY}, "answer index -1 is outside 0 to 1"),
        ({**GOOD, "options": CANARY}, "'options' must be a list"),
        ({**GOOD, "options": [CANARY]}, "'options' must be a list"),
        ({**GOOD, "options": ["yes", None], "note": CANARY}, "'options'"),
        ({**GOOD, "note": "  ", "mrn": CANARY}, "empty prompt"),
        ({**GOOD, "note": None, "mrn": CANARY}, "'note' is empty"),
        ({**GOOD, "answer": None, "mrn": CANARY}, "'answer' is empty"),
        ({**GOOD, "note": {"text": CANARY}}, "'note' is not text"),
        ({**GOOD, "note": f"{CANARY} \ud800"}, "not valid Unicode"),
        ({**GOOD, "mrn": f"{CANARY} \ud800"}, "not valid Unicode"),
        ({**GOOD, "site": None, "note": CANARY}, "'site' is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_named_by_file_and_line_and_not_quoted(
    tmp_path: Path, row: dict[str, Any] | bytes, named: str
) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, GOOD, row)
    with pytest.raises(DataError) as refused:
        read_jsonl(source(path, hospital="north"))
    assert str(refused.value).count(f"{path} line 3") == 1
    assert named in str(refused.value)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("path", ["none.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(source(tmp_path / path))


def test_a_source_without_path_or_columns_is_refused() -> None:
    for broken in (RecordSource(kind="jsonl"), RecordSource(kind="jsonl", path="x")):
        with pytest.raises(DataError, match="path and a column map"):
            read_jsonl(broken)


@pytest.mark.parametrize("mrn", [None, "", "  "], ids=repr)
def test_a_blank_patient_id_is_no_patient(tmp_path: Path, mrn: str | None) -> None:
    path = write(tmp_path / "rows.jsonl", {**GOOD, "mrn": mrn}, without("mrn"))
    assert [example.patient_id for example in read_jsonl(source(path))[0]] == [None, None]


def read(*sources: RecordSource) -> Records:
    return read_records(Site(hospital="north", sources=sources, unit="patient", declared_population=1))


def test_a_hospital_reads_all_its_sources(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", GOOD), write(tmp_path / "2.jsonl", GOOD, GOOD)
    assert len(read(source(one), source(two)).train) == 3


def test_a_hospital_without_records_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(DataError, match="north has no records to train on"):
        read(source(path, hospital="south"))


def test_a_patient_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    rows = [{**GOOD, "mrn": f"p{number % 50}"} for number in range(200)]
    train, held_out = read_jsonl(source(write(tmp_path / "rows.jsonl", *rows), held_out_fraction=0.3))
    sides = [{example.patient_id for example in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert 5 <= len(sides[1]) <= 25
