"""What a plan promises to cost, recomputed where the records are."""

from __future__ import annotations

import functools

from fedslm.errors import PrivacyError
from fedslm.governance.plan import Plan

ROUNDING = 1e-6
"""How far two computations of one epsilon may be apart."""


@functools.lru_cache(maxsize=16)
def verify_epsilon(plan: Plan, hospital: str) -> None:
    """Checks that the plan's noise gives the plan's epsilon at this hospital, for all the sessions it may take.

    Raises:
      PrivacyError: it costs more than the plan says.
    """
    if plan.privacy.mode == "none" or plan.privacy.epsilon is None:
        return
    # The accountant takes a second to import, which the exchanges after the training need not pay.
    from fedslm.privacy.accounting import epsilon_spent
    from fedslm.privacy.planned import planned_mechanism

    sessions = plan.privacy.max_sessions
    found = epsilon_spent(planned_mechanism(plan, hospital), sessions=sessions, delta=plan.privacy.delta)
    if found > plan.privacy.epsilon + ROUNDING:
        raise PrivacyError(
            f"The plan says epsilon {plan.privacy.epsilon:g}, but its noise gives {found:.3g} over {sessions} sessions "
            f"at {hospital}; refuse it, and ask the coordinator who made it."
        )
