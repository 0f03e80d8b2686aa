"""The verb `ledger` of the command line, for the hospital whose ledger it is."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.ledger import open_ledger
from clients.site import Site, read_site, with_anchor
from fedslm.errors import ConfigError
from fedslm.governance.command import Given, dispatch
from fedslm.governance.keyfiles import create_file
from fedslm.privacy.ledger import Account, Export, Ledger

LEDGER_HELP = """Shows and keeps the ledger of a hospital: what was spent on its patients' privacy, and what is left.

usage: fedslm ledger show [--site FILE] [--json]
       fedslm ledger export --out FILE [--site FILE]
       fedslm ledger close PLAN [--site FILE]
       fedslm ledger restore [--from FILE] [--forfeit] [--site FILE]

  show     prints budget, plans and sessions; changes nothing
  export   writes all rows, signed, for an auditor (fedslm audit verify) and as a copy to restore from
  close    ends a plan for good: from then on it costs what its sessions cost, not all that was reserved
  restore  after an old copy of the ledger came back or the ledger was lost: takes missing rows from an export

  --site FILE  the hospital's site file; site.yaml in this folder where it is not given
  --forfeit    where rows are still missing, counts the whole rest of the budget as spent, so that training can go on
               once the budget in the site file is raised

PLAN is the first digits of the plan's hash, as `show` prints them.
"""

DEFAULT_SITE = "site.yaml"


def ledger(arguments: list[str]) -> int:
    """`fedslm ledger`: 0 when done; every other end is an exception with its own exit code."""
    actions = {"show": _show, "export": _export, "close": _close, "restore": _restore}
    return dispatch("ledger", actions, LEDGER_HELP, arguments)


def _show(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, options=["--site"], flags=["--json"])
    site = _site(given)
    with open_ledger(site) as book:
        problem, found = book.problem(), book.read()
    if given.flags:
        print(json.dumps(_summary(site, found, problem), indent=2, sort_keys=True))
    else:
        print(_table(site, found))
        if problem:
            print(f"NOTHING CAN BE SPENT: {problem}", file=sys.stderr)


def _export(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, options=["--site", "--out"])
    out = given.one("--out")
    with open_ledger(_site(given)) as book:
        export = book.export()
    create_file(out, export.to_bytes(), mode=0o600)
    print(f"Wrote {len(export.rows)} rows to {out}. Check it with: fedslm audit verify {out}")


def _close(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, words=["a plan"], options=["--site"])
    with open_ledger(_site(given)) as book:
        account = book.close(given.words[0])
    print(
        f"Closed the plan {account.reserved.plan[:12]}: {len(account.sessions)} of {account.reserved.max_sessions} sessions "
        f"were started, which cost epsilon {_number(account.epsilon)}; "
        f"{_number(_inf(account.reserved.epsilon))} was reserved."
    )


def _restore(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, options=["--site", "--from"], flags=["--forfeit"])
    source = given.maybe("--from")
    export = None if source is None else Export.from_bytes(_read(source))
    with open_ledger(_site(given)) as book:
        came, forfeited = book.restore(export, forfeits=bool(given.flags))
        head = book.head()
    print(f"{came} rows came back; the ledger ends at row {head.row}.")
    for entry in forfeited:
        print(
            f"Row {entry.row} of ledger {entry.ledger[:12]} is lost for good: epsilon {_number(_inf(entry.epsilon))} and delta "
            f"{entry.delta:g} count as spent. Raise the budget in the site file to go on, if you decide to."
        )


def _site(given: Given) -> Site:
    return with_anchor(read_site(Path(given.maybe("--site") or DEFAULT_SITE)))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def _summary(site: Site, found: Ledger, problem: str) -> dict[str, Any]:
    budget, head = site.budget, found.head
    return {
        "hospital": site.hospital,
        "population": site.population,
        "unit": found.opened.unit,
        "fingerprint": found.opened.key.fingerprint,
        "ledger": head.ledger,
        "row": head.row,
        "sha256": head.sha256,
        "budget_epsilon": _finite(budget.epsilon),
        "budget_delta": budget.delta,
        "epsilon": _finite(found.epsilon),
        "delta": found.delta,
        "left_epsilon": _finite(_left(budget.epsilon, found.epsilon)),
        "left_delta": _left(budget.delta, found.delta),
        "plans": [_plan(account) for account in found.plans.values()],
        "problem": problem or None,
    }


def _plan(account: Account) -> dict[str, Any]:
    return {
        "plan": account.reserved.plan,
        "is_open": account.is_open,
        "sessions": len(account.sessions),
        "max_sessions": account.reserved.max_sessions,
        "epsilon": _finite(account.epsilon),
        "delta": account.delta,
    }


def _table(site: Site, found: Ledger) -> str:
    budget, opened, head = site.budget, found.opened, found.head
    left = _left(budget.epsilon, found.epsilon)
    lines = [
        f"Ledger of {opened.hospital}, population '{opened.population}': what was spent on each {opened.unit}'s privacy.",
        "",
        f"  budget   epsilon {_number(budget.epsilon)}, delta {budget.delta:.3g}",
        f"  charged  epsilon {_number(found.epsilon)}, delta {found.delta:.3g}",
        f"  left     epsilon {_number(left)}, delta {_left(budget.delta, found.delta):.3g}",
        f"  ledger   {head.ledger[:12]}, row {head.row}, {head.sha256[:12]}",
        f"  key      {opened.key.fingerprint}",
        "",
        f"  {'plan':<14}{'state':<9}{'sessions':>10}{'epsilon':>10}{'delta':>10}",
    ]
    return "\n".join([*lines, *(_line(account) for account in found.plans.values())])


def _line(account: Account) -> str:
    sessions = f"{len(account.sessions)} of {account.reserved.max_sessions}"
    state = "open" if account.is_open else "closed"
    return f"  {account.reserved.plan[:12]:<14}{state:<9}{sessions:>10}{_number(account.epsilon):>10}{account.delta:>10.3g}"


def _left(budget: float, charged: float) -> float:
    return budget if math.isinf(budget) else max(0.0, budget - charged)


def _inf(epsilon: float | None) -> float:
    return math.inf if epsilon is None else epsilon


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def _number(epsilon: float) -> str:
    return "unbounded" if math.isinf(epsilon) else f"{epsilon:.4g}"
