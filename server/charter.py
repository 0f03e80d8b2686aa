"""What a masked run rests on: its plan, the roster of the consortium, and the coordinator's signature on the one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from fedslm.crypto.identity import PublicIdentity
from fedslm.errors import AdvertError, ConfigError
from fedslm.flower.records import plan_config, secagg_bytes
from fedslm.governance.plan import Plan, PlannedSecAgg
from fedslm.governance.roster import Roster, verify_plan
from fedslm.secagg.messages import Advert, JoinReply
from fedslm.secagg.terms import advert_scope, verify_advert
from fedslm.secagg.wire import decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Charter:
    """A masked plan and what proves it to the hospitals.

    Raises:
      ConfigError: the plan is in the clear. SignatureError, RosterError: the roster's coordinator did not sign the plan,
        or the roster does not name one of its hospitals.
    """

    plan: Plan
    roster: Roster
    signature: bytes

    def __post_init__(self) -> None:
        if not self.plan.masked:
            raise ConfigError("The plan is in the clear; secure aggregation is for a plan with secagg=masked.")
        verify_plan(self.plan, self.signature, self.roster)
        for name in self.plan.names:
            self.roster.key_of(name)

    @property
    def secagg(self) -> PlannedSecAgg:
        """The plan's settings of secure aggregation."""
        if self.plan.secagg is None:
            raise ConfigError("The plan is in the clear; secure aggregation is for a plan with secagg=masked.")
        return self.plan.secagg

    @property
    def roster_sha256(self) -> bytes:
        """32 bytes."""
        return bytes.fromhex(self.roster.sha256)

    @property
    def advert_scope(self) -> bytes:
        """What the adverts of this run are signed for, 64 bytes."""
        return advert_scope(bytes.fromhex(self.plan.sha256), self.roster_sha256)

    @property
    def keys(self) -> Mapping[str, PublicIdentity]:
        """The keys of those members that the plan names; nobody else takes part."""
        return {name: key for name, key in self.roster.keys.items() if name in self.plan.names}

    def config(self) -> ConfigRecord:
        """A new config record, as every message to a hospital carries it."""
        return plan_config(self.plan, signature=self.signature, roster_sha256=self.roster_sha256)

    def read_join(self, name: str, reply: Message) -> tuple[Advert, tuple[bytes, ...]]:
        """What comes with a hospital's answer to the invitation.

        Returns:
          Its advert, verified, and what it holds to be proofs of others' heads.
        Raises:
          DecodeError: there is none. AdvertError: the advert is forged, for another plan or roster, or of another hospital.
        """
        answer = decode(JoinReply, secagg_bytes(reply))
        advert = decode(Advert, answer.advert)
        hashes = {"plan_sha256": bytes.fromhex(self.plan.sha256), "roster_sha256": self.roster_sha256}
        verify_advert(advert, self.keys, **hashes)
        if advert.member != name:
            raise AdvertError(f"{name} joined with the advert of another hospital.")
        return advert, answer.proofs
