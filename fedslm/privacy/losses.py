"""Privacy loss distributions and Renyi divergences of single steps: the figures from which `accounting` composes.

The accountants' library takes a second to import, so it is loaded when a figure is asked for.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedslm.errors import PrivacyError

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

RENYI_ORDERS = (
    *(n / 10 for n in range(15, 30)),
    *(n / 4 for n in range(12, 20)),
    *(n / 2 for n in range(10, 20)),
    *range(10, 64),
    *(72, 96, 128, 192, 256, 384, 512, 1024),
)
"""Orders at which the Renyi divergence is bounded; the best of them counts."""

CROSS_CHECK_MARGIN = 0.02
"""By how much the loss distribution may exceed the Renyi bound before the result is refused."""


def discretisation(sample_rate: float, noise_multiplier: float) -> float:
    """Chooses the grid of the loss: 1e-3, or the power of ten at most half a step's typical loss where that is smaller.

    A step whose loss is far below the interval is rounded up to it, soundly but wastefully: q = 5e-4, sigma = 2 and
    20 000 steps gave 0.245 at 1e-3 (above the Renyi bound of 0.191) and 0.143 at 1e-4.
    """
    typical = sample_rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    return min(1e-3, max(1e-7, 10.0 ** math.floor(math.log10(typical / 2.0))))


def step_loss(sample_rate: float, noise_multiplier: float, *, interval: float) -> PrivacyLossDistribution:
    """The privacy loss of one Poisson-sampled Gaussian step under add/remove neighbours, never an underestimate.

    Source: Doroshenko et al. 2022, arXiv 2207.04380 ("connect the dots").
    """
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
    )


def patient_step_loss(
    sample_rate: float, noise_multiplier: float, *, records: int, interval: float
) -> PrivacyLossDistribution:
    """The same when all of a patient's records come or go, each of which is drawn and clipped by itself.

    How many of the k records are drawn is binomial, and each moves the sum by C at most, in one direction at worst: a
    mixture of Gaussians with means 0, C, ..., k C.

    Source: Charles et al. 2024, arXiv 2407.07737, section 4.
    """
    from dp_accounting.pld import privacy_loss_distribution

    rate, drawn = Fraction(sample_rate), np.arange(records + 1)
    chances = np.array(
        [float(math.comb(records, n) * rate**n * (1 - rate) ** (records - n)) for n in range(records + 1)]
    )
    seen = chances > 0.0  # below 1e-323 a chance is no number any more
    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        noise_multiplier,
        sensitivities=drawn[seen].astype(np.float64),
        sampling_probs=chances[seen] / chances[seen].sum(),
        value_discretization_interval=interval,
        pessimistic_estimate=True,
    )


@functools.lru_cache(maxsize=256)
def step_divergence(sample_rate: float, noise_multiplier: float) -> npt.NDArray[np.float64]:
    """The Renyi divergence of one Poisson-sampled Gaussian step at each of `RENYI_ORDERS`; divergences of steps add.

    Source: Mironov et al. 2019, arXiv 1908.10530.
    """
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(RENYI_ORDERS)
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    )
    found = np.asarray(accountant.rdp, dtype=np.float64)
    found.flags.writeable = False  # it is remembered
    return found


def divergence_epsilon(divergence: npt.NDArray[np.float64], delta: float) -> float:
    """Epsilon at delta from divergences at `RENYI_ORDERS`."""
    from dp_accounting import rdp

    found: Any = rdp.compute_epsilon(RENYI_ORDERS, divergence, delta)[0]
    return float(found)


def check_delta(delta: float) -> float:
    """Returns delta, or refuses one outside (0, 1).

    Raises:
      PrivacyError: as said.
    """
    if not 0.0 < delta < 1.0:
        raise PrivacyError(f"delta is {delta}; it has to lie in (0, 1), at most 1/(100 * population), such as 1e-6.")
    return delta


def cross_checked(epsilon: float, bound: float) -> float:
    """Returns what the loss distribution gives, unless it contradicts the Renyi bound.

    Raises:
      PrivacyError: as said.
    """
    if not epsilon <= bound + CROSS_CHECK_MARGIN:
        raise PrivacyError(
            f"Two accountants disagree: the loss distribution gives epsilon {epsilon:.4f}, above the Renyi bound "
            f"{bound:.4f} + {CROSS_CHECK_MARGIN}; use another noise_multiplier or sample_rate, and report this."
        )
    return epsilon


def delta_left(delta: float, sampler: float) -> float:
    """What remains of delta for the mechanism after the samplers' own error.

    Raises:
      PrivacyError: next to nothing does.
    """
    if sampler >= delta / 100:
        raise PrivacyError(
            f"Random number generation alone may cost {sampler:.1e} of delta {delta:.1e}, more than a hundredth; "
            "plan fewer steps, a smaller max_parameters, or a larger delta."
        )
    return delta - sampler
