"""The Poisson draw has the right rate and the right spread; record choice is uniform. False alarms: below 1e-3 each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.sampling import PoissonSampler
from tests.privacy.test_noise import Written

KEY = bytes(range(32))


def sampler(rate: float, *, records: int = 1) -> PoissonSampler:
    return PoissonSampler(sample_rate=rate, max_records_per_unit=records)


def test_draw_counts_are_binomial() -> None:
    stream = SecureStream(KEY)
    counts = np.array([len(sampler(0.02).draw(500, stream=stream)) for _ in range(4000)])
    edges = [-1, 5, 7, 8, 9, 10, 11, 12, 14, 500]
    observed = np.histogram(counts, bins=np.array(edges) + 0.5)[0]

    def pvalue(rate: float) -> float:
        expected = np.diff(stats.binom.cdf(edges, 500, rate)) * len(counts)
        return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)

    assert pvalue(0.02) > 1e-3
    assert pvalue(0.02 * 2 / 3) < 1e-9
    assert pvalue(0.02 * 3 / 2) < 1e-9
    # Batches of fixed size, shuffled, would have the right mean and no spread.
    assert counts.var() == pytest.approx(500 * 0.02 * 0.98, rel=0.1)


def test_rate_test_has_power() -> None:
    drawn = len(sampler(0.032).draw(1_000_000, stream=SecureStream(KEY)))
    assert stats.binomtest(drawn, 1_000_000, 0.032).pvalue > 1e-3
    assert stats.binomtest(drawn, 1_000_000, 0.031).pvalue < 1e-6
    assert stats.binomtest(drawn, 1_000_000, 0.033).pvalue < 1e-6


@pytest.mark.parametrize("rate", [0.5, 0.032, 2.0**-12, 1 - 2.0**-53])
def test_the_threshold_is_exact(rate: float) -> None:
    threshold = int(rate * 2**64)
    assert threshold / 2**64 == rate
    assert sampler(rate).draw(3, stream=Written([threshold - 1, threshold, threshold + 1])).tolist() == [0]


def test_a_rate_finer_than_a_word_is_decided_by_the_next_one() -> None:
    rate = (1000 + 0.25) * 2.0**-64
    coins = [999, 1000, 1000, 1001]
    assert sampler(rate).draw(4, stream=Written([*coins, 2**62 - 1, 2**62])).tolist() == [0, 1]


def test_units_are_drawn_independently_of_each_other() -> None:
    stream = SecureStream(KEY)
    drawn = np.zeros((3000, 8))
    for step in range(3000):
        drawn[step, sampler(0.3).draw(8, stream=stream)] = 1
    correlations = np.corrcoef(drawn.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.08


def test_rate_one_takes_everyone() -> None:
    assert sampler(1.0).draw(7, stream=SecureStream(KEY)).tolist() == list(range(7))


def test_tiny_rates_give_empty_draws() -> None:
    assert sampler(1e-30).draw(100, stream=SecureStream(KEY)).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sample_rate"):
        sampler(rate)


def test_seeds_of_numpy_do_not_matter() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(0)
        draws.append(sampler(0.5).draw(200, stream=SecureStream.from_os()).tolist())
    assert draws[0] != draws[1]


def test_record_choice_is_uniform_without_replacement() -> None:
    stream = SecureStream(KEY)
    records = np.array([3, 8, 9, 20, 41], dtype=np.int64)
    counts = dict.fromkeys(records.tolist(), 0)
    for _ in range(5000):
        chosen = sampler(0.5, records=2).choose(records, stream=stream).tolist()
        assert len(set(chosen)) == 2
        assert chosen == sorted(chosen)
        for record in chosen:
            counts[record] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_few_records_are_all_used() -> None:
    records = np.array([5, 2], dtype=np.int64)
    assert sampler(0.5, records=2).choose(records, stream=SecureStream(KEY)).tolist() == [5, 2]


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(PrivacyError, match="max_records_per_unit is 0"):
        sampler(0.5, records=0)
