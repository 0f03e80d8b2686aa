"""A site file is read strictly, and no plan gets past what it allows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.site import SITE_FILE_KEY, SITES_FOLDER_VARIABLE, Budget, Site, find_site, read_site
from fedslm.errors import ConfigError
from tests.builders import UNPRIVATE, masked_plan, toy_plan

VALUES: dict[str, Any] = {
    "hospital": "hospital-0",
    "sources": [{"kind": "jsonl", "path": "rows.jsonl", "columns": {"prompt": "p", "completion": "c"}}],
    "unit": "patient",
    "declared_population": 40,
}
HOME = {"identity": "id.pem", "state_folder": "state"}
KEYS = {**HOME, "roster": "roster.json", "roster_sha256": "a" * 64}


def write(path: Path, **changes: Any) -> Path:
    values = {**VALUES, **changes}
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not ...}))
    return path


def site(folder: Path, **changes: Any) -> Site:
    return read_site(write(folder / "site.yaml", **changes))


def test_a_minimal_site_is_as_strict_as_can_be(tmp_path: Path) -> None:
    read = site(tmp_path)
    assert not read.allow_privacy_none
    assert not read.allow_unmasked
    assert read.simulation_seed is None
    assert read.log_file is None


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "needs at least hospital"),
        (b"hospital: [unclosed", "is not YAML"),
        (b"hospital: \xff\xfe", "is not YAML"),
        (b"hospital: !!python/object/apply:os.system [true]", "is not YAML"),
    ],
    ids=["empty", "a list", "not YAML", "not UTF-8", "a Python object"],
)
def test_what_is_not_a_site_file_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as refused:
        read_site(path)
    assert str(path) in str(refused.value)


def test_a_missing_site_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_site(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budgett": 3}, "budgett is not a setting"),
        ({"hospital": ...}, "hospital is missing"),
        ({"hospital": "../x"}, "hospital="),
        ({"unit": "doctor"}, "unit="),
        ({"unit": ...}, "unit is missing"),
        ({"declared_population": 0}, "declared_population=0"),
        ({"declared_population": True}, "declared_population=True"),
        ({"max_epsilon": -1}, "max_epsilon=-1"),
        ({"max_epsilon": float("nan")}, "max_epsilon=nan"),
        ({"roster_sha256": "abc"}, "roster_sha256="),
        ({"roster_sha256": "A" * 64}, "roster_sha256="),
        ({"allow_unmasked": "perhaps"}, "allow_unmasked="),
        ({"sources": []}, "sources"),
        ({"sources": [{"kind": "ftp"}]}, "sources.0.kind"),
        ({"sources": [{"kind": "jsonl", "pathh": "x"}]}, "sources.0.pathh"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_file(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        site(tmp_path, **changes)
    assert named in str(refused.value)
    assert "site.yaml" in str(refused.value)


def test_a_plan_within_the_policy_is_approved(tmp_path: Path) -> None:
    site(tmp_path, **KEYS).approve(masked_plan())
    site(tmp_path, **KEYS, max_epsilon=8).approve(masked_plan())
    lavish = {"allow_privacy_none": True, "budget_epsilon": "unlimited"}
    site(tmp_path, **KEYS, **lavish).approve(masked_plan(privacy=UNPRIVATE))
    site(tmp_path, **HOME, allow_unmasked=True).approve(toy_plan())


def test_a_plan_in_the_clear_needs_a_sites_word_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not masked.*hospital-0 has allow_unmasked=false"):
        site(tmp_path, **KEYS).approve(toy_plan())


@pytest.mark.parametrize("missing", sorted(KEYS))
def test_a_plan_needs_keys_and_a_place_to_keep_state_and_a_masked_one_a_roster(tmp_path: Path, missing: str) -> None:
    some = {name: value for name, value in KEYS.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"needs {missing} in site\.yaml of hospital-0"):
        site(tmp_path, **some, allow_unmasked=True).approve(masked_plan())
    for plan in (masked_plan(), toy_plan()):
        with pytest.raises(ConfigError, match="needs identity, state_folder in"):
            site(tmp_path, allow_unmasked=True).approve(plan)
    with pytest.raises(ConfigError, match="needs roster, roster_sha256 in"):
        site(tmp_path, **HOME).approve(masked_plan())


@pytest.mark.parametrize("anchor", ["state/anchor", "state/../state/deep/anchor", "state"])
def test_an_anchor_beside_the_ledger_is_none(tmp_path: Path, anchor: str) -> None:
    with pytest.raises(ConfigError, match="another disk"):
        site(tmp_path, **KEYS, anchor_file=anchor)
    site(tmp_path, **KEYS, anchor_file="state-of-it/anchor")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"budget_epsilon": 0}, "budget_epsilon"),
        ({"budget_epsilon": float("inf")}, "budget_epsilon"),
        ({"budget_epsilon": "much"}, "budget_epsilon"),
        ({"budget_delta": 0.01}, r"above 0.0025 = 1/\(10 \* 40 patients\)"),
        ({"population": "../adults"}, "population"),
        ({"allow_privacy_none": True}, "budget_epsilon=8"),
    ],
    ids=str,
)
def test_an_impossible_budget_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        site(tmp_path, **changes)


def test_the_budget_is_finite_unless_said_otherwise(tmp_path: Path) -> None:
    assert site(tmp_path).budget == Budget(epsilon=8.0, delta=1 / 4000)
    assert site(tmp_path, budget_epsilon="unlimited", budget_delta=1e-5).budget == Budget(epsilon=math.inf, delta=1e-5)


@pytest.mark.parametrize(
    ("changes", "plan", "named"),
    [
        ({}, {"privacy": UNPRIVATE}, "allow_privacy_none=false"),
        (
            {"allow_privacy_none": True, "budget_epsilon": "unlimited", "max_epsilon": 8},
            {"privacy": UNPRIVATE},
            "allows 8",
        ),
        ({"max_epsilon": 7.9}, {}, "epsilon 8.0, site.yaml allows 7.9"),
        ({"unit": "record"}, {}, "protects the patient, site.yaml asks for the record"),
        ({"declared_population": 41}, {}, "declares 40 patients, site.yaml 41"),
        ({"hospital": "elsewhere"}, {}, "does not name the hospital 'elsewhere'"),
    ],
    ids=str,
)
def test_a_plan_beyond_the_policy_is_refused_naming_both_values(
    tmp_path: Path, changes: dict[str, Any], plan: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        site(tmp_path, **changes, **KEYS).approve(masked_plan(**plan))


def test_the_node_names_its_site_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SITES_FOLDER_VARIABLE, "/sites")
    assert find_site({SITE_FILE_KEY: "/etc/site.yaml", "partition-id": 2}) == Path("/etc/site.yaml")
    assert find_site({"partition-id": 2}) == Path("/sites/2.yaml")
    monkeypatch.delenv(SITES_FOLDER_VARIABLE)
    with pytest.raises(ConfigError, match="names no site file"):
        find_site({"partition-id": 2})


def test_a_site_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        site(tmp_path).max_epsilon = 100.0  # type: ignore[misc]
