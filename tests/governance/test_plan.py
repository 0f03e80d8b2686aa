"""A plan has one encoding and one hash; whatever is not exactly a plan of this version is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from fedslm.config.schema import FedAvgConfig, FedProxConfig, build
from fedslm.encoding import canonical_bytes
from fedslm.errors import ConfigError
from fedslm.governance.plan import Plan, PlannedHospital, PlannedScores, proximal_mu
from tests.builders import SECAGG, masked_plan, toy_hospitals, toy_plan

PLAN = toy_plan()
TWICE = (PLAN.hospitals[0], PLAN.hospitals[0])


def edited(path: str, value: Any) -> bytes:
    """The plan's document with one value set ("privacy.delta"), or taken out (value `...`), canonically written."""
    document = json.loads(PLAN.to_bytes())
    *parents, last = path.split(".")
    part = document
    for parent in parents:
        part = part[int(parent) if parent.isdigit() else parent]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return canonical_bytes(document)


def test_a_plan_reads_back_and_hashes_alike() -> None:
    assert Plan.from_bytes(PLAN.to_bytes()) == PLAN
    assert Plan.from_bytes(PLAN.to_bytes()).sha256 == PLAN.sha256 == toy_plan().sha256
    assert PLAN.run_id == PLAN.sha256[:12]


def test_the_encoding_is_pinned() -> None:
    # A change here makes every approved plan and every run folder unreadable: it needs another PLAN_VERSION.
    assert PLAN.sha256 == "fb0055614710c5dfd0d5ac15436f81a3bb05b229d6478481ef17bf2cbc54e03f"
    assert masked_plan().sha256 == "b2ab25560179b9e23f36aa0639aececac7d5cd3fa1223f47b88c25939a1334f2"


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "1" * 32},
        {"model": {"max_length_tokens": 33}},
        {"adapter": {"rank": 5}},
        {"adapter": {"frozen_sha256": "c" * 64}},
        {"privacy": {"noise_multiplier": 1.5000000000000002}},
        {"privacy": {"unit": "record"}},
        {"privacy": {"unit": "record", "max_records_per_patient": 4}},
        {"training": {"local_steps": 2}},
        {"strategy": FedAvgConfig(name="fedavg")},
        {"hospitals": PLAN.hospitals[::-1]},
        {"min_cohort": 3},
        {"deadline_s": 61.0},
        {"secagg": SECAGG, "min_cohort": 3},
    ],
    ids=str,
)
def test_one_changed_field_changes_the_hash(changes: dict[str, Any]) -> None:
    changed = toy_plan(**changes)
    assert changed.sha256 != PLAN.sha256
    assert Plan.from_bytes(changed.to_bytes()) == changed


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("surprise", 1, "surprise"),
        ("privacy.surprise", 1, "surprise"),
        ("strategy.surprise", 1, "surprise"),
        ("deadline_s", ..., "deadline_s"),
        ("privacy.delta", ..., "delta"),
        ("hospitals.0.weight", ..., "weight"),
        ("model.revision", ..., "edited"),
        ("version", ..., "version None"),
        ("version", 1, "version 1"),
        ("version", 2, "version 2; this release reads version 3"),
        ("version", "2", "version"),
        ("version", True, "version|edited"),
        ("masked", False, "masked"),
        ("secagg", ..., "secagg"),
        ("secagg", True, "secagg"),
        ("secagg", {}, "secagg"),
        ("nonce", "short", "nonce"),
        ("adapter.frozen_sha256", "A" * 64, "frozen_sha256"),
        ("adapter.targets", [], "targets"),
        ("privacy.delta", 1, "delta"),
        ("privacy.epsilon", -1.0, "epsilon"),
        ("privacy.epsilon", None, "epsilon"),
        ("privacy.noise_multiplier", 0.0, "noise_multiplier"),
        ("privacy.noise_multiplier", -1.0, "noise_multiplier"),
        ("privacy.sample_rate", 1.5, "sample_rate"),
        ("privacy.max_records_per_patient", ..., "max_records_per_patient"),
        ("privacy.max_records_per_patient", 0, "max_records_per_patient"),
        ("privacy.max_records_per_patient", True, "max_records_per_patient"),
        ("privacy.max_records_per_patient", 4, "protects the patient and has max_records_per_patient=4"),
        ("training.rounds", 0, "rounds"),
        ("training.rounds", "3", "rounds"),
        ("training.rounds", 3.0, "rounds|canonical"),
        ("training.rounds", True, "rounds"),
        ("training.learning_rate", 1, "canonical"),
        ("training.learning_rate", "1.0", "canonical"),
        ("hospitals.0.weight", 1.5, "weight"),
        ("hospitals.0.weight", 0.0, "weight"),
        ("hospitals.0.name", "../etc", "name"),
        ("hospitals.0.name", "hospital-1", "twice"),
        ("hospitals", [], "min_cohort=2"),
        ("min_cohort", 4, "min_cohort=4"),
        ("min_cohort", 0, "min_cohort"),
    ],
)
def test_a_document_that_is_not_exactly_a_plan_is_refused(path: str, value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Plan.from_bytes(edited(path, value))


@pytest.mark.parametrize(
    "spell",
    [
        lambda data: data.replace(b",", b", ", 1),
        lambda data: json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode(),
        lambda data: data[:-1] + b',"version":1}',
        lambda data: data.replace(b'"deadline_s":60.0', b'"deadline_s":NaN'),
        lambda data: data.replace(b'"deadline_s":60.0', b'"deadline_s":6e1'),
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: b"",
    ],
    ids=["space", "key order", "duplicate key", "NaN", "exponent", "cut short", "newline", "empty"],
)
def test_another_spelling_is_refused(spell: Any) -> None:
    assert spell(PLAN.to_bytes()) != PLAN.to_bytes()
    with pytest.raises(ConfigError):
        Plan.from_bytes(spell(PLAN.to_bytes()))


SCORED = {"privacy": {"scores": PlannedScores(noise_multiplier=2.0)}}


def test_scores_are_part_of_the_plan_and_of_the_masked_vector() -> None:
    plan = masked_plan(**SCORED)
    assert Plan.from_bytes(plan.to_bytes()) == plan
    assert plan.sha256 != masked_plan().sha256
    assert plan.vector_length == plan.adapter.trained_parameters + 2 == masked_plan().vector_length + 2


@pytest.mark.parametrize(
    ("plan", "changes", "says"),
    [
        (toy_plan, {}, "secagg=none"),
        (masked_plan, {"secagg": {"ring_bits": 16}}, "secagg.ring_bits=16"),
        (masked_plan, {"secagg": {"ring_bits": 23}}, "secagg.ring_bits=23"),
        (masked_plan, {"privacy": {"unit": "record"}}, "privacy.unit=record"),
        (masked_plan, {"privacy": {"mode": "none", "noise_multiplier": 0.0, "epsilon": None}}, "privacy=none"),
    ],
)
def test_scores_leave_only_noised_by_the_patient_and_masked(
    plan: Callable[..., Plan], changes: dict[str, Any], says: str
) -> None:
    scored = {**changes, "privacy": {**SCORED["privacy"], **changes.get("privacy", {})}}
    with pytest.raises(ConfigError, match=f"privacy.scores=dp but {says}"):
        plan(**scored)
    masked_plan(**SCORED, secagg={"ring_bits": 24})


def test_scores_without_noise_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.scores\.noise_multiplier=0"):
        Plan.from_bytes(edited("privacy.scores", {"noise_multiplier": 0.0}))


def test_privacy_without_noise_or_bound_cannot_be_planned() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier above 0"):
        toy_plan(privacy={"noise_multiplier": 0.0})
    with pytest.raises(ConfigError, match="an epsilon"):
        toy_plan(privacy={"epsilon": None})
    assert toy_plan(privacy={"mode": "none", "noise_multiplier": 0.0, "epsilon": None}).privacy.mode == "none"


def test_a_patients_records_are_bounded_only_where_the_record_is_the_unit() -> None:
    assert toy_plan(privacy={"unit": "record", "max_records_per_patient": 4}).privacy.max_records_per_patient == 4
    with pytest.raises(ConfigError, match="protects the patient and has max_records_per_patient=4"):
        toy_plan(privacy={"max_records_per_patient": 4})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"secagg": {"colluders": 1}}, r"secagg\.colluders=1 with secagg\.honest=3 needs 4 hospitals.*min_cohort=3"),
        ({"secagg": {"ring_bits": 33}}, "ring_bits"),
        ({"secagg": {"ring_bits": 15}}, "ring_bits"),
        ({"secagg": {"honest": 1}}, "honest"),
        ({"secagg": {"colluders": -1}}, "colluders"),
        ({"secagg": {"value_range": 0.0}}, "value_range"),
        ({"secagg": {"step_deadline_s": float("inf")}}, "step_deadline_s"),
        ({"secagg": {"surprise": 1}}, "surprise"),
        ({"min_cohort": 2}, "min_cohort=2; a sum of fewer than 3"),
    ],
    ids=str,
)
def test_a_masked_plan_whose_promise_cannot_be_kept_is_refused(changes: dict[str, Any], named: str) -> None:
    document = json.loads(masked_plan(secagg={"honest": 3}).to_bytes())
    secagg = {**document["secagg"], **changes.pop("secagg", {})}
    with pytest.raises(ConfigError, match=named):
        build(Plan, {**document, "secagg": secagg, **changes})


def test_two_hospitals_cannot_be_masked() -> None:
    with pytest.raises(ConfigError, match="at least 3 hospitals, there are 2"):
        masked_plan(hospitals=toy_hospitals(2), min_cohort=2)


def test_a_masked_plan_reads_back() -> None:
    assert Plan.from_bytes(masked_plan().to_bytes()) == masked_plan()
    assert masked_plan().masked
    assert not PLAN.masked


def test_two_hospitals_of_one_name_cannot_be_planned() -> None:
    with pytest.raises(ConfigError, match="twice"):
        toy_plan(hospitals=TWICE)


def test_a_hospital_is_found_by_its_name_only() -> None:
    assert PLAN.hospital("hospital-1") == PlannedHospital(name="hospital-1", declared_population=40, weight=1.0)
    with pytest.raises(ConfigError, match=r"'elsewhere'.*hospital-0, hospital-1, hospital-2"):
        PLAN.hospital("elsewhere")


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.min_cohort = 1  # type: ignore[misc]


def test_only_fedprox_pulls() -> None:
    assert proximal_mu(FedProxConfig(name="fedprox", proximal_mu=0.3)) == 0.3
    assert proximal_mu(FedAvgConfig(name="fedavg")) == 0.0
