"""A hospital believes no figure of a plan that it can recompute or bound itself."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.app import build_client_app
from clients.promise import verify_epsilon
from clients.site import SIMULATION_KEY, SITE_FILE_KEY, Site, is_simulated, read_site
from fedslm.config.schema import build
from fedslm.errors import ConfigError, PrivacyError
from fedslm.flower.records import ErrorCode
from fedslm.governance.plan import Plan, PlannedScores
from fedslm.privacy.accounting import calibrate_scores_noise, epsilon_spent
from fedslm.privacy.planned import planned_mechanism
from tests.builders import masked_plan, toy_hospitals, toy_plan
from tests.clients.conftest import Ward, node, train_message

HOSPITAL = "hospital-1"


def site(**changes: Any) -> Site:
    keys = {"identity": "i.pem", "roster": "roster.json", "roster_sha256": "a" * 64, "state_folder": "state"}
    values = {"hospital": HOSPITAL, "sources": [{"kind": "embedded"}], "unit": "patient", "declared_population": 40}
    return Site(**{**values, **keys, "allow_unmasked": True, **changes})


def test_noise_that_gives_what_the_plan_says_is_accepted() -> None:
    plan = toy_plan()
    spent = epsilon_spent(
        planned_mechanism(plan, HOSPITAL), sessions=plan.privacy.max_sessions, delta=plan.privacy.delta
    )
    verify_epsilon(toy_plan(privacy={"epsilon": spent}), HOSPITAL)
    with pytest.raises(PrivacyError, match="but its noise gives"):
        verify_epsilon(toy_plan(privacy={"epsilon": 0.99 * spent}), HOSPITAL)


@pytest.mark.parametrize("lie", [{"noise_multiplier": 0.3}, {"max_sessions": 3000}, {"sample_rate": 1.0}])
def test_a_plan_that_costs_more_than_it_says_is_refused(lie: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="epsilon 3"):
        verify_epsilon(toy_plan(privacy={"epsilon": 3.0, **lie}), HOSPITAL)


def scored(sigma: float) -> Plan:
    return masked_plan(
        privacy={"epsilon": 7.0, "noise_multiplier": 3.0, "scores": PlannedScores(noise_multiplier=sigma)}
    )


def test_noise_on_scores_that_costs_more_than_the_plan_says_is_refused() -> None:
    least = calibrate_scores_noise(epsilon=7.0, delta=1e-5, sessions=3)
    verify_epsilon(scored(least), HOSPITAL)
    with pytest.raises(PrivacyError, match="but its noise gives"):
        verify_epsilon(scored(0.99 * least), HOSPITAL)


@pytest.mark.parametrize(
    "privacy",
    [
        {"noise_multiplier": 0.01, "sample_rate": 0.5},
        {"noise_multiplier": 1e-200},
        {"max_sessions": 100_000_000},
        {"epsilon": 1e-300, "delta": 1e-15, "noise_multiplier": 900.0, "sample_rate": 1e-9},
        {"noise_multiplier": 0.2, "sample_rate": 1.0, "max_sessions": 1_000_000},
    ],
    ids=["little noise", "hardly any", "many sessions", "dust", "everything"],
)
def test_a_plan_that_would_keep_the_accountant_busy_is_refused_at_once(privacy: dict[str, Any]) -> None:
    started = time.process_time()
    with pytest.raises(PrivacyError):
        verify_epsilon(toy_plan(privacy=privacy), HOSPITAL)
    assert time.process_time() - started < 10


def test_a_delta_that_could_publish_a_patient_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"delta=0\.001"):
        site().approve(toy_plan(privacy={"delta": 1e-3}))
    site().approve(toy_plan())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"min_cohort": 5}, "min_cohort=5"),
        ({"min_colluders": 2}, "min_colluders=2"),
        ({"min_honest": 3}, "min_honest=3"),
    ],
)
def test_a_promise_below_what_the_hospital_asks_for_is_refused(changes: dict[str, int], says: str) -> None:
    plan = masked_plan(hospitals=toy_hospitals(4), min_cohort=4, secagg={"colluders": 1, "honest": 2})
    site().approve(plan)
    with pytest.raises(ConfigError, match=says):
        site(**changes).approve(plan)


def test_fewer_colluders_than_a_third_must_be_agreed_to() -> None:
    plan = masked_plan(hospitals=toy_hospitals(7), min_cohort=4, secagg={"colluders": 1, "honest": 2})
    with pytest.raises(ConfigError, match="min_colluders=2"):
        site().approve(plan)
    site(min_colluders=1).approve(plan)


def test_only_a_node_that_says_so_is_in_a_simulation() -> None:
    assert is_simulated({"partition-id": 0})
    assert is_simulated({SITE_FILE_KEY: "site.yaml", SIMULATION_KEY: "true"})
    assert not is_simulated({SITE_FILE_KEY: "site.yaml"})


def test_a_changed_site_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    values = {"hospital": HOSPITAL, "sources": [{"kind": "embedded"}], "unit": "patient", "declared_population": 40}
    path.write_text(yaml.safe_dump(values))
    first = read_site(path)
    assert read_site(path) is first
    path.write_text(yaml.safe_dump({**values, "declared_population": 41}))
    assert read_site(path) == dataclasses.replace(first, declared_population=41)


def test_a_site_file_copied_from_a_simulation_is_refused_by_a_real_node(ward: Ward, tmp_path: Path) -> None:
    seeded = node(tmp_path, ward.sites[0])
    assert not build_client_app()(train_message(ward.request()), seeded).has_error()
    real = node(tmp_path, ward.sites[0])
    del real.node_config[SIMULATION_KEY]
    reply = build_client_app()(train_message(ward.request()), real)
    assert reply.error.code == ErrorCode.PLAN_REFUSED
    anchor = str(tmp_path / "elsewhere" / "anchor")
    unseeded = node(tmp_path / "real", dataclasses.replace(ward.sites[0], simulation_seed=None, anchor_file=anchor))
    del unseeded.node_config[SIMULATION_KEY]
    assert not build_client_app()(train_message(ward.request()), unseeded).has_error()


def test_nobody_trains_on_a_plan_that_lies_about_its_epsilon(ward: Ward, tmp_path: Path) -> None:
    request = ward.request()
    privacy = dataclasses.replace(request.plan.privacy, mode="local", noise_multiplier=1.0, epsilon=0.01)
    cheap = dataclasses.replace(request.plan, privacy=privacy)
    reply = build_client_app()(train_message(dataclasses.replace(request, plan=cheap)), node(tmp_path, ward.sites[0]))
    assert reply.error.code == ErrorCode.PLAN_REFUSED


def test_the_site_file_in_the_readme_is_one() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    values = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    written = build(Site, {**values, "roster_sha256": "a" * 64})
    north = dataclasses.replace(toy_hospitals(1)[0], name="north", declared_population=2400)
    members = (north, *toy_hospitals(4))
    written.approve(masked_plan(hospitals=members, secagg={"colluders": 1}, privacy={"delta": 1e-6}))
