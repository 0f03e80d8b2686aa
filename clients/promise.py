"""What a plan promises to cost, recomputed where the records are."""

from __future__ import annotations

import functools

from fedslm.errors import PrivacyError
from fedslm.governance.plan import Plan

ROUNDING = 1e-6
"""How far two computations of one epsilon may be apart."""

LEAST_EPSILON = 1e-3
"""Plans of less are dust: they could fill a ledger that is kept for life without ever using it up."""

MAX_STEPS = 1_000_000
"""Of all sessions together; beyond it the accountant would take more time and memory than a hospital has to give."""

FAR = 10.0
"""A Renyi bound so many times the plan's epsilon is not looked into any further."""


@functools.lru_cache(maxsize=16)
def verify_epsilon(plan: Plan, hospital: str) -> None:
    """Checks that the plan's noise gives the plan's epsilon at this hospital, for all the sessions it may take.

    Raises:
      PrivacyError: it costs more than the plan says.
    """
    epsilon = plan.privacy.epsilon
    if plan.privacy.mode == "none" or epsilon is None:
        return
    # The accountant takes a second to import, which the exchanges after the training need not pay.
    from fedslm.privacy.accounting import epsilon_spent, renyi_epsilon
    from fedslm.privacy.planned import planned_mechanism

    _require_size(plan)
    mechanism, privacy = planned_mechanism(plan, hospital), plan.privacy
    sessions, far = privacy.max_sessions, FAR * (epsilon + 1.0)
    try:
        found = renyi_epsilon(mechanism, sessions=sessions, delta=privacy.delta)
        if found <= far:  # the loss distribution of something far worse fills the memory
            found = epsilon_spent(mechanism, sessions=sessions, delta=privacy.delta)
    except (ArithmeticError, MemoryError, ValueError) as error:
        raise PrivacyError(f"What the plan costs cannot be computed ({type(error).__name__}); refuse it.") from None
    if found > epsilon + ROUNDING:
        raise PrivacyError(
            f"The plan says epsilon {epsilon:g}, but its noise gives {found:.3g} over {sessions} sessions "
            f"at {hospital}; refuse it, and ask the coordinator who made it."
        )


def _require_size(plan: Plan) -> None:
    """Refuses what no honest plan asks for, before the accountant works for it: anybody who reaches a node can send one."""
    from fedslm.privacy.accounting import MIN_NOISE_MULTIPLIER

    privacy, steps = plan.privacy, plan.privacy.max_sessions * plan.training.local_steps
    if privacy.epsilon is not None and privacy.epsilon < LEAST_EPSILON:
        raise PrivacyError(f"The plan says epsilon {privacy.epsilon:g}; less than {LEAST_EPSILON:g} is no plan.")
    if privacy.noise_multiplier < MIN_NOISE_MULTIPLIER:
        raise PrivacyError(
            f"The plan's noise_multiplier is {privacy.noise_multiplier:g}; less than {MIN_NOISE_MULTIPLIER:g} hides nothing."
        )
    if steps > MAX_STEPS:
        raise PrivacyError(f"The plan has {steps:,} steps in all its sessions; at most {MAX_STEPS:,} are trained for.")
