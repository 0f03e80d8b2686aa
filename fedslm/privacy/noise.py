"""Gaussian noise from the cryptographic stream, and its addition on a grid.

Adding floating-point noise to a floating-point sum leaks through the low bits (Mironov 2012). Here the sum is rounded
once to a grid fixed in advance, and the noise is rounded to the same grid. Since the sum already lies on the grid,
round(sum) + round(noise) = round(round(sum) + noise): post-processing of the plain Gaussian mechanism, whose privacy
loss therefore holds, at the slightly larger sensitivity that `relative_sensitivity` states. See docs on the mechanism
in `fedslm/privacy/mechanism.py`, which hands that sensitivity to the accountant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream

GRID_BITS = 30
"""The grid is C * 2^-30: fine enough that rounding costs nothing visible, coarse enough for exact sums in float64."""

CLIP_MARGIN = 1e-5
"""Units are clipped to C (1 - 1e-5); the margin covers the rounding of norms and of scaling, below 1e-7 each."""

_CHUNK = 1 << 17
"""Pairs of samples made at once, so that the temporary arrays stay in the processor's cache."""


def gaussian(count: int, *, stddev: float, stream: SecureStream) -> npt.NDArray[np.float64]:
    """Draws independent Gaussian samples of mean 0.

    Args:
      count: how many.
      stddev: absolute standard deviation, finite and at least 0.
      stream: source of randomness; two 64-bit words per pair of samples.

    Returns:
      float64 (count,).

    Guarantees: no sample exceeds 10.2 standard deviations; an exact Gaussian does so with probability below 2^-75,
    which `sampler_delta` adds to delta. Within that range the samples are those of a Gaussian to float64 precision.

    Raises:
      PrivacyError: a standard deviation that is negative or not finite.

    Source: Box and Muller 1958.
    """
    if not (math.isfinite(stddev) and stddev >= 0.0):
        raise PrivacyError(f"The noise has standard deviation {stddev}; it has to be finite and at least 0.")
    samples = np.empty(count + count % 2, dtype=np.float64)
    for start in range(0, len(samples), 2 * _CHUNK):
        _box_muller(samples[start : start + 2 * _CHUNK], stream)
    samples *= stddev
    return samples[:count]


def rounded_gaussian(
    values: npt.NDArray[np.float64], *, stddev: float, grid: float, stream: SecureStream
) -> npt.NDArray[np.float64]:
    """Rounds a sum to the grid and adds a Gaussian rounded to the same grid.

    Args:
      values: the clipped sum, float64 (parameters,), in the units of the clip norm.
      stddev: absolute standard deviation of the noise.
      grid: spacing g > 0, fixed before the data are seen; C * 2^-30 in the mechanism.
      stream: source of the noise.

    Returns:
      float64 (parameters,), every entry a multiple of the grid.

    Guarantees: the Gaussian mechanism for sensitivity C * `relative_sensitivity(...)`, where C bounds one unit. A value
    that is not finite is replaced by 0 before noise, so that the output says nothing about it.

    Raises:
      PrivacyError: a grid that is not finite and above 0.

    Source: Mironov 2012, "On significance of the least significant bits for differential privacy".
    """
    if not (math.isfinite(grid) and grid > 0.0):
        raise PrivacyError(f"The noise grid is {grid}; it has to be finite and above 0.")
    noised = np.rint(gaussian(len(values), stddev=stddev, stream=stream) / grid)
    noised += np.rint(np.where(np.isfinite(values), values, 0.0) / grid)
    noised *= grid
    return noised


def relative_sensitivity(*, parameters: int, units: int) -> float:
    """States by how much the rounded sum can move, in multiples of the clip norm, when one unit comes or goes.

    Rounding to the grid moves each of the d coordinates by at most g/2 on either side: sqrt(d) g in all. The sum itself
    is taken in float64 over fp32 gradients, so its error is at most n (n + 2) 2^-53 C on either side (Higham 2002,
    section 4.2, with n units of norm at most C, in any order of summation).

    Args:
      parameters: d, a public bound on the number of trainable parameters.
      units: n, the declared population.

    Returns:
      1 + sqrt(d) 2^-30 + 2 n (n + 2) 2^-53, a little above 1.

    Guarantees: the term for the grid alone is 3e-6 at d = 1e7. The clip margin is not netted against it; what it leaves
    covers a true population of up to 200 000 units even where fewer were declared. Not covered: a unit that comes or
      goes also changes the shapes of the batches, and with them the last bits of the other units' fp32 gradients.
    """
    return 1.0 + math.sqrt(parameters) * 2.0**-GRID_BITS + 2.0 * units * (units + 2) * 2.0**-53


def sampler_delta(*, normals: int, coins: int) -> float:
    """Bounds what the samplers' finite tails and thresholds add to delta.

    Args:
      normals: Gaussian samples drawn over the whole plan.
      coins: Poisson coins tossed over the whole plan.

    Returns:
      normals 2^-75 + coins 2^-64: total variation distance by the union bound. It covers the missing tail and the
      rounding of the sampling threshold. It does not cover the rounding inside float64 arithmetic: a sample's own step
      is finer than the grid by about 2^-20, and that this is negligible is argued, not proven.
    """
    return normals * 2.0**-75 + coins * 2.0**-64


def _box_muller(out: npt.NDArray[np.float64], stream: SecureStream) -> None:
    """Fills an even number of entries with standard Gaussian samples."""
    half = len(out) // 2
    words = stream.uint64(2 * half)
    # The radius takes 75 bits, the 11 that the angle leaves over included: float64 is finest near 0, where the tail is.
    spare = (words[half:] & np.uint64(2**11 - 1)).astype(np.float64)
    radius = (words[:half] + (spare + 1.0) * 2.0**-11) * 2.0**-64
    np.sqrt(np.multiply(np.log(radius, out=radius), -2.0, out=radius), out=radius)
    angle = (words[half:] >> np.uint64(11)) * (2.0 * math.pi * 2.0**-53)
    np.multiply(radius, np.cos(angle), out=out[:half])
    np.multiply(radius, np.sin(angle), out=out[half:])
