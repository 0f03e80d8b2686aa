"""FedSLM: hospitals tune a small language model together, and their notes stay at home.

`fedslm.simulate(overrides)` runs a whole federation on this machine, as the command `fedslm simulate` does. Importing the
package loads nothing heavy: no torch, transformers or flwr.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.run import RunResult

__version__ = "0.1.0"
__all__ = ["__version__", "simulate"]


def simulate(overrides: Sequence[str] = ()) -> RunResult:
    """Runs a federation on this machine and returns what came of it.

    Args:
      overrides: settings as on the command line, e.g. `["rounds=5", "privacy.epsilon=3"]`.
    Returns:
      The run's folder, final adapter, summary and history of events.
    Raises:
      FedSLMError: one sentence that says what is wrong and what to do; `exit_code` is the command's.
    """
    from fedslm.process import settle

    settle()
    from simulations.run import simulate as run_simulation

    return run_simulation(overrides)
