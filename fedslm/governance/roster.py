"""The roster: who belongs to a consortium and by which key, signed by its root; and the coordinator's signature on a plan.

The root's key is kept apart from the coordinator, who could otherwise invent hospitals. A roster carries the root's public
key; trust in it comes from the hash of the roster, which each hospital writes into its own site file after comparing it
with the others. Bytes in, bytes out: files are the business of `keyfiles` and of the command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from fedslm.config.schema import STRICT, Count, Name, build
from fedslm.crypto.identity import SIGNATURE_BYTES, Identity, PublicIdentity
from fedslm.encoding import canonical_bytes, parse_canonical, sha256_hex
from fedslm.errors import ConfigError, RosterError, SignatureError
from fedslm.governance.plan import Plan

ROSTER_VERSION = 1
MIN_MEMBERS = 3
"""Fewer cannot hide their updates from one another."""


def _public_identity(value: object) -> PublicIdentity:
    if isinstance(value, PublicIdentity):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a public key as hex digits")
    return PublicIdentity.from_bytes(bytes.fromhex(value))


Key = Annotated[PublicIdentity, PlainValidator(_public_identity)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9]{5}( [0-9]{5}){11}$")]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Member:
    """A name and the key that signs for it; in the document the key is hex."""

    name: Name
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Roster:
    """Who belongs to a consortium.

    Attributes:
      version: of this document's format; another one is refused.
      serial: counts the consortium's rosters up; a change is a new roster with the next serial.
      root: the key that signs the roster; nobody else's.
      coordinator: who signs plans. No member: it trains nothing.
      members: the hospitals, three or more, in any order.
      revoked: fingerprints of keys that count no longer, whoever the roster lists them for.

    Raises:
      RosterError: a name or a key stands twice, or the root itself is revoked.
    """

    version: Literal[1]
    consortium: Name
    serial: Count
    root: Key
    coordinator: Member
    members: Annotated[tuple[Member, ...], Field(min_length=MIN_MEMBERS)]
    revoked: tuple[Fingerprint, ...] = ()

    def __post_init__(self) -> None:
        everybody = (self.coordinator, *self.members)
        _refuse_twice([member.name for member in everybody], "The roster names '{}' twice; names must differ.")
        keys = [self.root.fingerprint, *(member.key.fingerprint for member in everybody)]
        _refuse_twice(keys, "The roster holds the key {} twice; root, coordinator and members have keys of their own.")
        _refuse_twice(list(self.revoked), "The roster revokes {} twice; once is enough.")
        if self.root.fingerprint in self.revoked:
            raise RosterError("The roster revokes the root that signs it; sign it by another root.")

    def to_bytes(self) -> bytes:
        """The canonical encoding of all but the signature, which is what gets hashed and signed."""
        return canonical_bytes(_document(self))

    @property
    def sha256(self) -> str:
        """Hash of the canonical bytes, the root's public key included; a hospital pins this."""
        return sha256_hex(self.to_bytes())

    @property
    def keys(self) -> Mapping[str, PublicIdentity]:
        """The members' keys by name, without revoked ones."""
        return MappingProxyType({member.name: member.key for member in self.members if not self.is_revoked(member)})

    def key_of(self, name: str) -> PublicIdentity:
        """The key of a member.

        Raises:
          RosterError: no member has this name, or its key is revoked.
        """
        for member in self.members:
            if member.name == name:
                return self._valid_key(member)
        raise RosterError(f"The roster names no member '{name}'; it names {', '.join(m.name for m in self.members)}.")

    def is_revoked(self, member: Member) -> bool:
        """Whether a member's key, or the coordinator's, counts no longer."""
        return member.key.fingerprint in self.revoked

    def revoke(self, name: str) -> Roster:
        """The next roster, in which a member's key counts no longer. It still has to be signed.

        Raises:
          RosterError: no member has this name, or its key is revoked already.
        """
        revoked = (*self.revoked, self.key_of(name).fingerprint)
        return dataclasses.replace(self, serial=self.serial + 1, revoked=revoked)

    def _valid_key(self, member: Member) -> PublicIdentity:
        if self.is_revoked(member):
            raise RosterError(f"The key of '{member.name}' is revoked; they need a new one in a new roster.")
        return member.key


def sign_roster(roster: Roster, root: Identity) -> bytes:
    """Writes a roster with the root's signature.

    Raises:
      RosterError: `root` is not the root that the roster names.
    """
    if root.public != roster.root:
        raise RosterError("The roster names another root than the identity that was to sign it; use that root's file.")
    signature = root.sign("roster", roster.to_bytes(), signer=roster.consortium, scope=b"")
    return canonical_bytes({"roster": _document(roster), "signature": signature.hex()})


def read_roster(data: bytes) -> Roster:
    """Reads a roster and checks its signature against the root it names. Compare its `sha256` with the pinned one.

    Raises:
      RosterError: damaged, not canonical, of another version, impossible, or not signed by its root.
    """
    try:
        body, signature = _parse(data)
        roster = build(Roster, body)
        if roster.to_bytes() != canonical_bytes(body):  # capitals in hex, a default left out: one roster has one hash
            raise ConfigError("it is not in canonical form; it was edited or written by something else.")
        roster.root.verify("roster", roster.to_bytes(), signature, signer=roster.consortium, scope=b"")
    except (ConfigError, SignatureError) as error:
        raise RosterError(f"The roster is refused: {error}") from None
    return roster


def sign_plan(plan: Plan, coordinator: Identity, roster: Roster) -> bytes:
    """The coordinator's signature on a plan, which holds under this roster only.

    Raises:
      RosterError: `coordinator` is not the one that the roster names, or is revoked there.
    """
    if coordinator.public != roster._valid_key(roster.coordinator):
        raise RosterError(
            f"The roster names another key for the coordinator '{roster.coordinator.name}'; use that one."
        )
    return coordinator.sign("plan", plan.to_bytes(), signer=roster.coordinator.name, scope=_scope(roster))


def verify_plan(plan: Plan, signature: bytes, roster: Roster) -> None:
    """Checks that the roster's coordinator signed a plan under this roster.

    Raises:
      RosterError: the coordinator's key is revoked.
      SignatureError: it did not sign this plan, or did so under another roster.
    """
    key = roster._valid_key(roster.coordinator)
    key.verify("plan", plan.to_bytes(), signature, signer=roster.coordinator.name, scope=_scope(roster))


def _scope(roster: Roster) -> bytes:
    return bytes.fromhex(roster.sha256)


def _parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The document's body and its signature."""
    document = parse_canonical(data)
    body, signature = document.get("roster"), document.get("signature")
    if set(document) != {"roster", "signature"} or not isinstance(body, dict) or not isinstance(signature, str):
        raise ConfigError("it does not consist of a roster and its signature.")
    if body.get("version") != ROSTER_VERSION:
        raise ConfigError(f"it has version {body.get('version')!r}; this release reads version {ROSTER_VERSION}.")
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise ConfigError("its signature is not hex.") from None
    if raw.hex() != signature or len(raw) != SIGNATURE_BYTES:
        raise ConfigError(f"its signature is not {SIGNATURE_BYTES} bytes in lower-case hex.")
    return body, raw


def _document(roster: Roster) -> dict[str, Any]:
    return {
        "version": roster.version,
        "consortium": roster.consortium,
        "serial": roster.serial,
        "root": roster.root.to_bytes().hex(),
        "coordinator": _entry(roster.coordinator),
        "members": [_entry(member) for member in roster.members],
        "revoked": list(roster.revoked),
    }


def _entry(member: Member) -> dict[str, str]:
    return {"name": member.name, "key": member.key.to_bytes().hex()}


def _refuse_twice(values: list[str], sentence: str) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise RosterError(sentence.format(value))
