"""Throw-away identities and ledgers, so that a simulation signs, books and checks exactly what a deployment does.

Root and coordinator sign once and are dropped; the hospitals' identities lie in the run folder, without a passphrase, for
as long as the run can be resumed. They protect nothing: whoever has the folder has every hospital of the simulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clients.site import Site
from fedslm.crypto.identity import Identity
from fedslm.errors import RunError
from fedslm.governance.keyfiles import create_file, write_identity
from fedslm.governance.plan import Plan
from fedslm.governance.roster import Member, Roster, read_roster, sign_plan, sign_roster

ROSTER_FILE = "roster.json"
CONSORTIUM = "simulation"
COORDINATOR = "simulated coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Who is who in one simulated run.

    Attributes:
      hospitals: by name, in plan order.
      roster: signed by a root that nobody has any more.
      plan_signature: the coordinator's, under that roster.
    """

    hospitals: Mapping[str, Identity]
    roster: bytes
    plan_signature: bytes

    @classmethod
    def draw(cls, plan: Plan) -> Identities:
        """Makes identities for everybody in a plan, and signs it."""
        root, coordinator = Identity.generate(), Identity.generate()
        hospitals = {name: Identity.generate() for name in plan.names}
        roster = Roster(
            version=1,
            consortium=CONSORTIUM,
            serial=1,
            root=root.public,
            coordinator=Member(name=COORDINATOR, key=coordinator.public),
            members=tuple(Member(name=name, key=identity.public) for name, identity in hospitals.items()),
        )
        signature = sign_plan(plan, coordinator, roster)
        return cls(hospitals=hospitals, roster=sign_roster(roster, root), plan_signature=signature)

    def write(self, folder: Path) -> None:
        """Writes roster.json and identity-0.pem, identity-1.pem, ... into the folder of the site files.

        Raises:
          ConfigError: one of them exists, or cannot be written. RunError: the folder cannot be made.
        """
        _make(folder)
        create_file(folder / ROSTER_FILE, self.roster, mode=0o644)
        for number, (name, identity) in enumerate(self.hospitals.items()):
            write_identity(_identity_path(folder, number), identity, None, name=name)


def with_identities(sites: tuple[Site, ...], folder: Path) -> tuple[Site, ...]:
    """The sites, each with its identity, the pinned roster and a state folder of its own, all below `folder`.

    Raises:
      RunError, RosterError: the roster is missing or damaged.
    """
    pin, roster = _pin(folder / ROSTER_FILE), str((folder / ROSTER_FILE).resolve())
    return tuple(dataclasses.replace(site, roster=roster, roster_sha256=pin) for site in _at_home(sites, folder))


def without_roster(sites: tuple[Site, ...], folder: Path) -> tuple[Site, ...]:
    """The sites for a plan in the clear: each with an identity, made where there is none, and a state folder.

    Raises:
      ConfigError: an identity cannot be written. RunError: the folder cannot be made.
    """
    _make(folder)
    for number, site in enumerate(sites):
        if not _identity_path(folder, number).exists():
            write_identity(_identity_path(folder, number), Identity.generate(), None, name=site.hospital)
    return _at_home(sites, folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made: {error.strerror}.") from None


def _at_home(sites: tuple[Site, ...], folder: Path) -> tuple[Site, ...]:
    return tuple(
        dataclasses.replace(
            site,
            identity=str(_identity_path(folder, number).resolve()),
            state_folder=str((folder / f"state-{number}").resolve()),
        )
        for number, site in enumerate(sites)
    )


def _identity_path(folder: Path, number: int) -> Path:
    return folder / f"identity-{number}.pem"


def _pin(path: Path) -> str:
    try:
        return read_roster(path.read_bytes()).sha256
    except OSError as error:
        raise RunError(
            f"The simulated hospitals' roster {path} cannot be read: {error.strerror}; start the run again in a new folder."
        ) from None
