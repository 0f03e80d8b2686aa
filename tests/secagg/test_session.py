"""Whole sessions: the sum is exact whoever drops out wherever, down to the bounds, and below them nothing is released."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedslm.crypto.prg import SecureStream
from fedslm.errors import SessionError, ThresholdError
from tests.secagg.session import Session, ring_equal, terms_for

Subset = tuple[int, ...]


def subsets(points: Iterable[int]) -> Iterator[Subset]:
    members = tuple(points)
    return itertools.chain.from_iterable(itertools.combinations(members, size) for size in range(len(members) + 1))


def branch(session: Session) -> Session:
    """The same session from here on, to be continued in another way."""
    other = copy.copy(session)
    other.coordinator, other.states = copy.deepcopy(session.coordinator), dict(session.states)
    return other


class Tree:
    """Every pattern of dropouts of one session, each prefix walked once."""

    def __init__(self, n: int, colluders: int) -> None:
        self.root = Session(terms_for(n, colluders=colluders, d=3))
        self.bounds = self.root.terms.bounds
        self.sums = self.refusals = 0

    def walk(self) -> None:
        replies = {point: self.root.share(point) for point in self.root.points}
        for sharers in subsets(self.root.points):
            session = branch(self.root)
            for point in sharers:
                session.coordinator.shares(point, replies[point])
            if self.stands(session, len(sharers), self.bounds.quorum, session.coordinator.mask_requests):
                self.walk_vectors(session)

    def walk_vectors(self, session: Session) -> None:
        requests = dict(session.coordinator.mask_requests())
        replies = {point: session.mask(point, request) for point, request in requests.items()}
        for survivors in subsets(replies):
            after = branch(session)
            for point in survivors:
                after.coordinator.masked(point, replies[point])
            if self.stands(after, len(survivors), self.bounds.quorum, after.coordinator.confirm_request):
                self.walk_confirmations(after)

    def walk_confirmations(self, session: Session) -> None:
        request = session.coordinator.confirm_request()
        replies = {point: session.confirm(point, request) for point in session.coordinator.survivors}
        for confirmers in subsets(replies):
            after = branch(session)
            for point in confirmers:
                after.coordinator.confirmed(point, replies[point])
            if self.stands(after, len(confirmers), self.bounds.threshold, after.coordinator.unmask_request):
                self.walk_answers(after)

    def walk_answers(self, session: Session) -> None:
        request = session.coordinator.unmask_request()
        replies = {point: session.unmask(point, request) for point in session.coordinator.confirmers}
        for answerers in subsets(replies):
            after = branch(session)
            for point in answerers:
                after.coordinator.revealed(point, replies[point])
            if self.stands(after, len(answerers), self.bounds.threshold, after.coordinator.finish):
                expected = session.expected(session.coordinator.survivors)
                assert np.array_equal(after.coordinator.finish(), expected)
                self.sums += 1

    def stands(self, session: Session, count: int, needed: int, end_step: Callable[[], object]) -> bool:
        """Whether enough are left; if not, checks that the step refuses to end and no sum can be had."""
        if count >= needed:
            return True
        self.refusals += 1
        with pytest.raises(ThresholdError, match=f"^{count} of {self.bounds.n} "):
            end_step()
        with pytest.raises((SessionError, ThresholdError)):
            session.coordinator.finish()
        return False


def chains(n: int, *, needed: tuple[int, int, int, int]) -> tuple[int, int]:
    """How many patterns of dropouts end in a sum, and how many end at some step: counted, not run."""

    def below(size: int, steps: tuple[int, ...]) -> tuple[int, int]:
        if not steps:
            return 1, 0
        sums = refusals = 0
        for left in range(size + 1):
            ways = len(list(itertools.combinations(range(size), left)))
            inner = below(left, steps[1:]) if left >= steps[0] else (0, 1)
            sums, refusals = sums + ways * inner[0], refusals + ways * inner[1]
        return sums, refusals

    return below(n, needed)


@pytest.mark.parametrize(("n", "colluders"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 0), (5, 1), (5, 2), (5, 3)])
def test_the_sum_is_exact_for_every_pattern_of_dropouts_down_to_the_bounds(n: int, colluders: int) -> None:
    tree = Tree(n, colluders)
    tree.walk()
    quorum, threshold = tree.bounds.quorum, tree.bounds.threshold
    assert (tree.sums, tree.refusals) == chains(n, needed=(quorum, quorum, threshold, threshold))


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Session, tuple[Subset, Subset, Subset, Subset]]:
    n = draw(st.integers(3, 12))
    terms = terms_for(
        n, colluders=draw(st.integers(0, n - 2)), d=draw(st.integers(1, 40)), bits=draw(st.integers(16, 32))
    )
    left, steps = list(range(1, n + 1)), []
    for fewest in (terms.bounds.quorum, terms.bounds.quorum, terms.bounds.threshold, terms.bounds.threshold):
        left = draw(st.permutations(left))[: draw(st.integers(fewest, len(left)))]
        steps.append(tuple(sorted(left)))
    return Session(terms), (steps[0], steps[1], steps[2], steps[3])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(patterns())
def test_the_sum_is_exact_for_more_hospitals_and_every_width_of_the_ring(
    pattern: tuple[Session, tuple[Subset, Subset, Subset, Subset]],
) -> None:
    session, steps = pattern
    total = session.run(*steps)
    assert ring_equal(total, session.expected(steps[1]), session.terms.fixed_point.ring_bits)


@pytest.mark.parametrize("bits", [16, 21, 32])
def test_the_decoded_mean_is_that_of_the_survivors(bits: int) -> None:
    session = Session(terms_for(4, d=501, bits=bits))
    fixed_point, generator = session.terms.fixed_point, np.random.default_rng(1)
    vectors = {point: generator.uniform(-4, 4, 501).astype(np.float32) for point in session.points}
    for point, vector in vectors.items():
        session.levels[point] = fixed_point.encode(vector, SecureStream(bytes([point]) * 32))
    survivors = (1, 2, 4)
    mean = fixed_point.decode(session.run(survivors=survivors), count=3, divisor=3)
    step = 4.0 / fixed_point.half
    assert np.abs(mean - np.mean([vectors[point] for point in survivors], axis=0)).max() <= step + 1e-6


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_largest_session_there_is() -> None:
    session = Session(terms_for(255, colluders=84, d=3))
    survivors = range(40, 256)
    assert np.array_equal(session.run(survivors=survivors), session.expected(survivors))
