"""Plans beside the ledgers that approved them: what a plan says, and that the ledger says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedslm.errors import ConfigError, LedgerError
from fedslm.governance.plan import Plan
from fedslm.privacy.ledger import Reserved
from fedslm.privacy.planned import planned_reservation
from fedslm.reporting.audit.verify import Checked
from fedslm.reporting.promise import notice


def compare_plans(ledgers: Sequence[Checked], plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
    """Compares plans with every ledger's row on them.

    Returns:
      By hash what each plan says: `model`, `model_source`, `model_revision`, `adapter`, `rounds`, `hospitals`, `is_masked`,
      `promise`.

    Raises:
      ConfigError: a plan is none of the ledgers'. LedgerError: a row says something else than its plan.
    """
    for plan in plans:
        accounts = [(each, each.ledger.plans[plan.sha256]) for each in ledgers if plan.sha256 in each.ledger.plans]
        if not accounts:
            raise ConfigError(
                f"The plan {plan.run_id} is none of those in the ledgers; leave it out, or give the ledger of a hospital that "
                "approved it."
            )
        for each, account in accounts:
            _require_same(each, account.reserved, plan)
    return {plan.sha256: _detail(plan) for plan in plans}


def _require_same(each: Checked, reserved: Reserved, plan: Plan) -> None:
    planned = planned_reservation(
        plan,
        each.opened.hospital,
        coordinator=reserved.coordinator,
        budget_epsilon=reserved.budget_epsilon,
        budget_delta=reserved.budget_delta,
    )
    if planned != reserved:
        wrong = [name for name in reserved.__slots__ if getattr(planned, name) != getattr(reserved, name)]
        found, meant = getattr(reserved, wrong[0]), getattr(planned, wrong[0])
        raise LedgerError(
            f"{each.path}: The ledger says of plan {plan.run_id} that {wrong[0]} is {found}, the plan says {meant}; "
            f"ask '{each.opened.hospital}' which of the two it trained."
        )


def _detail(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model.name,
        "model_source": plan.model.source,
        "model_revision": plan.model.revision,
        "adapter": f"LoRA of rank {plan.adapter.rank}, {plan.adapter.trained_parameters:,} numbers",
        "rounds": plan.training.rounds,
        "hospitals": list(plan.names),
        "is_masked": plan.masked,
        "promise": notice(plan),
    }
