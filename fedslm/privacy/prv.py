"""A third opinion on epsilon, in a process of its own: it may never come back at small noise, and is then killed."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys

MAX_MEMORY_BYTES = 4 << 30
"""What the process may take; its tables grow without bound as the noise gets smaller."""

_log = logging.getLogger(__name__)


def run_prv(*, sample_rate: float, noise_multiplier: float, steps: int, delta: float, timeout_s: float) -> float | None:
    """Asks Opacus's accountant of privacy random variables for epsilon, and waits no longer than `timeout_s`.

    Returns:
      An upper bound on epsilon, or None where it gave none: no time, no memory, no finite number, or an error of its own.

    Guarantees: its process is gone when this returns, killed if need be.

    Source: Gopi, Lee and Wutschitz 2021, arXiv 2106.02848.
    """
    question = json.dumps([sample_rate, noise_multiplier, steps, delta])
    try:
        answer = subprocess.run(
            [sys.executable, "-m", __name__, question], capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except subprocess.TimeoutExpired:
        _log.info("The PRV accountant was stopped after %s s at noise multiplier %s.", timeout_s, noise_multiplier)
        return None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        _log.info("The PRV accountant gave up at noise multiplier %s: %s", noise_multiplier, reason)
        return None
    found = float(answer.stdout.split()[-1])
    return found if math.isfinite(found) else None


def main(question: str) -> None:
    """Prints the epsilon for one question; the process that `run_prv` starts."""
    import resource

    from opacus.accountants import PRVAccountant

    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    sample_rate, noise_multiplier, steps, delta = json.loads(question)
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    print(float(accountant.get_epsilon(delta)))


if __name__ == "__main__":
    main(sys.argv[1])
