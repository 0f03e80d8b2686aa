"""A coordinator that lies at random, for as long as it likes, reads nothing but one agreed sum a session.

Two sessions run at once, each shown in two versions. What hospitals answered in one is dropped, mixed, replayed, cut,
altered and sent to others, and up to T of them help. After every move the account in `adversary` says what can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedslm.errors import ProtocolError
from fedslm.secagg.hospital import Confirmed, Masked, Shared
from tests.secagg.adversary import Adversary, Sets, StandIn

WORLDS = [(3, 0, 2), (4, 1, 2), (4, 1, 3), (5, 0, 2), (5, 1, 2), (6, 0, 5), (7, 2, 2)]
"""n, T and h. With (4, 1) and (7, 2) one colluder more would break the promise; in the last two h asks for more than t."""

Place = tuple[int, int]
"""A point and the number of a session."""


class Coordinator(RuleBasedStateMachine):
    """Moves of a coordinator that lies. `tally` counts what was reached, so that a test can see that it was much."""

    tally: dict[str, int]

    @initialize(world=st.sampled_from(WORLDS), data=st.data())
    def begin(self, world: tuple[int, int, int], data: st.DataObject) -> None:
        n, promised, least = world
        colluders = data.draw(st.permutations(range(1, n + 1)))[:promised]
        self.adversary = Adversary(n, promised=promised, colluders=colluders, least=least, signer=StandIn)
        self.read: set[tuple[int, int, frozenset[int]]] = set()
        for session in (1, 2):
            odd = some(self.adversary.honest, 2, data)
            self.adversary.open(session, {point: int(point in odd) for point in self.adversary.honest})
            for point in some(self.adversary.honest, 2, data):
                self.tried("mask", partial(self.mask_one, point, session, [], "alone", data))
            if data.draw(st.integers(0, 2)):
                self.mask_everybody(session, 0, set(), data)

    def at(self, step: type) -> list[Place]:
        """Hospitals that wait at a step."""
        if not hasattr(self, "adversary"):
            return []
        return [place for place, state in sorted(self.adversary.states.items()) if isinstance(state, step)]

    def tried(self, move: str, call: Callable[[], object]) -> bool:
        """Makes a move; a refusal has to be one of the protocol's, and leaves the hospital where it was."""
        before = dict(self.adversary.states)
        try:
            call()
        except ProtocolError:
            assert self.adversary.states == before
            self.tally[f"{move} refused"] += 1
            return False
        self.tally[move] += 1
        return True

    @precondition(lambda self: not getattr(self, "adversary", None) or not self.adversary.states)
    @rule()
    def wait(self) -> None:
        """When nobody is left to be lied to."""

    # --- step 2

    @precondition(lambda self: self.at(Shared))
    @rule(
        data=st.data(),
        twist=st.sampled_from(["", "", "", "alone", "alien", "swap", "alter", "cut", "twice", "context"]),
    )
    def mask(self, data: st.DataObject, twist: str) -> None:
        point, session = data.draw(st.sampled_from(self.at(Shared)))
        self.tried("mask", lambda: self.mask_one(point, session, self.senders(point, session, data), twist, data))

    @precondition(lambda self: self.at(Shared))
    @rule(session=st.sampled_from([1, 2]), version=st.sampled_from([0, 0, 0, 1]), data=st.data())
    def mask_all(self, session: int, version: int, data: st.DataObject) -> None:
        everybody = sorted(self.adversary.replies[session, version])
        self.mask_everybody(session, version, some(everybody, 2, data), data)

    def mask_everybody(self, session: int, version: int, missing: set[int], data: st.DataObject) -> None:
        for point, number in self.at(Shared):
            if number == session and self.adversary.seats[point, session] == version:
                others = [sender for sender in sorted(self.adversary.replies[session, version]) if sender != point]
                senders = [sender for sender in others if sender not in missing]
                self.tried("mask", partial(self.mask_one, point, session, senders, "", data))

    def senders(self, point: int, session: int, data: st.DataObject) -> list[int]:
        version = self.adversary.seats[point, session]
        others = [sender for sender in sorted(self.adversary.replies[session, version]) if sender != point]
        missing = some(others, 3, data)
        return [sender for sender in others if sender not in missing]

    def mask_one(self, point: int, session: int, senders: list[int], twist: str, data: st.DataObject) -> None:
        adversary, version = self.adversary, self.adversary.seats[point, session]
        if twist == "alone":
            senders = sorted(adversary.colluders)
        deliveries = [adversary.delivery(sender, point, session, version) for sender in senders]
        context = adversary.accounts[session, version].terms.context
        if twist == "context":
            context = adversary.accounts[data.draw(st.sampled_from([1, 2])), 1 - version].terms.context
        elif twist and deliveries:
            place = data.draw(st.integers(0, len(deliveries) - 1))
            deliveries = self.twisted(deliveries, place, twist, point, data)
        adversary.mask(point, session, deliveries, context=context)

    def twisted(
        self, deliveries: list[tuple[bytes, bytes]], place: int, twist: str, point: int, data: st.DataObject
    ) -> list[tuple[bytes, bytes]]:
        listed, sealed = deliveries[place]
        if twist == "alien":
            # Something that some hospital sent somewhere: mostly to this one, in another session or version.
            sent = [(sender, where) for where, replies in self.adversary.replies.items() for sender in sorted(replies)]
            sender, where = data.draw(st.sampled_from([one for one in sent if one[0] != point]))
            others = [other for other in range(1, self.adversary.n + 1) if other != sender]
            receiver = point if data.draw(st.integers(0, 2)) else data.draw(st.sampled_from(others))
            deliveries[place] = self.adversary.delivery(sender, receiver, *where)
        elif twist == "swap":
            other = data.draw(st.integers(0, len(deliveries) - 1))
            deliveries[place], deliveries[other] = (listed, deliveries[other][1]), (deliveries[other][0], sealed)
        elif twist == "alter":
            deliveries[place] = (
                (altered(listed, data), sealed) if data.draw(st.booleans()) else (listed, altered(sealed, data))
            )
        elif twist == "cut":
            deliveries[place] = listed, sealed[: data.draw(st.integers(0, len(sealed) - 1))]
        else:
            deliveries.insert(data.draw(st.integers(0, len(deliveries))), (listed, sealed))
        return deliveries

    # --- step 3

    @precondition(lambda self: self.at(Masked))
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        point, session = data.draw(st.sampled_from(self.at(Masked)))
        sets, is_elsewhere = self.sets(point, session, data), not data.draw(st.integers(0, 7))
        self.tried("confirm", partial(self.confirm_one, point, session, sets, is_elsewhere=is_elsewhere))

    @precondition(lambda self: self.at(Masked))
    @rule(session=st.sampled_from([1, 2]), data=st.data(), groups=st.integers(0, 3))
    def split(self, session: int, data: st.DataObject, groups: int) -> None:
        """Shows each hospital one of a few U3, or one of its own, and tells all of them at once that they agree."""
        places = [place for place in self.at(Masked) if place[1] == session]
        shown = [self.sets(*data.draw(st.sampled_from(places)), data, least=1) for _ in range(groups) if places]
        for point, _ in places:
            fitting = [sets for sets in shown if point in sets[1]] or [self.sets(point, session, data, least=1)]
            sets = data.draw(st.sampled_from(fitting))
            self.tried("confirm", partial(self.confirm_one, point, session, sets))
        self.unmask_everybody(data)

    def sets(self, point: int, session: int, data: st.DataObject, *, least: int = 0) -> Sets:
        """U2 and U3 as they could be shown to a hospital: mostly right and with it in them, now and then not."""
        adversary, state = self.adversary, self.adversary.states[point, session]
        used = sorted(adversary.signatures[session, adversary.seats[point, session]])
        if used and data.draw(st.integers(0, 2)) == 0:
            return data.draw(st.sampled_from(used))
        assert isinstance(state, Masked)
        everybody = range(1, adversary.n + 1)
        sharers = state.sharers if data.draw(st.integers(0, 7)) else subset(everybody, 2, data)
        offered = sharers if data.draw(st.integers(0, 7)) else everybody
        spare = adversary.n - adversary.accounts[session, 0].terms.bounds.threshold
        survivors = subset(offered, spare if data.draw(st.integers(0, 7)) else spare + 1, data, least=least)
        return sharers, tuple(sorted({*survivors, point})) if data.draw(st.integers(0, 7)) else survivors

    def confirm_one(self, point: int, session: int, sets: Sets, *, is_elsewhere: bool = False) -> None:
        shown = self.adversary.seats[point, session] ^ is_elsewhere
        self.adversary.confirm(point, session, sets, context=self.adversary.accounts[session, shown].terms.context)

    # --- step 4

    @precondition(lambda self: self.at(Confirmed))
    @rule(data=st.data(), twist=st.sampled_from(["", "", "few", "alien", "other sets", "alter", "outsider", "context"]))
    def unmask(self, data: st.DataObject, twist: str) -> None:
        point, session = data.draw(st.sampled_from(self.at(Confirmed)))
        self.tried("unmask", partial(self.unmask_one, point, session, twist, data))

    @precondition(lambda self: self.at(Confirmed))
    @rule(data=st.data())
    def unmask_all(self, data: st.DataObject) -> None:
        self.unmask_everybody(data)

    def unmask_everybody(self, data: st.DataObject) -> None:
        for point, session in self.at(Confirmed):
            self.tried("unmask", partial(self.unmask_one, point, session, "", data))

    def unmask_one(self, point: int, session: int, twist: str, data: st.DataObject) -> None:
        adversary, version = self.adversary, self.adversary.seats[point, session]
        sets = adversary.signed_sets[point, session]
        found = dict(adversary.confirmations(session, version, sets))
        if twist == "alien":
            for where in ((session, 1 - version), (3 - session, version)):
                found = {**adversary.confirmations(*where, sets), **found}
        elif twist == "other sets":
            for others in adversary.signatures[session, version].values():
                found = {**others, **found}
        elif twist == "outsider":
            found |= {data.draw(st.integers(0, 255)): next(iter(found.values()))}
        elif found and twist in ("few", "alter"):
            chosen = data.draw(st.sampled_from(sorted(found)))
            signature = found.pop(chosen)
            if twist == "alter":
                found[chosen] = altered(signature, data)
        where = (3 - session, version) if twist == "context" else (session, version)
        adversary.unmask(point, session, found, context=adversary.accounts[where].terms.context)

    # --- what must hold

    @invariant()
    def nothing_but_agreed_sums_can_be_read(self) -> None:
        if hasattr(self, "adversary"):
            assert list(self.adversary.leaks()) == []
            for (session, version), account in self.adversary.accounts.items():
                for part in account.openable():
                    if (session, version, part) not in self.read:
                        self.read.add((session, version, part))
                        self.tally["sums"] += 1


def altered(data: bytes, draws: st.DataObject) -> bytes:
    place = draws.draw(st.integers(0, len(data) - 1))
    return data[:place] + bytes([data[place] ^ 1 << draws.draw(st.integers(0, 7))]) + data[place + 1 :]


def some(points: Sequence[int], most: int, data: st.DataObject, *, least: int = 0) -> set[int]:
    """Mostly nobody, else a few; at least one where `least` says so."""
    if not points or not most or (not least and data.draw(st.integers(0, 2))):
        return set()
    return data.draw(st.sets(st.sampled_from(points), min_size=1, max_size=most))


def subset(points: Sequence[int], leave_out: int, data: st.DataObject, *, least: int = 0) -> tuple[int, ...]:
    """Mostly all, or all but a few."""
    left_out = some(points, leave_out, data, least=least)
    return tuple(point for point in points if point not in left_out)


def fuzz(*, examples: int, steps: int, is_random: bool = False) -> dict[str, int]:
    """Runs the machine; what was reached."""
    reached = dict.fromkeys(
        [f"{move}{end}" for move in ("mask", "confirm", "unmask") for end in ("", " refused")] + ["sums"], 0
    )
    machine = type("Machine", (Coordinator,), {"tally": reached})
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not is_random,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
    return reached


def test_a_lying_coordinator_reads_nothing_but_agreed_sums() -> None:
    reached = fuzz(examples=70, steps=20)
    assert min(reached.values()) >= 20, reached


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_lying_coordinator_reads_nothing_but_agreed_sums_however_long_it_tries() -> None:
    reached = fuzz(examples=1_500, steps=30, is_random=True)
    assert min(reached.values()) >= 400, reached
