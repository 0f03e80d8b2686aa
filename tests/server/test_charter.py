"""A masked run starts only from a plan that its roster's coordinator signed, for hospitals that the roster names."""

from __future__ import annotations

import dataclasses

import pytest
from flwr.app import Message, RecordDict

from fedslm.errors import AdvertError, ConfigError, DecodeError, RosterError, SignatureError
from fedslm.flower.compat import become_task
from fedslm.flower.records import secagg_reply
from fedslm.governance.plan import Plan
from fedslm.governance.roster import Roster, sign_plan
from fedslm.secagg.messages import JoinReply
from fedslm.secagg.wire import encode
from server.charter import Charter
from tests.builders import masked_plan, toy_hospitals, toy_plan
from tests.masked import charter_of, identity, masked_hospitals, roster_of

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


def test_what_a_hospital_joins_with_is_read_and_its_proofs_are_not_judged_here() -> None:
    one, other, _ = masked_hospitals(PLAN, lambda index, number, trained: trained).values()
    answer = JoinReply(advert=encode(one.new_advert()), proofs=(b"rubbish", b""))
    charter, reply = charter_of(PLAN), secagg_reply(asked(), encode(answer))
    assert charter.read_join(one.name, reply) == (one.advert, (b"rubbish", b""))
    with pytest.raises(AdvertError, match="the advert of another hospital"):
        charter.read_join(other.name, reply)


@pytest.mark.parametrize("answer", [b"", encode(JoinReply(advert=b"")), b"FSLM"])
def test_an_answer_without_an_advert_is_refused(answer: bytes) -> None:
    with pytest.raises(DecodeError):
        charter_of(PLAN).read_join("hospital-0", secagg_reply(asked(), answer))


def asked() -> Message:
    become_task()
    return Message(RecordDict(), 1, "query.join")


def test_a_plan_in_the_clear_has_no_charter() -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        Charter(plan=toy_plan(), roster=roster_of(PLAN.names), signature=b"")
