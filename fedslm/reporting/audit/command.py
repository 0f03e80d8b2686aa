"""The verb `audit` of the command line: for whoever plans a budget, checks a ledger, or answers for it to patients.

It needs no hospital's machine: ledgers come as exported files, trust as public keys.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedslm.errors import ConfigError, LedgerError
from fedslm.governance.command import Given, dispatch
from fedslm.governance.keyfiles import KeyFile, create_file, read_key_file, read_public
from fedslm.governance.plan import Plan
from fedslm.governance.roster import read_roster
from fedslm.process import settle
from fedslm.reporting.audit.verify import DEFAULT_TIMEOUT_S, Trust, Verified, read_file, read_receipts, verify_ledgers
from fedslm.reporting.audit.words import delta_words, epsilon_words, hash_words
from fedslm.reporting.drawing import clean

if TYPE_CHECKING:
    from fedslm.reporting.audit.afford import Question

AUDIT_HELP = """Plans what privacy costs, checks ledgers of what was spent, and reports them to people.

usage: fedslm audit plan --population N --sample-rate Q --steps S --sessions K (--epsilon E | --sigma X) [--delta D]
                         [--plot FILE] [--json]
       fedslm audit plan --plan FILE [--hospital NAME] [--plot FILE] [--json]
       fedslm audit verify LEDGER ... [--key FILE ... | --roster FILE] [--receipts FILE ...] [--timeout SECONDS] [--json]
       fedslm audit report LEDGER ... --out FILE [--key FILE ... | --roster FILE] [--receipts FILE ...] [--plan FILE ...]
                         [--disjoint] [--drafts FOLDER] [--timeout SECONDS] [--json]

  plan    what so many sessions cost, how many an epsilon affords, which noise it needs; touches no data
  verify  checks rows, signatures, receipts and prices of ledgers; ends with 0 only if everything holds
  report  verifies, then writes one page for a data-protection officer, without scripts or links to elsewhere

  LEDGER           a file that a hospital wrote with: fedslm ledger export --out LEDGER
  --key FILE       the hospital's public file, FILE.pub; again for another hospital
  --roster FILE    the consortium's roster, which names everybody's key
  --receipts FILE  receipts.jsonl of a coordinator's run folder: what hospitals said they booked; again for another run
  --plan FILE      plan.json of a run; again for another run
  --timeout S      for the slowest of three accountants, all plans together (60); it gives up then, which is no failure
  --disjoint       declares that no patient is in two of the ledgers; nothing can check that
  --drafts FOLDER  also writes drafts of an impact assessment (Art. 35 GDPR) and a record of processing (Art. 30)
  --delta D        1e-6 if not given; at most 1/(100 * N)
  --plot FILE      epsilon over sessions, as .png or .svg

Without --key or --roster the identity is taken from the file itself, which proves nothing about who made it.
"""

DEFAULT_DELTA = 1e-6

_TRUST = ["--key", "--roster", "--receipts", "--timeout"]


def audit(arguments: list[str]) -> int:
    """`fedslm audit`: 0 when done and everything holds; every other end is an exception with its own exit code."""
    return dispatch("audit", {"plan": _plan, "verify": _verify, "report": _report}, AUDIT_HELP, arguments)


def _plan(arguments: Sequence[str]) -> None:
    numbers = ["--population", "--sample-rate", "--steps", "--sessions", "--epsilon", "--sigma", "--delta"]
    given = Given.parse(arguments, options=[*numbers, "--plan", "--hospital", "--plot"], flags=["--json"])
    settle()
    from fedslm.reporting.audit import afford

    question = _planned(given, numbers) if given.maybe("--plan") else _asked(given)
    plot = given.maybe("--plot")
    if plot is not None:
        _plot(Path(plot), question)
    found = afford.unbounded() if question is None else afford.answer(question)
    print(json.dumps(found, indent=2, sort_keys=True) if given.flags else afford.render(found))
    if plot is not None and not given.flags:
        print(f"\nWrote {plot}.")


def _verify(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, words=["a ledger ..."], options=_TRUST, flags=["--json"])
    settle()
    from fedslm.reporting.audit.facts import verify_facts

    try:
        verified = _verified(given)
    except LedgerError as error:
        if given.flags:
            print(json.dumps({"holds": False, "reason": str(error)}, indent=2, sort_keys=True))
        raise
    facts = verify_facts(verified)
    print(json.dumps(facts, indent=2, sort_keys=True) if given.flags else _told(facts))
    _warn(verified)


def _report(arguments: Sequence[str]) -> None:
    options = [*_TRUST, "--out", "--plan", "--drafts"]
    given = Given.parse(arguments, words=["a ledger ..."], options=options, flags=["--disjoint", "--json"])
    out, drafts = Path(given.one("--out")), given.maybe("--drafts")
    if out.exists():
        raise ConfigError(f"{out} exists and is not overwritten; choose another file or move it away.")
    settle()
    from fedslm.reporting.audit.drafts import write_drafts
    from fedslm.reporting.audit.facts import report_facts
    from fedslm.reporting.audit.page import render_page

    plans = [_read_plan(Path(path)) for path in given.values.get("--plan", ())]
    verified = _verified(given)
    made = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    facts = report_facts(verified, plans=plans, is_disjoint="--disjoint" in given.flags, made=made)
    page = render_page(facts)
    written = [] if drafts is None else write_drafts(Path(drafts), facts)
    create_file(out, page.encode(), mode=0o644)
    print(json.dumps(facts, indent=2, sort_keys=True) if "--json" in given.flags else _wrote([out, *written], facts))
    _warn(verified)


def _verified(given: Given) -> Verified:
    receipts = given.values.get("--receipts")
    return verify_ledgers(
        [Path(word) for word in given.words],
        trust=_trust(given),
        receipts=None if receipts is None else read_receipts([Path(path) for path in receipts]),
        timeout_s=_number(given, "--timeout", DEFAULT_TIMEOUT_S),
    )


def _trust(given: Given) -> Trust:
    keys, roster = given.values.get("--key", ()), given.maybe("--roster")
    if keys and roster is not None:
        raise ConfigError("--key and --roster are both given; the roster names all keys, so leave --key out.")
    found = None if roster is None else read_roster(read_file(Path(roster)))
    return Trust(keys=tuple(_read_key(path) for path in keys), roster=found)


def _read_key(path: str) -> KeyFile:
    read_public(path)  # refuses a file with private keys, which an auditor may not have
    return read_key_file(path)


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_bytes(read_file(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _asked(given: Given) -> Question:
    """The question that stands on the command line."""
    from fedslm.privacy.mechanism import Mechanism
    from fedslm.reporting.audit.afford import Question, noise_for

    if given.maybe("--hospital") is not None:
        raise ConfigError("--hospital is of a plan; give --plan FILE with it, or leave it out.")
    shape: dict[str, Any] = {
        "sample_rate": _number(given, "--sample-rate"),
        "steps": _count(given, "--steps"),
        "declared_population": _count(given, "--population"),
    }
    sessions, delta = _count(given, "--sessions"), _number(given, "--delta", DEFAULT_DELTA)
    epsilon, sigma = given.maybe("--epsilon"), given.maybe("--sigma")
    if (epsilon is None) == (sigma is None):
        found = "neither" if epsilon is None else "both"
        raise ConfigError(f"--epsilon and --sigma follow from each other, found {found}; give one of them.")
    if sigma is not None:
        mechanism = Mechanism(unit="patient", clip_norm=1.0, noise_multiplier=_number(given, "--sigma"), **shape)
        return Question(mechanism=mechanism, sessions=sessions, delta=delta)
    target = _number(given, "--epsilon")
    noise = noise_for(epsilon=target, delta=delta, sessions=sessions, **shape)
    mechanism = Mechanism(unit="patient", clip_norm=1.0, noise_multiplier=noise, **shape)
    return Question(mechanism=mechanism, sessions=sessions, delta=delta, epsilon=target)


def _planned(given: Given, numbers: Sequence[str]) -> Question | None:
    """The question that a plan answers; None for one without privacy."""
    from fedslm.reporting.audit.afford import question_of

    for name in numbers:
        if name in given.values:
            raise ConfigError(f"{name} and --plan are both given, and the plan says all of that; leave {name} out.")
    return question_of(_read_plan(Path(given.one("--plan"))), given.maybe("--hospital"))


def _plot(path: Path, question: Question | None) -> None:
    from fedslm.reporting.audit.afford import plot

    if question is None:
        raise ConfigError("--plot has nothing to draw: the plan has privacy=none, which costs more than any epsilon.")
    plot(path, question)


def _number(given: Given, name: str, default: float | None = None) -> float:
    """The value of an option as a number above 0."""
    text = given.one(name) if default is None else given.maybe(name)
    if text is None:
        return float(default or 0.0)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={text} is not allowed; it has to be a number above 0.")
    return value


def _count(given: Given, name: str) -> int:
    text = given.one(name)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"{name}={text} is not allowed; it has to be a whole number of at least 1.")
    return int(text)


def _told(facts: dict[str, Any]) -> str:
    """A verification for people."""
    seconds = facts["seconds"]
    took = (
        f"Took {seconds['chain']:.1f} s for rows, signatures and receipts, {seconds['accountants']:.1f} s for PLD and RDP, "
        f"{seconds['prv']:.1f} s for PRV."
    )
    roster = facts["roster_sha256"]
    found = "Everything holds." if roster is None else f"Everything holds, by the roster {roster}."
    return "\n\n".join([found, *(_ledger_words(ledger) for ledger in facts["ledgers"]), took])


def _ledger_words(ledger: dict[str, Any]) -> str:
    receipts = (
        "no receipts were given" if ledger["receipts"] is None else f"{ledger['receipts']:,} receipts, all booked"
    )
    source = {"key": "a key that was given", "roster": "the roster", "file": "THE FILE ITSELF"}[
        ledger["identity"]["source"]
    ]
    lines = [
        f"{ledger['hospital']}, population '{ledger['population']}', protects each {ledger['unit']}",
        f"  file      {clean(ledger['file'])}",
        f"  ledger    {hash_words(ledger['ledger'])}, row {ledger['head']['row']}, {hash_words(ledger['head']['sha256'])}",
        f"  rows      {ledger['rows']:,}, {ledger['signatures']:,} signatures, {receipts}",
        f"  identity  from {source}: {ledger['identity']['fingerprint']}",
        f"  charged   epsilon {epsilon_words(ledger['epsilon'])}, delta {delta_words(ledger['delta'])}",
        "",
        f"  {'plan':<14}{'state':<8}{'sessions':>14}{'charged':>10}{'PLD':>10}{'RDP':>10}{'PRV':>10}",
        *(_plan_words(plan) for plan in ledger["plans"]),
    ]
    if any(plan["prv"] is None and plan["epsilon"] is not None for plan in ledger["plans"]):
        lines.append(
            "  PRV gave up where it says so: out of time, or its numbers did not fit. The others stand without it."
        )
    if ledger["clock_went_back"]:
        rows = ", ".join(str(number) for number in ledger["clock_went_back"])
        lines.append(f"  The hospital's clock went back at row {rows}, which breaks no rule.")
    return "\n".join(lines)


def _plan_words(plan: dict[str, Any]) -> str:
    state = "open" if plan["is_open"] else "closed"
    sessions = f"{plan['sessions']:,} of {plan['max_sessions']:,}"
    prices = [epsilon_words(plan[name]) for name in ("epsilon", "pld", "rdp")]
    gave_up = plan["prv"] is None and plan["epsilon"] is not None
    prices.append("gave up" if gave_up else epsilon_words(plan["prv"]))
    return f"  {hash_words(plan['plan']):<14}{state:<8}{sessions:>14}" + "".join(f"{price:>10}" for price in prices)


def _wrote(paths: Sequence[Path], facts: dict[str, Any]) -> str:
    lines = [
        f"{ledger['hospital']}, population '{ledger['population']}': epsilon {epsilon_words(ledger['epsilon'])} of "
        f"{'no budget' if ledger['budget_epsilon'] is None else epsilon_words(ledger['budget_epsilon'])} charged for each "
        f"{ledger['unit']}."
        for ledger in facts["ledgers"]
    ]
    return "\n".join([*lines, *(f"Wrote {path}." for path in paths)])


def _warn(verified: Verified) -> None:
    """Says loudly what an exit code of 0 does not mean."""
    for each in verified.ledgers:
        if each.identity == "file":
            groups = each.opened.key.fingerprint
            print(
                f"WARNING: WHOSE LEDGER {each.path} IS WAS NOT CHECKED. Its key was taken from the file itself, which anybody "
                f"could have made. Compare this fingerprint with what '{each.opened.hospital}' reads out, or give --key or "
                f"--roster:\n{groups}",
                file=sys.stderr,
            )
        if math.isinf(each.ledger.epsilon):
            print(
                f"WARNING: NO BOUND. The ledger of '{each.opened.hospital}' has training without privacy, or losses without "
                "a bound, in it.",
                file=sys.stderr,
            )
