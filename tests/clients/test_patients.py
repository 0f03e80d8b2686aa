"""A patient is in one population of a hospital, and nobody learns who it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clients.database import Database
from clients.ledger import open_ledger
from clients.patients import KEY_FILE, PatientRegister, enrol
from clients.records import Records
from clients.site import Site
from fedslm.data.example import Example
from fedslm.errors import DataError, LedgerError, RunError
from simulations.identities import without_roster


@contextmanager
def register(folder: Path, population: str = "adults") -> Iterator[PatientRegister]:
    with Database(folder, hospital="hospital-0", population=population) as database:
        yield PatientRegister(database)


def enter(folder: Path, population: str, *patients: str) -> None:
    with register(folder, population) as found:
        found.enter(patients)


def test_a_patient_of_another_population_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, "adults", "ann", "bob", "ann")
    enter(tmp_path, "children", "carl")
    with pytest.raises(DataError, match="1 of 2 patients are in the population 'adults'") as refused:
        enter(tmp_path, "children", "bob", "dora")
    assert "bob" not in str(refused.value)
    enter(tmp_path, "children", "dora")  # the refusal entered nobody
    enter(tmp_path, "adults", "bob")


def sides(folder: Path, population: str, trained: str, held_out: str | None) -> None:
    """Enters patients, one a letter."""
    with register(folder, population) as found:
        found.enter(trained, held_out=held_out)


def test_a_patient_on_both_sides_is_refused_and_not_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 patients of 'adults' are both trained on and held out") as refused:
        sides(tmp_path, "adults", "xyz", "zw")
    assert "z" not in str(refused.value).replace("'adults'", "")
    sides(tmp_path, "adults", "zw", "xy")  # the refusal entered nobody


@pytest.mark.parametrize(("trained", "held_out"), [("ab", "cd"), ("ac", "d"), ("a", "bd"), ("ac", None)])
def test_a_patient_stays_on_one_side_once_scores_were_released(
    trained: str, held_out: str | None, tmp_path: Path
) -> None:
    sides(tmp_path, "adults", "ab", "cd")
    if (trained, held_out) == ("ab", "cd"):
        sides(tmp_path, "adults", trained, held_out)
        return
    with pytest.raises(
        DataError, match=r"1 patients of 'adults' were .* epsilon rests on a patient staying on one side"
    ):
        sides(tmp_path, "adults", trained + "x", None if held_out is None else held_out + "y")
    sides(tmp_path, "adults", "aby", "cdx")  # the refusal entered nobody


def test_sides_count_from_the_first_scores_on(tmp_path: Path) -> None:
    sides(tmp_path, "adults", "ab", None)
    sides(tmp_path, "adults", "bc", None)
    sides(tmp_path, "adults", "b", "a")  # trained on under a plan that is charged by itself
    with pytest.raises(DataError, match="were held out"):
        sides(tmp_path, "adults", "ab", None)
    with pytest.raises(DataError, match="were trained"):
        sides(tmp_path, "adults", "c", "b")
    sides(tmp_path, "adults", "bc", None)


def test_a_held_out_patient_is_of_one_population_as_well(tmp_path: Path) -> None:
    sides(tmp_path, "adults", "a", "b")
    for trained, held_out in (("b", None), ("c", "b"), ("c", "a")):
        with pytest.raises(DataError, match="patients are in the population 'adults'"):
            sides(tmp_path, "children", trained, held_out)


def held(patient: str | None) -> Example:
    return Example(prompt="cough", completion="cold", patient_id=patient)


def test_scored_records_say_whose_they_are_and_count_as_data(tmp_path: Path) -> None:
    plain = Site(hospital="hospital-0", sources=({"kind": "embedded"},), unit="patient", declared_population=40)
    (site,) = without_roster((plain,), tmp_path)
    known = Records(train=(held("ann"),), held_out=(held("bob"),))
    unknown = Records(train=(held("ann"),), held_out=(held("bob"), held(None)))
    with pytest.raises(DataError, match="1 held-out rows of hospital-0 have no patient id"):
        enrol(site, unknown, scored=True)
    for records, scored in ((known, False), (known, True), (unknown, False)):
        enrol(site, records, scored=scored)
    with open_ledger(site) as ledger:
        kinds = [type(row.entry).__name__ for row in ledger.read().rows]
    assert kinds == ["Opened", "Data", "Data"]


def test_many_patients_are_looked_up_at_once(tmp_path: Path) -> None:
    enter(tmp_path, "adults", *(f"a{number}" for number in range(3000)))
    with pytest.raises(DataError, match="2 of 1502 patients"):
        enter(tmp_path, "children", *(f"c{number}" for number in range(1500)), "a1", "a2999")


def test_the_file_does_not_say_who_it_is(tmp_path: Path) -> None:
    enter(tmp_path, "adults", "ann-of-green-gables")
    assert all(b"green-gables" not in path.read_bytes() for path in tmp_path.iterdir())
    with sqlite3.connect(tmp_path / "adults.sqlite") as db:
        (code,) = db.execute("SELECT code FROM patients").fetchone()
    other = tmp_path / "other"
    enter(other, "adults", "ann-of-green-gables")
    with sqlite3.connect(other / "adults.sqlite") as db:
        assert db.execute("SELECT code FROM patients").fetchone() != (code,)


def test_a_key_that_is_gone_is_missed(tmp_path: Path) -> None:
    enter(tmp_path, "adults", "ann")
    (tmp_path / KEY_FILE).unlink()
    for population in ("adults", "children"):
        with pytest.raises(LedgerError, match="is gone"):
            enter(tmp_path, population, "ann")


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, "adults", "ann")
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(LedgerError, match="is damaged"):
        enter(tmp_path, "adults", "ann")


def test_a_population_that_cannot_be_read_stops_the_others(tmp_path: Path) -> None:
    enter(tmp_path, "adults", "ann")
    (tmp_path / "adults.sqlite").write_bytes(b"not a database" * 100)
    (tmp_path / "adults.sqlite-wal").unlink(missing_ok=True)
    with pytest.raises(RunError, match="nothing was trained"):
        enter(tmp_path, "children", "bob")


def test_a_fingerprint_changes_with_the_records_and_with_the_hospital(tmp_path: Path) -> None:
    with register(tmp_path / "one") as one, register(tmp_path / "two") as two:
        found = [
            one.fingerprint([b"ab", b"c"]),
            one.fingerprint([b"a", b"bc"]),
            one.fingerprint([b"c", b"ab"]),
            two.fingerprint([b"ab", b"c"]),
        ]
        assert one.fingerprint([b"ab", b"c"]) == found[0]
    assert len(set(found)) == 4
