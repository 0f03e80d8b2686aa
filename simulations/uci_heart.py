"""Turns the published UCI heart-disease files into JSON lines: `python -m simulations.uci_heart --source FOLDER --out FILE`.

Four real hospitals (Cleveland, Budapest, Zurich and Basel, Long Beach), one row a patient, 13 findings and a diagnosis.
Each row becomes a short note in words; a finding that was not recorded ("?", and cholesterol 0 at the Swiss hospitals)
is left out of the note. Numbers become bands at fixed clinical thresholds, because a model of a million parameters
reads words, not numbers. The answer is yes for a diagnosis of 1 to 4 and no for 0.

The data: A. Janosi, W. Steinbrunn, M. Pfisterer and R. Detrano, CC BY 4.0; publications must name them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fedslm.errors import DataError, FedSLMError

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = 14
QUESTION = "Heart disease?"
CHOICES = ("yes", "no")

Phrase = Callable[[float], str]


def main(arguments: list[str] | None = None) -> int:
    """Writes one JSON object a patient."""
    parser = argparse.ArgumentParser(description="Turns the UCI heart-disease files into JSON lines.")
    parser.add_argument("--source", type=Path, required=True, help="folder with processed.HOSPITAL.data")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        rows = [row for hospital in HOSPITALS for row in read_hospital(options.source, hospital)]
    except FedSLMError as error:
        print(f"uci_heart: {error}", file=sys.stderr)
        return error.exit_code
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} patients of {len(HOSPITALS)} hospitals written to {options.out}")
    return 0


def read_hospital(source: Path, hospital: str) -> Iterator[dict[str, object]]:
    """Yields the rows of one hospital.

    Raises:
      DataError: the file is missing, or a line does not have 14 numbers; with file and line, never the values.
    """
    path = source / f"processed.{hospital}.data"
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; --source is the folder of the published files."
        ) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(_values(line, path, number), hospital, number)


def note(values: list[float | None]) -> str:
    """A patient's findings in words, in the order of the columns; findings not recorded are left out."""
    recorded = [phrase(value) for phrase, value in zip(PHRASES, values, strict=True) if value is not None]
    return ", ".join(phrase for phrase in recorded if phrase)


def _row(values: list[float | None], hospital: str, number: int) -> dict[str, object]:
    *findings, diagnosis = values
    return {
        "prompt": f"{note(findings)}\n{QUESTION}\n",
        "completion": "yes" if diagnosis else "no",
        "choices": list(CHOICES),
        "patient_id": f"{hospital}-{number:03d}",
        "hospital": hospital,
    }


def _values(line: str, path: Path, number: int) -> list[float | None]:
    cells = [cell.strip() for cell in line.split(",")]
    try:
        values = [None if cell == "?" else float(cell) for cell in cells]
    except ValueError:
        values = []
    if len(values) != COLUMNS or values[-1] is None:
        raise DataError(
            f"{path} line {number} does not have {COLUMNS} numbers ending in a diagnosis; is it the original?"
        )
    return values


def _bands(limits: dict[float, str], beyond: str) -> Phrase:
    """Words for a number: those of the first limit it is below, else `beyond`."""

    def phrase(value: float) -> str:
        return next((words for limit, words in limits.items() if value < limit), beyond)

    return phrase


def _codes(words: dict[int, str]) -> Phrase:
    return lambda value: words.get(round(value), "")


# One for each column, in the order of heart-disease.names: age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang,
# oldpeak, slope, ca, thal.
PHRASES: tuple[Phrase, ...] = (
    _bands({45: "young", 55: "middle aged", 65: "older"}, "old"),
    _codes({0: "woman", 1: "man"}),
    _codes({1: "typical angina", 2: "atypical angina", 3: "other chest pain", 4: "no chest pain"}),
    _bands({1: "", 120: "low blood pressure", 140: "normal blood pressure"}, "high blood pressure"),
    _bands({1: "", 200: "low cholesterol", 240: "normal cholesterol"}, "high cholesterol"),
    _codes({0: "normal sugar", 1: "high sugar"}),
    _codes({0: "normal heart tracing", 1: "abnormal heart tracing", 2: "thick heart wall"}),
    _bands({120: "low peak pulse", 150: "medium peak pulse"}, "high peak pulse"),
    _codes({0: "no pain on effort", 1: "pain on effort"}),
    _bands({0.5: "no ST change", 1.5: "some ST change"}, "large ST change"),
    _codes({1: "rising slope", 2: "flat slope", 3: "falling slope"}),
    _bands({1: "clear vessels", 2: "one narrow vessel"}, "several narrow vessels"),
    _codes({3: "normal scan", 6: "fixed defect", 7: "reversible defect"}),
)


if __name__ == "__main__":
    sys.exit(main())
