"""What one session rests on: the promise (how many may collude, how many may drop out) and the context that binds it.

Every hospital computes the context itself from what it received; a coordinator that tells two of them different things
gives them different contexts, and nothing that one of them sealed or signed is then of use to the other.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from fedslm.crypto.identity import PublicIdentity
from fedslm.crypto.seal import seal
from fedslm.encoding import pack
from fedslm.errors import AdvertError, BoundError, RosterError, SealError, SignatureError
from fedslm.secagg.encoding import FixedPoint
from fedslm.secagg.messages import Advert, HeadProof
from fedslm.secagg.wire import decode, encode

PROTOCOL = b"fedslm-secagg/1"
MIN_HOSPITALS = 3
MAX_HOSPITALS = 255


def default_colluders(n: int) -> int:
    """How many of n hospitals may collude with the coordinator, unless a plan says otherwise: floor((n-1)/3)."""
    return (n - 1) // 3


def threshold_of(n: int, colluders: int) -> int:
    """Shares that give a seed back: t = floor((n+T)/2) + 1, the smallest with T < 2t - n."""
    return (n + colluders) // 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The promise at n hospitals.

    Attributes:
      n: hospitals that were asked to share, |U1|.
      colluders: T, hospitals that may work with a lying coordinator without it reading more than the sum.
      honest: h, honest hospitals whose sum is the least it may read.

    Raises:
      BoundError: n outside 3 to 255, or no set of survivors could satisfy both T and h.

    Source: Bonawitz et al. 2017, section 6.2 (malicious coordinator: T < 2t - n).
    """

    n: int
    colluders: int
    honest: int

    def __post_init__(self) -> None:
        if not MIN_HOSPITALS <= self.n <= MAX_HOSPITALS:
            raise BoundError(
                f"Secure aggregation is for {MIN_HOSPITALS} to {MAX_HOSPITALS} hospitals, here are {self.n}; "
                "with fewer a sum would name a hospital."
            )
        if self.colluders < 0 or self.honest < 2:
            raise BoundError(
                f"colluders={self.colluders} and honest={self.honest}; at least 0 and 2: a sum hides one among two."
            )
        if self.quorum > self.n:
            raise BoundError(
                f"With colluders={self.colluders} and honest={self.honest} a sum needs {self.quorum} hospitals, "
                f"but there are {self.n}; lower colluders or have more hospitals join."
            )

    @property
    def threshold(self) -> int:
        """t."""
        return threshold_of(self.n, self.colluders)

    @property
    def quorum(self) -> int:
        """The fewest hospitals a step may end with: max(t, T + h)."""
        return max(self.threshold, self.colluders + self.honest)

    @property
    def dropouts(self) -> int:
        """Hospitals that may drop out of a session."""
        return self.n - self.quorum

    def __str__(self) -> str:
        return (
            f"{self.colluders} of {self.n} may collude with the coordinator; {self.dropouts} may drop out of a session"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One session, as a party understands it.

    Attributes:
      run_id, session, round: which attempt at what.
      plan_sha256, roster_sha256: 32 bytes each.
      adverts: one a hospital of U1, ascending by name. A hospital's point is its place in this order, from 1.
      bounds: the promise for this U1.
      min_cohort: fewer hospitals than this are refused whatever the bounds say.
      fixed_point: block lengths, ranges, ring bits.
      adapter_sha256, config_sha256: of the incoming adapter and of the round's settings, as received.

    Raises:
      AdvertError: a member twice, or not in ascending order. BoundError: fewer hospitals than `min_cohort`, or more
        than the fixed point has room for.
    """

    run_id: str
    session: int
    round: int
    plan_sha256: bytes
    roster_sha256: bytes
    adverts: tuple[Advert, ...]
    bounds: Bounds
    min_cohort: int
    fixed_point: FixedPoint
    adapter_sha256: bytes
    config_sha256: bytes

    def __post_init__(self) -> None:
        names = self.names
        if any(a >= b for a, b in itertools.pairwise(names)):
            raise AdvertError("The adverts of a session name a hospital twice or are not in ascending order of names.")
        if self.bounds.n != len(names) or len(names) < self.min_cohort:
            raise BoundError(f"A session has {len(names)} hospitals; the plan's min_cohort is {self.min_cohort}.")
        if self.fixed_point.parties < len(names):
            raise BoundError(
                f"A sum of {len(names)} vectors could wrap: the fixed point has room for {self.fixed_point.parties}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The hospitals of U1; the one at index i has the point i + 1."""
        return tuple(advert.member for advert in self.adverts)

    @property
    def context(self) -> bytes:
        """SHA-256 over everything above: 32 bytes."""
        numbers = (self.session, self.round, self.bounds.n, self.bounds.threshold, self.bounds.colluders)
        return sha256(
            pack(
                PROTOCOL,
                self.run_id.encode(),
                struct.pack(">7I", *numbers, self.bounds.honest, self.min_cohort),
                self.plan_sha256,
                self.roster_sha256,
                pack(*(encode(advert) for advert in self.adverts)),
                self.fixed_point.described(),
                self.adapter_sha256,
                self.config_sha256,
            )
        ).digest()

    def verify_adverts(self, keys: Mapping[str, PublicIdentity]) -> None:
        """Checks every advert against the roster.

        Raises:
          AdvertError: forged, for another plan or roster, of somebody whom the roster does not name, with a key that
            nothing can be sealed to, or two with the same key.
        """
        if len({advert.sealing_key for advert in self.adverts}) != len(self.adverts):
            raise AdvertError("Two adverts of the session carry the same key.")
        for advert in self.adverts:
            verify_advert(advert, keys, plan_sha256=self.plan_sha256, roster_sha256=self.roster_sha256)


def advert_scope(plan_sha256: bytes, roster_sha256: bytes) -> bytes:
    """What an advert's signature is bound to."""
    return plan_sha256 + roster_sha256


def verify_advert(
    advert: Advert, keys: Mapping[str, PublicIdentity], *, plan_sha256: bytes, roster_sha256: bytes
) -> None:
    """Checks one advert against the roster's keys.

    Raises:
      AdvertError: its member is not in the roster, the signature is not its member's for this plan and roster, or its
        sealing key is malformed: found only after training, that would cost everybody the session.
    """
    _verify_signature(advert, keys, scope=advert_scope(plan_sha256, roster_sha256))
    try:
        seal(b"", to=advert.sealing_key, info=b"")
    except SealError:
        raise AdvertError(f"The advert of '{advert.member}' carries a key that nothing can be sealed to.") from None


def verify_proof(proof: HeadProof, keys: Mapping[str, PublicIdentity]) -> Advert:
    """Checks that a hospital signed the head of its ledger, in an advert for whatever plan and roster that was.

    Args:
      keys: of the hospitals whose heads are wanted.
    Returns:
      The advert; its member signed its `ledger_head`.
    Raises:
      DecodeError: the proof holds no advert. AdvertError: the advert is of another hospital, or not signed by its member
        under the proof's scope.
    """
    advert = decode(Advert, proof.advert)
    _verify_signature(advert, keys, scope=proof.scope)
    return advert


def _verify_signature(advert: Advert, keys: Mapping[str, PublicIdentity], *, scope: bytes) -> None:
    try:
        key_of(keys, advert.member).verify("advert", advert.body, advert.signature, signer=advert.member, scope=scope)
    except (SignatureError, RosterError):
        raise AdvertError(
            f"The advert in the name of '{advert.member}' is not signed by a member of the roster for this plan."
        ) from None


def key_of(keys: Mapping[str, PublicIdentity], name: str) -> PublicIdentity:
    """A member's key; RosterError where the roster has none."""
    if name not in keys:
        raise RosterError(f"The roster does not name '{name}', or has revoked it.")
    return keys[name]
