"""A simulation's identities are real ones: what a deployment would check holds, and what it would refuse is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.site import RecordSource, Site
from fedslm.errors import ConfigError, RosterError, RunError, SignatureError
from fedslm.governance.keyfiles import read_identity
from fedslm.governance.roster import read_roster, verify_plan
from simulations.identities import Identities, with_identities, without_roster
from tests.builders import masked_plan


def sites(names: tuple[str, ...]) -> tuple[Site, ...]:
    source = RecordSource(kind="embedded")
    return tuple(Site(hospital=name, sources=(source,), unit="patient", declared_population=1) for name in names)


def test_the_roster_names_the_plans_hospitals_and_its_coordinator_signed_the_plan() -> None:
    plan = masked_plan()
    drawn = Identities.draw(plan)
    roster = read_roster(drawn.roster)
    assert {name: identity.public for name, identity in drawn.hospitals.items()} == dict(roster.keys)
    assert tuple(roster.keys) == plan.names
    verify_plan(plan, drawn.plan_signature, roster)
    with pytest.raises(SignatureError):
        verify_plan(masked_plan(nonce="f" * 32), drawn.plan_signature, roster)


def test_two_runs_have_nothing_in_common() -> None:
    one, two = (Identities.draw(masked_plan()) for _ in range(2))
    keys = [identity.public for drawn in (one, two) for identity in drawn.hospitals.values()]
    assert len(set(keys)) == 6
    assert read_roster(one.roster).root != read_roster(two.roster).root


def test_each_site_gets_what_a_masked_plan_needs(tmp_path: Path) -> None:
    plan = masked_plan()
    drawn = Identities.draw(plan)
    drawn.write(tmp_path / "sites")
    found = with_identities(sites(plan.names), tmp_path / "sites")
    for site in found:
        home, pin = site.home(), site.roster_pin()
        assert read_identity(home.identity, None).public == drawn.hospitals[site.hospital].public
        assert read_roster(pin.path.read_bytes()).sha256 == pin.sha256
        assert home.identity.stat().st_mode & 0o777 == 0o600
    assert len({site.state_folder for site in found}) == 3


def test_sites_of_a_plan_in_the_clear_get_identities_that_are_kept(tmp_path: Path) -> None:
    names = ("hospital-0", "hospital-1")
    first, again = (without_roster(sites(names), tmp_path) for _ in range(2))
    assert first == again
    keys = {read_identity(site.home().identity, None).public for site in first}
    assert len(keys) == len({site.state_folder for site in first}) == 2


def test_identities_are_kept_and_never_written_over(tmp_path: Path) -> None:
    plan = masked_plan()
    Identities.draw(plan).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="not overwritten"):
        Identities.draw(plan).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_a_roster_or_with_a_damaged_one_there_are_no_sites(tmp_path: Path) -> None:
    plan = masked_plan()
    with pytest.raises(RunError, match="start the run again in a new folder"):
        with_identities(sites(plan.names), tmp_path)
    Identities.draw(plan).write(tmp_path)
    (tmp_path / "roster.json").write_bytes((tmp_path / "roster.json").read_bytes()[:-1])
    with pytest.raises(RosterError):
        with_identities(sites(plan.names), tmp_path)
