"""The Poisson draw has the right rate and the right spread; record choice is uniform. False alarms: below 1e-3 each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.sampling import choose_records, poisson_sample

KEY = bytes(range(32))


def test_draw_counts_are_binomial() -> None:
    stream = SecureStream(KEY)
    counts = np.array([len(poisson_sample(500, sample_rate=0.02, stream=stream)) for _ in range(4000)])
    edges = [-1, 5, 7, 8, 9, 10, 11, 12, 14, 500]
    expected = np.diff(stats.binom.cdf(edges, 500, 0.02)) * len(counts)
    observed = np.histogram(counts, bins=np.array(edges) + 0.5)[0]
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3
    # Batches of fixed size, shuffled, would have the right mean and no spread.
    assert counts.var() == pytest.approx(500 * 0.02 * 0.98, rel=0.1)


def test_rate_test_has_power() -> None:
    drawn = len(poisson_sample(1_000_000, sample_rate=0.032, stream=SecureStream(KEY)))
    assert stats.binomtest(drawn, 1_000_000, 0.032).pvalue > 1e-3
    assert stats.binomtest(drawn, 1_000_000, 0.031).pvalue < 1e-6
    assert stats.binomtest(drawn, 1_000_000, 0.033).pvalue < 1e-6


def test_units_are_drawn_independently_of_each_other() -> None:
    stream = SecureStream(KEY)
    drawn = np.zeros((3000, 8))
    for step in range(3000):
        drawn[step, poisson_sample(8, sample_rate=0.3, stream=stream)] = 1
    correlations = np.corrcoef(drawn.T) - np.eye(8)
    assert np.abs(correlations).max() < 0.08


def test_rate_one_takes_everyone() -> None:
    assert poisson_sample(7, sample_rate=1.0, stream=SecureStream(KEY)).tolist() == list(range(7))


def test_tiny_rates_give_empty_draws() -> None:
    assert poisson_sample(100, sample_rate=1e-30, stream=SecureStream(KEY)).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sample rate"):
        poisson_sample(10, sample_rate=rate, stream=SecureStream(KEY))


def test_seeds_of_numpy_do_not_matter() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(0)
        draws.append(poisson_sample(200, sample_rate=0.5, stream=SecureStream.from_os()).tolist())
    assert draws[0] != draws[1]


def test_record_choice_is_uniform_without_replacement() -> None:
    stream = SecureStream(KEY)
    records = np.array([3, 8, 9, 20, 41], dtype=np.int64)
    counts = dict.fromkeys(records.tolist(), 0)
    for _ in range(5000):
        chosen = choose_records(records, max_records_per_unit=2, stream=stream).tolist()
        assert len(set(chosen)) == 2
        assert chosen == sorted(chosen)
        for record in chosen:
            counts[record] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_few_records_are_all_used() -> None:
    records = np.array([5, 2], dtype=np.int64)
    assert choose_records(records, max_records_per_unit=2, stream=SecureStream(KEY)).tolist() == [5, 2]


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(PrivacyError, match="cap"):
        choose_records(np.arange(3), max_records_per_unit=0, stream=SecureStream(KEY))
