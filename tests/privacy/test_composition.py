"""Unlike sessions compose to what the accountant of their events says, in any order, and fast."""

from __future__ import annotations

import math
import time

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from fedslm.errors import PrivacyError
from fedslm.privacy import composition
from fedslm.privacy.accounting import epsilon_spent
from fedslm.privacy.composition import Composition
from fedslm.privacy.mechanism import Mechanism
from tests.privacy.toys import build_mechanism


def kinds(count: int, *, steps: int = 31) -> list[Mechanism]:
    return [
        build_mechanism(sample_rate=0.02 + 0.002 * n, noise_multiplier=1 + 0.05 * n, steps=steps) for n in range(count)
    ]


def composed(*parts: tuple[Mechanism, int]) -> Composition:
    found = Composition()
    for mechanism, sessions in parts:
        found.add(mechanism, sessions=sessions)
    return found


def test_one_kind_costs_what_its_curve_says() -> None:
    one = composed((build_mechanism(), 2), (build_mechanism(), 1), (build_mechanism(clip_norm=7.0), 2))
    assert one.epsilon(delta=1e-5) == pytest.approx(epsilon_spent(build_mechanism(), sessions=5, delta=1e-5), abs=1e-9)


def test_several_kinds_cost_what_the_accountant_of_their_events_says() -> None:
    parts = list(zip(kinds(3), (2, 1, 3), strict=True))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.ComposedDpEvent([mechanism.event(sessions) for mechanism, sessions in parts]))
    found = composed(*parts).epsilon(delta=1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-4)
    apart = [epsilon_spent(mechanism, sessions=sessions, delta=1e-5) for mechanism, sessions in parts]
    assert max(apart) < found < sum(apart)


def test_order_and_memory_do_not_matter() -> None:
    first, second, third = kinds(3)
    forth = composed((first, 1), (second, 1), (third, 1))
    forth.epsilon(delta=1e-5)
    forth.add(second, sessions=1)
    back = composed((third, 1), (second, 1), (first, 1), (second, 1))
    assert forth.epsilon(delta=1e-5) == back.epsilon(delta=1e-5) == forth.epsilon(delta=1e-5)
    assert forth.epsilon(delta=1e-6) > forth.epsilon(delta=1e-5)


def test_a_kind_that_needs_a_finer_grid_renews_all_parts() -> None:
    tiny = build_mechanism(sample_rate=5e-4, noise_multiplier=2.0, steps=20_000)
    mixed = composed((build_mechanism(), 1))
    alone = mixed.epsilon(delta=1e-6)
    mixed.add(tiny)
    assert alone < mixed.epsilon(delta=1e-6) < alone + epsilon_spent(tiny, sessions=1, delta=1e-6)


def test_nothing_costs_nothing_and_impossible_questions_are_refused() -> None:
    nothing = composed((build_mechanism(), 0))
    assert nothing.epsilon(delta=1e-5) == 0.0
    with pytest.raises(PrivacyError, match="delta"):
        nothing.epsilon(delta=0.0)
    with pytest.raises(PrivacyError, match="sessions"):
        nothing.add(build_mechanism(), sessions=-1)


def test_disagreeing_accountants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "divergence_epsilon", lambda *_: 1.0)
    with pytest.raises(PrivacyError, match="disagree"):
        composed(*((mechanism, 1) for mechanism in kinds(2))).epsilon(delta=1e-5)


def test_a_thousand_rounds_take_seconds_and_one_more_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    rounds, many = kinds(10), Composition()
    for number in range(1000):
        many.add(rounds[number % 10])
    whole = timed(many)
    many.add(rounds[4])
    more = timed(many)
    # The yardstick: ten transforms of a million numbers, about 0.4 s of one core where the goals were set.
    started = time.process_time()
    for _ in range(10):
        np.fft.rfft(np.ones(1 << 20))
    slower = max(1.0, (time.process_time() - started) / 0.4)
    with capsys.disabled():
        print(
            f"\n[1000 rounds of 10 kinds {whole:.2f} s, one more {more:.2f} s, yardstick {slower * 0.4:.2f} s]", end=" "
        )
    assert whole < 5 * slower
    assert more < 0.3 * slower


def timed(many: Composition) -> float:
    started = time.process_time()
    assert math.isfinite(many.epsilon(delta=1e-6))
    return time.process_time() - started
