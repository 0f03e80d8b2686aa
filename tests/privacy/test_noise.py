"""Noise has the promised distribution, with power to see half or double of it, and no seed reaches it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.noise import gaussian, relative_sensitivity, rounded_gaussian, sampler_delta

KEY = bytes(range(32))


def test_ks_accepts_sigma_and_rejects_two_thirds_and_three_halves() -> None:
    samples = gaussian(50_000, stddev=2.0, stream=SecureStream(KEY))
    assert stats.kstest(samples, stats.norm(scale=2.0).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(samples, stats.norm(scale=2.0 * wrong).cdf).pvalue < 1e-9


def test_samples_are_independent_within_and_across_chunks() -> None:
    samples = gaussian(600_000, stddev=1.0, stream=SecureStream(KEY))
    for lag in (1, 2, 1 << 16, 1 << 17, 1 << 18):
        assert abs(np.corrcoef(samples[:-lag], samples[lag:])[0, 1]) < 5 / math.sqrt(len(samples) - lag)
        assert abs(np.corrcoef(samples[:-lag] ** 2, samples[lag:] ** 2)[0, 1]) < 5 / math.sqrt(len(samples) - lag)


def test_the_tail_is_there() -> None:
    samples = gaussian(2_000_000, stddev=1.0, stream=SecureStream(KEY))
    assert stats.binomtest(int((np.abs(samples) > 4).sum()), len(samples), 2 * stats.norm.sf(4)).pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_count_can_be_drawn(count: int) -> None:
    assert gaussian(count, stddev=1.0, stream=SecureStream(KEY)).shape == (count,)


def test_equal_keys_give_equal_noise() -> None:
    first, second = (gaussian(9, stddev=1.0, stream=SecureStream(KEY)) for _ in range(2))
    assert np.array_equal(first, second)


def test_seeds_of_torch_and_numpy_do_not_matter() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(gaussian(8, stddev=1.0, stream=SecureStream.from_os()))
    assert not np.array_equal(draws[0], draws[1])


def test_every_output_lies_on_the_grid() -> None:
    grid = 2.0**-30
    values = np.linspace(-3.0, 3.0, 1001)
    noised = rounded_gaussian(values, stddev=1.0, grid=grid, stream=SecureStream(KEY))
    assert np.array_equal(noised / grid, np.rint(noised / grid))


@given(st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_without_noise_only_rounding_remains(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float64)
    rounded = rounded_gaussian(values, stddev=0.0, grid=2.0**-10, stream=SecureStream(KEY))
    assert np.all(np.abs(rounded - values) <= 2.0**-11)


def test_noise_on_the_grid_is_the_noise_and_not_a_part_of_it() -> None:
    values = np.full(50_000, 0.25)
    added = rounded_gaussian(values, stddev=1.5, grid=2.0**-30, stream=SecureStream(KEY)) - values
    assert stats.kstest(added, stats.norm(scale=1.5).cdf).pvalue > 1e-3
    assert stats.kstest(added, stats.norm(scale=0.75).cdf).pvalue < 1e-9


def test_values_that_are_not_finite_vanish_under_the_noise() -> None:
    noised = rounded_gaussian(np.array([np.nan, np.inf, 1.0]), stddev=1.0, grid=2.0**-30, stream=SecureStream(KEY))
    assert np.isfinite(noised).all()


def test_sensitivity_is_a_few_millionths_above_one() -> None:
    assert relative_sensitivity(parameters=10_000_000, units=2000) == pytest.approx(1 + 2.95e-6, abs=1e-8)
    assert relative_sensitivity(parameters=1, units=1) > 1.0


def test_sampler_delta_is_far_below_any_delta_in_use() -> None:
    assert 0 < sampler_delta(normals=10_000_000 * 20_000, coins=10_000 * 20_000) < 1e-8 / 100


@pytest.mark.parametrize("stddev", [-1.0, float("nan"), float("inf")])
def test_impossible_deviations_are_refused(stddev: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        gaussian(2, stddev=stddev, stream=SecureStream(KEY))


@pytest.mark.parametrize("grid", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_grids_are_refused(grid: float) -> None:
    with pytest.raises(PrivacyError, match="grid"):
        rounded_gaussian(np.zeros(2), stddev=1.0, grid=grid, stream=SecureStream(KEY))
