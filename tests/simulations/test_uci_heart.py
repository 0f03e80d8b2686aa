"""The UCI heart files become rows that the reader takes, with what was not recorded left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.records.jsonl import read_jsonl
from clients.site import RecordSource
from fedslm.config.compose import compose
from simulations.uci_heart import HOSPITALS, main

COMPLETE = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0"
SPARSE = "32,0,4,?,0,?,0,?,1,?,?,?,?,3"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for hospital in HOSPITALS:
        (tmp_path / f"processed.{hospital}.data").write_text(f"{COMPLETE}\n{SPARSE}\n\n")
    return tmp_path


def rows(published: Path) -> list[dict[str, str]]:
    out = published / "heart.jsonl"
    assert main(["--source", str(published), "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_each_patient_is_one_row_of_one_hospital(published: Path) -> None:
    made = rows(published)
    assert len({row["patient_id"] for row in made}) == len(made) == 2 * len(HOSPITALS)
    assert {row["hospital"] for row in made} == set(HOSPITALS)
    assert [row["completion"] for row in made[:2]] == ["no", "yes"]


def test_a_complete_row_is_told_in_words(published: Path) -> None:
    assert rows(published)[0]["prompt"] == (
        "older, man, typical angina, high blood pressure, normal cholesterol, high sugar, thick heart wall, "
        "high peak pulse, no pain on effort, large ST change, falling slope, clear vessels, fixed defect\nHeart disease?\n"
    )


def test_what_was_not_recorded_is_left_out(published: Path) -> None:
    # Cholesterol 0 means "not measured" in the Swiss file.
    assert rows(published)[1]["prompt"] == (
        "young, woman, no chest pain, normal heart tracing, pain on effort\nHeart disease?\n"
    )


def test_the_preset_reads_the_rows(published: Path) -> None:
    rows(published)
    data = compose(["experiment=uci_heart", f"data.path={published / 'heart.jsonl'}"]).data
    source = RecordSource(kind="jsonl", path=data.path, columns=data.columns, hospital="va", held_out_fraction=0.0)
    train, held_out = read_jsonl(source)
    assert [example.choices for example in train] == [(" yes", " no")] * 2
    assert held_out == ()


def test_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "processed.cleveland.data cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("line", ["1,2,3", COMPLETE.replace("63.0", "Jane"), COMPLETE[:-1] + "?"])
def test_a_malformed_line_is_named_but_not_shown(
    published: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (published / "processed.va.data").write_text(f"{COMPLETE}\n{line}\n")
    assert main(["--source", str(published), "--out", str(published / "x")]) == 1
    message = capsys.readouterr().err
    assert "processed.va.data line 2" in message
    assert "Jane" not in message
