"""A masked run starts only from a plan that its roster's coordinator signed, for hospitals that the roster names."""

from __future__ import annotations

import dataclasses

import pytest

from fedslm.errors import ConfigError, RosterError, SignatureError
from fedslm.governance.plan import Plan
from fedslm.governance.roster import Roster, sign_plan
from server.charter import Charter
from tests.builders import masked_plan, toy_hospitals, toy_plan
from tests.masked import charter_of, identity, roster_of

PLAN = masked_plan()


def signed(plan: Plan, roster: Roster) -> Charter:
    return Charter(plan=plan, roster=roster, signature=sign_plan(plan, identity("the coordinator"), roster))


def test_a_charter_has_the_keys_of_its_own_hospitals_only() -> None:
    charter = signed(PLAN, roster_of((*PLAN.names, "elsewhere")))
    assert set(charter.keys) == set(PLAN.names)
    assert set(charter.config()) == {"plan", "plan-signature", "roster-sha256"}


@pytest.mark.parametrize("change", ["plan", "signature", "roster"])
def test_what_was_not_signed_together_is_refused(change: str) -> None:
    charter = charter_of(PLAN)
    changes = {
        "plan": masked_plan(deadline_s=61.0),
        "signature": bytes(len(charter.signature)),
        "roster": roster_of((*PLAN.names, "elsewhere")),
    }
    with pytest.raises(SignatureError):
        dataclasses.replace(charter, **{change: changes[change]})


def test_a_hospital_outside_the_roster_cannot_be_planned_with() -> None:
    with pytest.raises(RosterError, match="hospital-3"):
        signed(masked_plan(hospitals=toy_hospitals(4)), roster_of(PLAN.names))


def test_a_plan_in_the_clear_has_no_charter() -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        Charter(plan=toy_plan(), roster=roster_of(PLAN.names), signature=b"")
