"""What a plan promises about who can read a hospital's update, in words that stand in every place that tells of a run."""

from __future__ import annotations

from fedslm.governance.plan import Plan
from fedslm.secagg.terms import Bounds

UNMASKED = "Updates are NOT encrypted: the coordinator can read each hospital's update."
"""Said wherever it is true."""


def bound_words(plan: Plan) -> str:
    """ "1 of 5 may collude with the coordinator; 1 may drop out of a session", with all hospitals there; "" in the clear."""
    if plan.secagg is None:
        return ""
    return str(Bounds(n=len(plan.hospitals), colluders=plan.secagg.colluders, honest=plan.secagg.honest))


def notice(plan: Plan) -> str:
    """One sentence: what the coordinator can and cannot read."""
    if not plan.masked:
        return UNMASKED
    sentence = f"Updates are encrypted, the coordinator reads only their sum: {bound_words(plan)}."
    if plan.privacy.mode == "none":
        return f"{sentence} Without privacy that protects each sum by itself, not what several sums together tell."
    return sentence
