"""What a session rests on, read out of a plan and an opening: one function, so that both ends come to the same context."""

from __future__ import annotations

from fedslm.errors import ConfigError
from fedslm.governance.plan import SCORE_NUMBERS, Plan, PlannedSecAgg
from fedslm.privacy.scores import score_range
from fedslm.secagg.encoding import Block, FixedPoint
from fedslm.secagg.messages import Advert, Opening
from fedslm.secagg.terms import Bounds, Terms
from fedslm.secagg.wire import decode

UPDATE_BLOCK = "update"
SCORES_BLOCK = "scores"


def session_terms(
    plan: Plan, opening: Opening, *, roster_sha256: bytes, adapter_sha256: bytes, config_sha256: bytes
) -> Terms:
    """The terms of a session.

    Args:
      roster_sha256, adapter_sha256, config_sha256: 32 bytes each; at a hospital, of what it received itself.
    Raises:
      ConfigError: the plan is in the clear.
      DecodeError, AdvertError, BoundError: adverts that are none, or that do not make a session; see `Terms`.
    """
    if plan.secagg is None:
        raise ConfigError("The plan is in the clear; it has no sessions of secure aggregation.")
    adverts = tuple(decode(Advert, data) for data in opening.adverts)
    bounds = Bounds(n=len(adverts), colluders=plan.secagg.colluders, honest=plan.secagg.honest)
    return Terms(
        run_id=plan.run_id,
        session=opening.session,
        round=opening.round,
        plan_sha256=bytes.fromhex(plan.sha256),
        roster_sha256=roster_sha256,
        adverts=adverts,
        bounds=bounds,
        min_cohort=plan.min_cohort,
        fixed_point=FixedPoint(ring_bits=plan.secagg.ring_bits, parties=bounds.n, blocks=_blocks(plan, plan.secagg)),
        adapter_sha256=adapter_sha256,
        config_sha256=config_sha256,
    )


def _blocks(plan: Plan, secagg: PlannedSecAgg) -> tuple[Block, ...]:
    """The update, and after it the scores of held-out patients where the plan releases them."""
    length = plan.adapter.trained_parameters
    update = Block(name=UPDATE_BLOCK, length=length, value_range=float(secagg.value_range))
    if plan.privacy.scores is None:
        return (update,)
    return (update, Block(name=SCORES_BLOCK, length=SCORE_NUMBERS, value_range=score_range(plan)))
