"""Who asks, and under which roster: a masked plan is worked for only as its coordinator signed it, among known members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message

from clients.site import Site
from clients.store import Store
from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.errors import ConfigError, RosterError
from fedslm.flower.records import read_plan, read_plan_signature
from fedslm.governance.keyfiles import read_identity, read_passphrase
from fedslm.governance.plan import Plan
from fedslm.governance.roster import Roster, read_roster, verify_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A plan that the coordinator signed under the roster this hospital pinned, and this hospital's own keys.

    Attributes:
      hospital: this hospital's name, in plan and roster.
    """

    hospital: str
    plan: Plan
    roster: Roster
    identity: Identity

    @property
    def plan_sha256(self) -> bytes:
        """32 bytes."""
        return bytes.fromhex(self.plan.sha256)

    @property
    def roster_sha256(self) -> bytes:
        """32 bytes."""
        return bytes.fromhex(self.roster.sha256)

    @property
    def keys(self) -> Mapping[str, PublicIdentity]:
        """The keys of the roster's members that the plan names; nobody else takes part in a session."""
        return {name: key for name, key in self.roster.keys.items() if name in self.plan.names}


def read_agreement(message: Message, site: Site, store: Store) -> Agreement:
    """Checks what a message under a masked plan rests on.

    Args:
      store: remembers the newest roster ever seen, so that a revocation is not undone.
    Raises:
      ConfigError: the plan is in the clear, the message carries no signature, or a file is missing or unreadable.
      RosterError: another roster than the pinned one, an older one than was seen, or another key for this hospital.
      SignatureError: the coordinator did not sign this plan under this roster.
    """
    plan = read_plan(message)
    if not plan.masked:
        raise ConfigError("The plan is in the clear; it has no sessions of secure aggregation.")
    signature, named = read_plan_signature(message)
    roster = _pinned_roster(site, named)
    store.see_roster(roster.root.fingerprint, roster.serial)
    verify_plan(plan, signature, roster)
    identity = _member_identity(site, roster)
    return Agreement(hospital=site.hospital, plan=plan, roster=roster, identity=identity)


def own_identity(site: Site) -> Identity:
    """The keys that a hospital signs with.

    Raises:
      ConfigError: the file or its passphrase is missing, unreadable, or readable by others.
    """
    home = site.home()
    passphrase = None if home.passphrase_file is None else read_passphrase(home.passphrase_file)
    return read_identity(home.identity, passphrase)


def _pinned_roster(site: Site, named: str) -> Roster:
    pin = site.roster_pin()
    if named != pin.sha256:
        raise RosterError(
            f"The coordinator works under the roster {named[:12]}, site.yaml of {site.hospital} pins "
            f"{pin.sha256[:12]}; compare the two with the other hospitals."
        )
    try:
        roster = read_roster(pin.path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The roster {pin.path} cannot be read: {error.strerror}.") from None
    if roster.sha256 != pin.sha256:
        raise RosterError(f"The roster {pin.path} has the hash {roster.sha256[:12]}, site.yaml pins {pin.sha256[:12]}.")
    return roster


def _member_identity(site: Site, roster: Roster) -> Identity:
    identity = own_identity(site)
    if roster.key_of(site.hospital) != identity.public:
        raise RosterError(
            f"The roster names another key for {site.hospital} than the identity {site.identity}; "
            "use the identity whose public half the consortium has."
        )
    return identity
