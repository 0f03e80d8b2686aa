"""Gaussian noise from the cryptographic stream, exactly rounded to a grid, and its addition to a clipped sum.

Adding floating-point noise to a floating-point sum leaks through the low bits (Mironov 2012). Here the sum is rounded
once to a grid fixed in advance, and so is the noise; both are whole numbers of grid steps and are added as such. Since
the sum already lies on the grid, round(sum) + round(noise) = round(round(sum) + noise): post-processing of the plain
Gaussian mechanism, whose privacy loss therefore holds, at the slightly larger sensitivity that `relative_sensitivity`
states and `fedslm/privacy/mechanism.py` hands to the accountant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError
from fedslm.privacy.exact import rounded_pair

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream

GRID_BITS = 30
"""The grid is C * 2^-30: fine enough that rounding costs nothing visible, coarse enough for sums in 64 bits."""

CLIP_MARGIN = 1e-5
"""Units are clipped to C (1 - 1e-5); the margin covers the rounding of norms and of scaling, below 1e-7 each."""

MAX_SCALE = 2.0**42
"""Largest standard deviation in grid steps: beyond it float64 could decide no rounding, and the bound below would end."""

_CHUNK = 1 << 16
"""Pairs of samples made at once, so that the temporary arrays stay in the processor's cache."""

_FLOAT_ERROR = 2.0**-47
"""Bound on the error of a sample in float64, in units of scale (R + 1/(16 R)); see `_round_pairs`."""

_SMALL = np.uint64(1 << 48)
"""Below this the 64 known bits of U leave log U too uncertain for `_FLOAT_ERROR`."""


def rounded_gaussian(count: int, *, scale: float, stream: SecureStream) -> npt.NDArray[np.int64]:
    """Draws independent Gaussian samples of mean 0, each rounded to the nearest whole number.

    The samples are Box and Muller's: with U and V uniform and of infinitely many binary digits, scale sqrt(-2 ln U)
    times cos and sin of 2 pi V are two independent Gaussians, exactly. The stream gives the first 64 digits of each.
    They are evaluated in float64 with an error bound; where the bound leaves two whole numbers possible (5e-5 of the
    pairs at scale 2^30), another 128 digits are drawn and the pair is evaluated in whole numbers of 256 bits.

    Args:
      count: how many.
      scale: standard deviation, in steps of the grid; at least 0.
      stream: source of randomness; two 64-bit words for a pair of samples, and a few more at the end.

    Returns:
      int64 (count,).

    Guarantees: the samples are those of the rounded Gaussian, tails included, to within a total variation distance of
    2^-128 each, if the stream's words are uniform and NumPy's log, cos and sin are right to 8 units in the last place.
    Equal streams give equal samples on every machine, though float64 functions differ between them, but for one sample
    in 2^30 at most.

    Raises:
      PrivacyError: a scale that is negative, not finite or beyond 2^42.

    Source: Box and Muller 1958; rounding that is decided by an error bound as in Ziv 1991.
    """
    if not 0.0 <= scale <= MAX_SCALE:
        raise PrivacyError(
            f"The noise has standard deviation {scale} in steps of the grid; it has to lie in [0, {MAX_SCALE:g}], "
            "so lower noise_multiplier."
        )
    samples = np.empty(count + count % 2, dtype=np.int64)
    undecided: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]] = []
    for start in range(0, len(samples), 2 * _CHUNK):
        pairs = samples[start : start + 2 * _CHUNK].reshape(2, -1)
        words = stream.uint64(pairs.size).reshape(2, -1)
        undecided += [(pairs[:, at], words[:, at].copy()) for at in _round_pairs(words, scale, out=pairs)]
    # Last, so that which words the others are made of does not hang on a machine's float64 functions.
    for pair, known in undecided:
        pair[:] = _settle(known, stream.uint64(4), scale)
    return samples[:count]


def noised_sum(
    values: npt.NDArray[np.float64], *, clip_norm: float, noise_multiplier: float, stream: SecureStream
) -> npt.NDArray[np.float64]:
    """Rounds a clipped sum to the grid and adds Gaussian noise rounded to the same grid.

    Args:
      values: the clipped sum, float64 (parameters,), in the units of the clip norm C.
      clip_norm: C > 0; the grid is C * 2^-30.
      noise_multiplier: standard deviation of the noise over C, at least 0.
      stream: source of the noise.

    Returns:
      float64 (parameters,), every entry a multiple of the grid.

    Guarantees: the Gaussian mechanism for sensitivity C * `relative_sensitivity(...)`, where C bounds one unit. A value
    that is not finite is replaced by 0 before noise, so that the output says nothing about it.

    Raises:
      PrivacyError: a grid or a standard deviation with which this cannot be done.

    Source: Mironov 2012, "On significance of the least significant bits for differential privacy".
    """
    grid = clip_norm * 2.0**-GRID_BITS
    if not (math.isfinite(grid) and grid > 0.0):
        raise PrivacyError(
            f"The noise grid is {grid}; it has to be finite and above 0, so set a clip_norm such as 1.0."
        )
    steps = rounded_gaussian(len(values), scale=noise_multiplier * 2.0**GRID_BITS, stream=stream)
    steps += np.rint(np.where(np.isfinite(values), values, 0.0) / grid).astype(np.int64)
    return np.multiply(steps, grid, dtype=np.float64)


def relative_sensitivity(*, parameters: int, units: int) -> float:
    """States by how much the rounded sum can move, in multiples of the clip norm, when one unit comes or goes.

    Rounding to the grid moves each of the d coordinates by at most g/2 on either side: sqrt(d) g in all. The sum itself
    is taken in float64 over fp32 gradients, so its error is at most n (n + 2) 2^-53 C on either side (Higham 2002,
    section 4.2, with n units of norm at most C, in any order of summation, and the division by the grid).

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
    """Bounds what the samplers' own error adds to delta.

    Args:
      normals: Gaussian samples drawn over the whole plan.
      coins: Poisson coins tossed over the whole plan.

    Returns:
      (normals + coins) 2^-96. What is drawn is within a total variation distance tau of what is accounted for, by the
      union bound over samples of 2^-128 each (see `rounded_gaussian` and `PoissonSampler.draw`), and (epsilon, delta) for
      the one is (epsilon, delta + (1 + e^epsilon) tau) for the other: 2^32 covers every epsilon up to 22. It does not
      cover an attack on AES itself.
    """
    return (normals + coins) * 2.0**-96


def _round_pairs(words: npt.NDArray[np.uint64], scale: float, *, out: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Rounds the pairs of samples that words (2, n) begin into `out` (2, n); returns the pairs left undecided.

    With u = 2^-53 and functions right to 8 units in the last place, R = sqrt(-2 ln U) is off by at most 12 u R + 2 u / R
    (U itself by one part in 2^48 where it is smallest, but there R > 4), the angle, at most pi, by 10 u, its cosine or
    sine by 26 u, and the products by 2 u more: 40 u R + 2 u / R together. `_FLOAT_ERROR` allows 64 u R + 4 u / R.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # U = 0 or 1 gives infinities, which stay undecided
        radius = np.sqrt(np.abs(np.log(words[0] * 2.0**-64)) * 2.0)
        slack = (radius + 0.0625 / radius) * (scale * _FLOAT_ERROR)
        angle = words[1].view(np.int64) * (2.0 * math.pi * 2.0**-64)
        radius *= scale
        samples = np.empty(words.shape)
        np.cos(angle, out=samples[0])
        np.sin(angle, out=samples[1])
        samples *= radius
        nearest = np.rint(samples)
        out[:] = nearest
        samples -= nearest
        decided = (np.abs(samples, out=samples) < 0.5 - slack).all(axis=0)
    return np.flatnonzero(~decided | (words[0] < _SMALL))


def _settle(known: npt.NDArray[np.uint64], more: npt.NDArray[np.uint64], scale: float) -> tuple[int, int]:
    """Rounds one pair with 192 binary digits each of U and V.

    The digits that are still unknown leave the rounding in doubt with probability below 2^-135 up to the largest scale.
    """
    uniform = int(known[0]) << 128 | int(more[0]) << 64 | int(more[1])
    turn = int(known[1].view(np.int64)) * 2**128 + (int(more[2]) << 64 | int(more[3]))
    return rounded_pair(uniform, turn, scale=scale)
