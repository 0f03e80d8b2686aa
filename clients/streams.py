"""Where a hospital's randomness comes from: the operating system, or the seed of a simulation's site."""

from __future__ import annotations

from clients.site import Site
from fedslm.crypto.prg import SecureStream, derive_key
from fedslm.encoding import canonical_bytes
from fedslm.governance.plan import Plan

STEP = "step"
ROUNDING = "rounding"
SCORES = "scores"


def open_stream(site: Site, plan: Plan, purpose: str, *place: int) -> SecureStream:
    """A random stream that is opened once.

    A seeded stream is keyed by plan, hospital, purpose and place, so that it is never used twice, and so that a resumed
    simulation draws what an uninterrupted one would have. The number of a session is no part of it: a session that was
    interrupted is not gone on with, but the round's next one must draw the same.

    Args:
      purpose: `STEP` for a training step's draw and noise, `ROUNDING` for the encoding of an update, `SCORES` for the
        noise on the scores of held-out patients.
      place: round, attempt at it, and step within it.
    """
    if site.simulation_seed is None:
        return SecureStream.from_os()
    context = canonical_bytes([plan.sha256, site.hospital, *place])
    secret = str(site.simulation_seed).encode().rjust(32, b"0")
    return SecureStream(derive_key(secret, label=f"simulation {purpose}", context=context))
