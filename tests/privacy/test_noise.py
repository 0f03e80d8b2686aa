"""Noise is the Gaussian rounded to the grid, against exact references and with power; no seed of torch or NumPy reaches it.

Every statistical test has a fixed key and accepts at p > 1e-3: on the right code it would fail for one key in a
thousand. What it has to reject, it rejects at p < 1e-9.
"""

from __future__ import annotations

import itertools
import math
import time

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy import noise
from fedslm.privacy.exact import rounded_pair
from fedslm.privacy.noise import noised_sum, relative_sensitivity, rounded_gaussian, sampler_delta

KEY = bytes(range(32))
GRID = 2.0**30


class Written(SecureStream):
    """A stream that gives the words it was told to give."""

    __slots__ = ("_words",)

    def __init__(self, words: list[int]) -> None:
        self._words = np.array(words, dtype=np.uint64)

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        taken, self._words = self._words[:count], self._words[count:]
        return taken


def normal(count: int, *, sigma: float = 1.0) -> npt.NDArray[np.float64]:
    return rounded_gaussian(count, scale=sigma * GRID, stream=SecureStream(KEY)) / GRID


def test_ks_accepts_sigma_and_rejects_two_thirds_and_three_halves() -> None:
    samples = normal(50_000, sigma=2.0)
    assert stats.kstest(samples, stats.norm(scale=2.0).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(samples, stats.norm(scale=2.0 * wrong).cdf).pvalue < 1e-9


def test_ks_agrees_with_an_exact_sampler_and_sees_two_thirds_and_three_halves_of_it() -> None:
    # OpenDP's discrete Gaussian on the same grid, in rational arithmetic: with 2^30 steps in a standard deviation the
    # two distributions are one.
    from opendp import prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False), size=8000), dp.l2_distance(T=float)
    exact = np.array(dp.m.make_gaussian(*space, scale=1.5, k=-30)([0.0] * 8000))
    assert stats.ks_2samp(normal(200_000, sigma=1.5), exact).pvalue > 1e-4  # OpenDP draws afresh in every run
    for wrong in (2 / 3, 3 / 2):
        assert stats.ks_2samp(normal(200_000, sigma=1.5 * wrong), exact).pvalue < 1e-9


def probabilities(scale: float, reach: int) -> npt.NDArray[np.float64]:
    """P[round(X) = n] for n = -reach .. reach, the ends with all that lies beyond, to 30 digits."""
    with mpmath.workdps(30):
        below = [mpmath.ncdf((n + mpmath.mpf("0.5")) / scale) for n in range(-reach - 1, reach + 1)]
    below[0], below[-1] = mpmath.mpf(0), mpmath.mpf(1)
    return np.array([float(upper - lower) for lower, upper in itertools.pairwise(below)])


@pytest.mark.parametrize(("scale", "reach"), [(0.4, 2), (0.7, 3), (3.0, 11)])
def test_chi_square_on_a_coarse_grid_accepts_the_rounded_gaussian_and_nothing_else(scale: float, reach: int) -> None:
    samples = np.clip(rounded_gaussian(1_000_000, scale=scale, stream=SecureStream(KEY)), -reach, reach)
    observed = np.bincount(samples + reach, minlength=2 * reach + 1)

    def pvalue(chances: npt.NDArray[np.float64]) -> float:
        return float(stats.chisquare(observed, chances / chances.sum() * len(samples)).pvalue)

    assert pvalue(probabilities(scale, reach)) > 1e-3
    for wrong in (2 / 3, 0.98, 1.02, 3 / 2):
        assert pvalue(probabilities(scale * wrong, reach)) < 1e-9
    if scale < 1:  # above, the discrete Gaussian, which is not rounded, differs by less than can be seen
        assert pvalue(np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * scale**2))) < 1e-9


def test_every_sample_is_the_exact_one() -> None:
    words = SecureStream(KEY).uint64(8000)
    samples = rounded_gaussian(8000, scale=1.3 * GRID, stream=SecureStream(KEY)).reshape(2, -1)
    for first, second, pair in zip(words[:4000], words[4000:], samples.T, strict=True):
        # Further digits are a half here, as good as any: 64 decide all but one sample in 2^30.
        uniform, turn = int(first) << 128 | 1 << 127, int(second.view(np.int64)) * 2**128 + 2**127
        assert tuple(pair) == rounded_pair(uniform, turn, scale=1.3 * GRID)


def test_what_float64_cannot_decide_is_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = rounded_gaussian(3000, scale=GRID, stream=SecureStream(KEY))
    settled: list[int] = []

    def spy(uniform: int, turn: int, *, scale: float) -> tuple[int, int]:
        settled.append(uniform)
        return rounded_pair(uniform, turn, scale=scale)

    monkeypatch.setattr(noise, "rounded_pair", spy)
    monkeypatch.setattr(noise, "_FLOAT_ERROR", 2.0**-34)  # as if float64 were 13 bits worse
    assert np.array_equal(rounded_gaussian(3000, scale=GRID, stream=SecureStream(KEY)), usual)
    assert 50 < len(settled) < 1400


@pytest.mark.parametrize("first", [0, 1, 2**47, 2**48, 2**64 - 1, 2**64 - 2**10, 2**64 - 2**11])
@pytest.mark.parametrize("second", [0, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_ends_of_the_stream_give_what_they_should(first: int, second: int) -> None:
    more = [7 << 60, 1, 5 << 59, 2]
    turn = (second - (2**64 if second >= 2**63 else 0)) * 2**128 + (more[2] << 64 | more[3])
    expected = rounded_pair(first << 128 | more[0] << 64 | more[1], turn, scale=GRID)
    assert tuple(rounded_gaussian(2, scale=GRID, stream=Written([first, second, *more]))) == expected


def test_float64_keeps_within_a_quarter_of_the_error_it_is_allowed() -> None:
    words = SecureStream(KEY).uint64(6000).reshape(2, -1)
    words[0, :500] = words[0, :500] >> np.uint64(15) | noise._SMALL
    words[0, 500:1000] = ~(words[0, 500:1000] >> (np.arange(500, dtype=np.uint64) % np.uint64(55)))
    radius = np.sqrt(np.abs(np.log(words[0] * 2.0**-64)) * 2.0)
    angle = words[1].view(np.int64) * (2.0 * math.pi * 2.0**-64)
    for at, (first, second) in enumerate(words.T):
        uniform, turn = int(first) << 128 | 1 << 127, int(second.view(np.int64)) * 2**128 + 2**127
        right = rounded_pair(uniform, turn, scale=2.0**100)
        for value, exact in zip((np.cos(angle[at]), np.sin(angle[at])), right, strict=True):
            error = abs(int(mpmath.mpf(float(radius[at] * value)) * 2**100) - exact) / 2.0**100
            assert error <= noise._FLOAT_ERROR * (radius[at] + 0.0625 / max(radius[at], 1e-10)) / 4


def test_samples_are_independent_within_and_across_chunks() -> None:
    samples = normal(600_000)
    for lag in (1, 2, 1 << 16, 1 << 17, 1 << 18):
        assert abs(np.corrcoef(samples[:-lag], samples[lag:])[0, 1]) < 5 / math.sqrt(len(samples) - lag)
        assert abs(np.corrcoef(samples[:-lag] ** 2, samples[lag:] ** 2)[0, 1]) < 5 / math.sqrt(len(samples) - lag)


def test_the_tail_is_there() -> None:
    samples = normal(2_000_000)
    for far in (4.0, 4.9):  # beyond 4.7 every sample takes the exact path
        assert stats.binomtest(int((np.abs(samples) > far).sum()), len(samples), 2 * stats.norm.sf(far)).pvalue > 1e-3


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_count_can_be_drawn(count: int) -> None:
    assert rounded_gaussian(count, scale=GRID, stream=SecureStream(KEY)).shape == (count,)


def test_equal_keys_give_equal_noise() -> None:
    assert np.array_equal(normal(9), normal(9))


def test_seeds_of_torch_and_numpy_do_not_matter() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(rounded_gaussian(8, scale=GRID, stream=SecureStream.from_os()))
    assert not np.array_equal(draws[0], draws[1])


def test_five_million_samples_take_a_core_less_than_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    stream, words = SecureStream(KEY), np.empty(1 << 20, dtype=np.uint64)
    aes = min(timed(lambda: stream.fill(words)) for _ in range(5))
    sampler = min(timed(lambda: rounded_gaussian(1 << 20, scale=GRID, stream=stream)) for _ in range(5))
    rate, yardstick = 2**20 / sampler / 1e6, words.nbytes / aes / 1e9
    with capsys.disabled():
        print(f"\n[Gaussian sampler {rate:.1f} M samples/s on one core; AES-256-CTR {yardstick:.1f} GB/s]", end=" ")
    assert rate > 5 * min(1.0, yardstick / 2)  # a machine without AES instructions is let off in proportion


def timed(function: object) -> float:
    started = time.process_time()
    function()  # type: ignore[operator]
    return time.process_time() - started


def noised(values: npt.NDArray[np.float64], *, sigma: float, clip_norm: float = 1.0) -> npt.NDArray[np.float64]:
    return noised_sum(values, clip_norm=clip_norm, noise_multiplier=sigma, stream=SecureStream(KEY))


@pytest.mark.parametrize("clip_norm", [1.0, 0.37])
def test_every_output_lies_on_the_grid(clip_norm: float) -> None:
    grid = clip_norm * 2.0**-30
    steps = noised(np.linspace(-3.0, 3.0, 1001), sigma=1.0, clip_norm=clip_norm) / grid
    assert np.allclose(steps, np.rint(steps), rtol=0, atol=1e-5)


@given(st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_without_noise_only_rounding_remains(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float64)
    assert np.all(np.abs(noised(values, sigma=0.0) - values) <= 2.0**-31)


def test_noise_on_the_grid_is_the_noise_and_not_a_part_of_it() -> None:
    values = np.full(50_000, 0.25)
    added = noised(values, sigma=3.0, clip_norm=0.5) - values
    assert stats.kstest(added, stats.norm(scale=1.5).cdf).pvalue > 1e-3
    for wrong in (1 / 2, 2 / 3, 3 / 2):
        assert stats.kstest(added, stats.norm(scale=1.5 * wrong).cdf).pvalue < 1e-9


def test_values_that_are_not_finite_vanish_under_the_noise() -> None:
    assert np.isfinite(noised(np.array([np.nan, np.inf, -np.inf, 1.0]), sigma=1.0)).all()


def test_sensitivity_is_a_few_millionths_above_one() -> None:
    assert relative_sensitivity(parameters=10_000_000, units=2000) == pytest.approx(1 + 2.95e-6, abs=1e-8)
    assert relative_sensitivity(parameters=1, units=1) > 1.0


def test_sampler_delta_is_far_below_any_delta_in_use() -> None:
    assert 0 < sampler_delta(normals=10_000_000 * 20_000, coins=10_000 * 20_000) < 1e-8 / 1e6


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), 2.0**43])
def test_impossible_deviations_are_refused(scale: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        rounded_gaussian(2, scale=scale, stream=SecureStream(KEY))


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_grids_are_refused(clip_norm: float) -> None:
    with pytest.raises(PrivacyError, match="grid"):
        noised(np.zeros(2), sigma=1.0, clip_norm=clip_norm)
