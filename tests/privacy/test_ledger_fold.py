"""Every rule of the fold, for whoever adds a row and for whoever verifies; totals are exact; a refusal changes nothing."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedslm.errors import BudgetExceededError, LedgerError
from fedslm.governance.receipt import MAX_ROW, Head
from fedslm.privacy.ledger import Export
from fedslm.privacy.ledger_fold import Account, Ledger
from fedslm.privacy.ledger_rows import NO_ROW, Closed, Data, Entry, Forfeited, Reserved, Row
from tests.privacy.ledgers import TIME, booked, closed, ledger_of, opened, plan, reserved, unbounded

OTHER = "5e" * 32
DATA = Data(fingerprint="3c" * 32)


def forfeited(ledger: str = OTHER, row: int = 9, *, epsilon: float | None = 1.0, delta: float = 1e-6) -> Forfeited:
    return Forfeited(ledger=ledger, row=row, sha256="2b" * 32, epsilon=epsilon, delta=delta)


def full_ledger() -> Ledger:
    """Two plans, one of them closed, in seven rows."""
    return ledger_of(reserved(1), booked(1, 1), booked(1, 3), closed(1, 2, 1.5), DATA, reserved(2))


def chained(*entries: Entry) -> list[Row]:
    """Rows of these entries with the right hashes and numbers, whether the rules allow them or not."""
    rows: list[Row] = []
    for number, entry in enumerate((opened(), *entries), start=1):
        previous = rows[-1].sha256 if rows else NO_ROW
        rows.append(Row(number=number, time=TIME, previous=previous, entry=entry))
    return rows


# --- what follows from the rows -----------------------------------------------------------------------------------


def test_a_ledger_says_whose_it_is_and_where_it_ends() -> None:
    ledger = full_ledger()
    assert ledger.opened == opened()
    assert ledger.id == ledger.rows[0].sha256
    assert ledger.head == Head(ledger=ledger.id, row=7, sha256=ledger.rows[-1].sha256)
    assert ledger.head_of(1) == Head(ledger=ledger.id, row=1, sha256=ledger.id)
    assert [row.number for row in ledger.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.previous for row in ledger.rows] == [NO_ROW, *(row.sha256 for row in ledger.rows[:-1])]


def test_accounts_say_what_is_left_of_a_plan() -> None:
    plans = full_ledger().plans
    assert list(plans) == [plan(1), plan(2)]
    assert plans[plan(1)] == Account(reserved=reserved(1), sessions=(1, 3), closed=closed(1, 2, 1.5))
    assert plans[plan(2)] == Account(reserved=reserved(2), sessions=(), closed=None)
    assert (plans[plan(1)].is_open, plans[plan(1)].sessions_left, plans[plan(1)].epsilon) == (False, 0, 1.5)
    assert (plans[plan(2)].is_open, plans[plan(2)].sessions_left, plans[plan(2)].epsilon) == (True, 3, 2.0)
    assert plans[plan(1)].delta == plans[plan(2)].delta == 1e-6


def test_sessions_left_falls_with_each_booking() -> None:
    ledger = ledger_of(reserved(1))
    for left in (2, 1, 0):
        ledger.add(ledger.check(booked(1, 3 - left), TIME))
        assert ledger.plans[plan(1)].sessions_left == left


def test_an_open_plan_is_charged_in_full_and_a_closed_one_for_what_it_came_to() -> None:
    assert ledger_of().epsilon == 0.0
    assert ledger_of(reserved(1)).epsilon == 2.0
    assert ledger_of(reserved(1), booked(1, 1)).epsilon == 2.0
    assert ledger_of(reserved(1), booked(1, 1), closed(1, 1, 0.75)).epsilon == 0.75
    assert full_ledger().epsilon == 3.5
    assert full_ledger().delta == 2e-6


def test_a_plan_that_never_started_costs_nothing() -> None:
    ledger = ledger_of(reserved(1), closed(1, 0, 0.0))
    assert (ledger.epsilon, ledger.delta) == (0.0, 0.0)
    assert (ledger.plans[plan(1)].epsilon, ledger.plans[plan(1)].delta) == (0.0, 0.0)


def test_what_is_forfeited_is_spent() -> None:
    ledger = ledger_of(reserved(1), forfeited(epsilon=1.25, delta=3e-6))
    assert (ledger.epsilon, ledger.delta) == (3.25, 4e-6)


@pytest.mark.parametrize("entry", [unbounded(9), forfeited(epsilon=None)], ids=["plan", "forfeit"])
def test_one_unbounded_charge_makes_the_whole_unbounded(entry: Entry) -> None:
    ledger = ledger_of(reserved(1), entry)
    assert ledger.epsilon == math.inf
    assert ledger.delta == 1e-6  # an unbounded epsilon needs no delta
    if isinstance(entry, Forfeited):
        return
    assert (ledger.plans[plan(9)].epsilon, ledger.plans[plan(9)].delta) == (math.inf, 0.0)


def test_a_plan_without_privacy_that_never_started_costs_nothing() -> None:
    ledger = ledger_of(unbounded(1), closed(1, 0, 0.0), reserved(2))
    assert (ledger.epsilon, ledger.delta) == (2.0, 1e-6)


def test_a_plan_without_privacy_stays_unbounded_once_it_started() -> None:
    ledger = ledger_of(unbounded(1), booked(1, 1), closed(1, 1, None))
    assert (ledger.epsilon, ledger.plans[plan(1)].epsilon) == (math.inf, math.inf)


def test_a_plan_without_privacy_may_take_more_sessions_than_were_reserved() -> None:
    ledger = ledger_of(unbounded(1), *(booked(1, session) for session in range(1, 6)))
    assert ledger.plans[plan(1)].sessions == (1, 2, 3, 4, 5)
    assert ledger.plans[plan(1)].sessions_left == 0


def test_the_clock_may_go_back_and_that_shows() -> None:
    times = ["2026-11-22T23:11:18Z", "2026-11-22T23:11:17Z", "2026-11-22T23:11:17Z", "2025-12-31T00:00:00Z", TIME]
    ledger = Ledger()
    for number, when in enumerate(times):
        entry = DATA if number else opened()
        ledger.add(ledger.check(entry, when))
    assert ledger.clock_went_back == (2, 4)
    assert [row.time for row in ledger.rows] == times
    assert Ledger.replay(ledger.rows).clock_went_back == (2, 4)
    assert full_ledger().clock_went_back == ()


def test_an_empty_ledger_is_nobodys() -> None:
    ledger = Ledger.replay(())
    assert (ledger.rows, ledger.epsilon, ledger.delta, dict(ledger.plans)) == ((), 0.0, 0.0, {})
    assert not ledger.knows(full_ledger().head)
    for read in (lambda: ledger.opened, lambda: ledger.id, lambda: ledger.head, lambda: ledger.head_of(1)):
        with pytest.raises(LedgerError):
            read()


# --- the rules ----------------------------------------------------------------------------------------------------

RULES: dict[str, tuple[tuple[Entry, ...], Entry, str]] = {
    "opened twice": ((), opened(), "one opening row"),
    "reserved twice": ((reserved(1),), reserved(1), f"Plan {plan(1)[:12]} is reserved already"),
    "reserved again after closing": ((reserved(1), closed(1, 0, 0.0)), reserved(1), "is reserved already"),
    "another unit": ((), reserved(1, unit="record", max_records_per_unit=1), "protects a record, .* by the patient"),
    "booked before reserved": ((reserved(2),), booked(1, 1), f"Plan {plan(1)[:12]} is not reserved"),
    "booked after closing": ((reserved(1), closed(1, 0, 0.0)), booked(1, 1), f"Plan {plan(1)[:12]} is closed"),
    "booked twice": ((reserved(1), booked(1, 2)), booked(1, 2), "Session 2 of plan .* is not new: session 2 is booked"),
    "booked out of order": ((reserved(1), booked(1, 2)), booked(1, 1), "Session 1 of plan .* is not new: session 2"),
    "closed before reserved": ((), closed(1, 0, 0.0), f"Plan {plan(1)[:12]} is not reserved"),
    "closed twice": ((reserved(1), closed(1, 0, 0.0)), closed(1, 0, 0.0), "is closed; nothing more"),
    "closed with too few sessions": (
        (reserved(1), booked(1, 1)),
        closed(1, 0, 0.0),
        "with 0 sessions, but 1 are booked",
    ),
    "closed with too many sessions": (
        (reserved(1), booked(1, 1)),
        closed(1, 2, 1.0),
        "with 2 sessions, but 1 are booked",
    ),
    "closed above what was reserved": ((reserved(1),), closed(1, 0, 2.1), "at epsilon 2.1, but 2.0 was reserved"),
    "closed as unbounded": ((reserved(1),), closed(1, 0, None), "at epsilon inf, but 2.0 was reserved"),
    "closed as bounded": (
        (unbounded(1), booked(1, 1)),
        closed(1, 1, 3.0),
        "at epsilon 3.0, but inf .* stays unbounded",
    ),
}
BUDGET: dict[str, tuple[tuple[Entry, ...], Entry, str]] = {
    "too many sessions": (
        (reserved(1), booked(1, 1), booked(1, 2), booked(1, 3)),
        booked(1, 4),
        "has 3 sessions booked of the 3",
    ),
    "epsilon": (
        (reserved(1), booked(1, 1), closed(1, 1, 1.5), reserved(2), forfeited(epsilon=2.0)),
        reserved(3, epsilon=2.75),
        "is epsilon 8, of which 3.5 is spent and 2 reserved by open plans; a plan that asks for 2.75 does not fit",
    ),
    "delta": (
        (reserved(1), booked(1, 1), closed(1, 1, 1.5), reserved(2, delta=2e-6), forfeited(delta=4e-6)),
        reserved(3, budget_delta=7.5e-6),
        "is delta 7.5e-06, of which 5e-06 is spent and 2e-06 reserved by open plans; a plan that asks for 1e-06 does not",
    ),
    "first plan": ((), reserved(1, epsilon=8.1), "is epsilon 8, of which 0 is spent and 0 reserved .* asks for 8.1"),
    "first delta": ((), reserved(1, delta=2e-4), "is delta 0.0001, .* asks for 0.0002"),
    "delta without a limit on epsilon": ((), reserved(1, delta=2e-4, budget_epsilon=None), "is delta 0.0001"),
    "unbounded under a budget": ((), unbounded(1, budget_epsilon=8.0), "is epsilon 8, .* asks for inf"),
    "bounded after unbounded": ((unbounded(1),), reserved(2), "is epsilon 8, of which 0 is spent and inf reserved"),
    "after an unbounded forfeit": ((forfeited(epsilon=None),), reserved(2), "is epsilon 8, of which inf is spent"),
}


@pytest.mark.parametrize("rule", RULES)
def test_an_entry_that_breaks_a_rule_is_refused(rule: str) -> None:
    before, entry, message = RULES[rule]
    with pytest.raises(LedgerError, match=message):
        ledger_of(*before).check(entry, TIME)


@pytest.mark.parametrize("rule", BUDGET)
def test_what_the_budget_does_not_cover_is_refused(rule: str) -> None:
    before, entry, message = BUDGET[rule]
    with pytest.raises(BudgetExceededError, match=message):
        ledger_of(*before).check(entry, TIME)


@pytest.mark.parametrize("rule", [*RULES, *BUDGET])
def test_a_verifier_finds_the_same(rule: str) -> None:
    before, entry, message = (RULES | BUDGET)[rule]
    rows = chained(*before, entry)
    with pytest.raises(LedgerError, match=rf"^The ledger is refused at row {len(rows)}: .*{message}"):
        Ledger.replay(rows)
    assert len(Ledger.replay(rows[:-1]).rows) == len(rows) - 1


@pytest.mark.parametrize("rule", [*RULES, *BUDGET])
def test_a_refusal_changes_nothing(rule: str) -> None:
    before, entry, _ = (RULES | BUDGET)[rule]
    ledger = ledger_of(*before)
    state = state_of(ledger)
    with pytest.raises((LedgerError, BudgetExceededError)):
        ledger.add(chained(*before, entry)[-1])
    assert state_of(ledger) == state


def state_of(ledger: Ledger) -> tuple[Any, ...]:
    return ledger.rows, dict(ledger.plans), ledger.epsilon, ledger.delta, ledger.head, ledger.clock_went_back


@pytest.mark.parametrize(
    "entry", [reserved(1), booked(1, 1), closed(1, 0, 0.0), DATA, forfeited()], ids=lambda e: type(e).__name__
)
def test_only_an_opening_comes_first(entry: Entry) -> None:
    with pytest.raises(LedgerError, match="one opening row, its first"):
        Ledger().check(entry, TIME)
    with pytest.raises(LedgerError, match=r"at row 1: .*one opening row"):
        Ledger.replay([Row(number=1, time=TIME, previous=NO_ROW, entry=entry)])


@pytest.mark.parametrize(
    "entry", [reserved(3, epsilon=4.0), reserved(3, epsilon=6.0, budget_epsilon=10.0)], ids=["all", "more"]
)
def test_a_budget_is_spent_to_the_last_bit(entry: Entry) -> None:
    ledger = ledger_of(reserved(1), reserved(2), entry)
    assert ledger.epsilon in (8.0, 10.0)
    with pytest.raises(BudgetExceededError):
        ledger.check(reserved(4, epsilon=1e-9), TIME)


def test_ten_tenths_fit_into_one() -> None:
    tenths = [reserved(number, epsilon=0.1, budget_epsilon=1.0) for number in range(10)]
    assert ledger_of(*tenths).epsilon == 1.0
    with pytest.raises(BudgetExceededError):
        ledger_of(*tenths).check(reserved(11, epsilon=1e-9, budget_epsilon=1.0), TIME)


def test_closing_makes_room() -> None:
    ledger = ledger_of(reserved(1, epsilon=8.0), booked(1, 1))
    with pytest.raises(BudgetExceededError):
        ledger.check(reserved(2), TIME)
    ledger.add(ledger.check(closed(1, 1, 6.0), TIME))
    ledger.add(ledger.check(reserved(2), TIME))
    assert ledger.epsilon == 8.0


def test_the_budget_is_the_one_that_is_named_with_the_plan() -> None:
    ledger = ledger_of(reserved(1, epsilon=8.0))
    ledger.check(reserved(2, budget_epsilon=10.0), TIME)
    ledger.check(reserved(2, budget_epsilon=None), TIME)
    with pytest.raises(BudgetExceededError):
        ledger.check(reserved(2, budget_epsilon=9.0), TIME)


def test_a_forfeit_counts_beyond_any_budget() -> None:
    ledger = ledger_of(reserved(1, epsilon=8.0), forfeited(epsilon=8.0, delta=1e-4))
    assert (ledger.epsilon, ledger.delta) == (16.0, 1.01e-4)


def test_without_a_limit_epsilon_may_grow() -> None:
    ledger = ledger_of(*(reserved(number, epsilon=100.0, budget_epsilon=None) for number in range(20)))
    assert ledger.epsilon == 2000.0


def test_a_sum_beyond_every_float_is_unbounded() -> None:
    huge = [reserved(number, epsilon=1.7e308, budget_epsilon=None) for number in range(2)]
    assert ledger_of(*huge).epsilon == math.inf
    with pytest.raises(BudgetExceededError, match=r"asks for 1\.7e"):
        ledger_of(huge[0]).check(reserved(2, epsilon=1.7e308, budget_epsilon=1.75e308), TIME)


def test_without_privacy_the_unit_does_not_matter() -> None:
    assert ledger_of(unbounded(1, unit="record")).epsilon == math.inf


def test_a_record_ledger_refuses_patient_plans() -> None:
    with pytest.raises(LedgerError, match=r"protects a patient, .* by the record"):
        ledger_of(opening=opened(unit="record")).check(reserved(1), TIME)


def test_plans_are_booked_apart() -> None:
    ledger = ledger_of(reserved(1), reserved(2), booked(2, 5), booked(1, 1), booked(2, 6), booked(1, 4))
    assert [account.sessions for account in ledger.plans.values()] == [(1, 4), (5, 6)]


# --- the chain ----------------------------------------------------------------------------------------------------

Tamper = Callable[[list[Row]], Sequence[Row]]
TAMPERS: dict[str, tuple[Tamper, str]] = {
    "first row taken out": (lambda rows: rows[1:], "at row 2: A row numbered 2 stands where row 1 belongs"),
    "row taken out": (lambda rows: rows[:3] + rows[4:], "at row 5: A row numbered 5 stands where row 4 belongs"),
    "row repeated": (lambda rows: rows[:4] + rows[3:], "at row 4: A row numbered 4 stands where row 5 belongs"),
    "rows swapped": (
        lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]],
        "A row numbered 4 stands where row 3 belongs",
    ),
    "rows in reverse": (lambda rows: rows[::-1], "stands where row 1 belongs"),
    "row put in": (lambda rows: [*rows[:3], changed(rows[3], entry=DATA), *rows[3:]], "stands where row 5 belongs"),
    "row altered": (
        lambda rows: [*rows[:2], changed(rows[2], entry=booked(1, 2)), *rows[3:]],
        "at row 4: .*hash of the row",
    ),
    "time altered": (
        lambda rows: [*rows[:2], changed(rows[2], time="2026-11-22T23:11:19Z"), *rows[3:]],
        "at row 4: .*hash",
    ),
    "opening altered": (lambda rows: [changed(rows[0], entry=opened(nonce="1" * 32)), *rows[1:]], "at row 2: .*hash"),
    "previous altered": (lambda rows: [*rows[:-1], changed(rows[-1], previous=NO_ROW)], "at row 7: .*hash"),
    "first previous altered": (lambda rows: [changed(rows[0], previous="1" * 64)], "at row 1: .*hash"),
    "rows renumbered": (
        lambda rows: [*rows[:3], *(changed(row, number=row.number - 1) for row in rows[4:])],
        "at row 4: .*hash",
    ),
    "two ledgers joined": (
        lambda rows: [*rows[:3], *ledger_of(reserved(1), booked(1, 1), DATA, opening=opened(population="b")).rows[3:]],
        "at row 4: .*hash",
    ),
}


def changed(row: Row, **changes: Any) -> Row:
    return dataclasses.replace(row, **changes)


@pytest.mark.parametrize("tamper", TAMPERS)
def test_altered_rows_are_found(tamper: str) -> None:
    alter, message = TAMPERS[tamper]
    with pytest.raises(LedgerError, match=message):
        Ledger.replay(alter(list(full_ledger().rows)))


def test_a_row_is_added_once() -> None:
    ledger = full_ledger()
    row = ledger.check(DATA, TIME)
    ledger.add(row)
    with pytest.raises(LedgerError, match="numbered 8 stands where row 9 belongs"):
        ledger.add(row)


def test_checking_changes_nothing() -> None:
    ledger = full_ledger()
    state = state_of(ledger)
    assert ledger.check(reserved(9), TIME) == ledger.check(reserved(9), TIME)
    assert state_of(ledger) == state


# --- heads and forfeits -------------------------------------------------------------------------------------------


def test_a_ledger_knows_its_own_rows_only() -> None:
    ledger, head = full_ledger(), full_ledger().head
    for number in range(1, 8):
        assert ledger.knows(ledger.head_of(number))
        assert ledger.find(ledger.head_of(number)) == ledger.rows[number - 1]
    for changes in ({"row": 6}, {"row": 8}, {"sha256": "0" * 64}, {"ledger": OTHER}):
        assert not ledger.knows(dataclasses.replace(head, **changes))
        assert ledger.find(dataclasses.replace(head, **changes)) is None


def test_an_older_copy_does_not_know_the_newer_head() -> None:
    old = Ledger.replay(full_ledger().rows[:5])
    assert not old.knows(full_ledger().head)
    assert full_ledger().knows(old.head)


def test_a_forfeit_settles_what_it_names_and_what_lies_before() -> None:
    ledger = ledger_of(forfeited(row=9))
    for row, settled in ((1, True), (9, True), (10, False)):
        head = Head(ledger=OTHER, row=row, sha256="7f" * 32)
        assert ledger.knows(head) is settled
        assert ledger.find(head) is None
    assert not ledger.knows(Head(ledger="6f" * 32, row=1, sha256="7f" * 32))


def test_a_smaller_forfeit_unsettles_nothing() -> None:
    ledger = ledger_of(forfeited(row=9), forfeited(row=4))
    assert ledger.knows(Head(ledger=OTHER, row=9, sha256="7f" * 32))


def test_a_forfeit_of_another_ledger_takes_the_next_number() -> None:
    assert ledger_of(forfeited(row=40)).head.row == 2


@pytest.mark.parametrize(("lost", "number"), [(40, 41), (8, 9), (7, 8), (3, 8)])
def test_a_forfeit_of_its_own_rows_goes_on_behind_them(lost: int, number: int) -> None:
    ledger = full_ledger()
    ledger.add(ledger.check(forfeited(ledger.id, lost), TIME))
    assert ledger.head.row == number
    ledger.add(ledger.check(DATA, TIME))
    assert [row.number for row in ledger.rows[-2:]] == [number, number + 1]
    assert ledger.knows(Head(ledger=ledger.id, row=lost, sha256="7f" * 32))
    assert Ledger.replay(ledger.rows).head == ledger.head
    with pytest.raises(LedgerError, match="has no row 39"):
        ledger.head_of(39)


@pytest.mark.parametrize("number", [8, 40, 42])
def test_a_forfeit_jumps_to_one_number_only(number: int) -> None:
    ledger = full_ledger()
    row = changed(ledger.check(forfeited(ledger.id, 40), TIME), number=number)
    with pytest.raises(LedgerError, match=f"numbered {number} stands where row 41 belongs"):
        ledger.add(row)


def test_only_a_forfeit_jumps() -> None:
    ledger = full_ledger()
    with pytest.raises(LedgerError, match="numbered 9 stands where row 8 belongs"):
        ledger.add(changed(ledger.check(DATA, TIME), number=9))


def test_the_last_number_there_is_ends_a_ledger() -> None:
    ledger = full_ledger()
    ledger.add(ledger.check(forfeited(ledger.id, MAX_ROW - 1), TIME))
    assert ledger.head.row == MAX_ROW
    with pytest.raises(LedgerError, match="nothing can be added"):
        ledger.check(DATA, TIME)
    with pytest.raises(LedgerError, match="nothing can be added"):
        full_ledger().check(forfeited(full_ledger().id, MAX_ROW), TIME)


# --- any sequence of entries --------------------------------------------------------------------------------------

epsilons = st.floats(1e-9, 50.0) | st.sampled_from([0.1, 0.3, 1 / 3])
deltas = st.floats(1e-12, 1e-3)
numbers = st.integers(1, 4)
entries = st.one_of(
    st.builds(
        lambda number, epsilon, delta, budget: reserved(number, epsilon=epsilon, delta=delta, budget_epsilon=budget),
        *(numbers, epsilons, deltas, st.none() | epsilons),
    ),
    st.builds(unbounded, numbers),
    st.builds(booked, numbers, st.integers(1, 5)),
    st.builds(booked, numbers, st.integers(1, 5)),
    st.builds(closed, numbers, st.integers(0, 3), st.none() | st.floats(0.0, 50.0)),
    st.builds(lambda epsilon, delta: forfeited(epsilon=epsilon, delta=delta), st.none() | epsilons, deltas),
    st.just(DATA),
    st.just(opened()),
)


@given(st.lists(entries, max_size=25))
def test_any_valid_sequence_reads_back_and_adds_up(wanted: list[Entry]) -> None:
    ledger = ledger_of()
    for entry in wanted:
        try:
            ledger.add(ledger.check(entry, TIME))
        except (LedgerError, BudgetExceededError):
            continue
    read = Ledger.replay([Row.from_bytes(row.to_bytes()) for row in ledger.rows])
    assert state_of(read) == state_of(ledger)
    export = Export(rows=ledger.rows, signatures=())
    assert Export.from_bytes(export.to_bytes()) == export
    assert (ledger.epsilon, ledger.delta) == naive_totals([row.entry for row in ledger.rows])


def naive_totals(rows: Sequence[Entry]) -> tuple[float, float]:
    """Epsilon and delta as a list of charges says, the last word on each plan."""
    charges: dict[str, tuple[float, float]] = {}
    for number, entry in enumerate(rows):
        if isinstance(entry, Forfeited):
            charges[f"forfeit {number}"] = charge(entry.epsilon, entry.delta)
        elif isinstance(entry, Closed):
            charges[entry.plan] = charge(entry.epsilon, charges[entry.plan][1] if entry.sessions else 0.0)
        elif isinstance(entry, Reserved):
            charges[entry.plan] = charge(entry.epsilon, entry.delta)
    return math.fsum(epsilon for epsilon, _ in charges.values()), math.fsum(delta for _, delta in charges.values())


def charge(epsilon: float | None, delta: float) -> tuple[float, float]:
    return (math.inf, 0.0) if epsilon is None else (epsilon, delta)


@given(st.lists(st.tuples(epsilons, st.floats(0.0, 1.0)), max_size=30))
def test_closing_leaves_no_trace_of_what_was_reserved(plans: list[tuple[float, float]]) -> None:
    ledger = ledger_of()
    for number, (epsilon, share) in enumerate(plans):
        ledger.add(ledger.check(reserved(number, epsilon=epsilon, budget_epsilon=None, max_sessions=1), TIME))
        ledger.add(ledger.check(booked(number, 1), TIME))
        ledger.add(ledger.check(closed(number, 1, epsilon * share), TIME))
    assert ledger.epsilon == math.fsum(epsilon * share for epsilon, share in plans)


def test_ten_thousand_rows_replay_in_half_a_second() -> None:
    plans: list[list[Entry]] = [
        [reserved(n, epsilon=1e-3, delta=1e-9, max_sessions=1000), *(booked(n, s) for s in range(1, 999))]
        for n in range(10)
    ]
    data = [row.to_bytes() for row in ledger_of(*(entry for of_plan in plans for entry in of_plan)).rows]
    assert len(data) == 9991
    took = []
    for _ in range(3):
        rows = [Row.from_bytes(each) for each in data]
        started = time.process_time()
        Ledger.replay(rows)
        took.append(time.process_time() - started)
    assert min(took) < 0.5
