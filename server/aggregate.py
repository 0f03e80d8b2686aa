"""The newest aggregate of a masked run, on the disk before anybody hears of it.

What a session summed up cannot be summed up again: its hospitals have unmasked it, and without privacy they do not train
on the same adapter a second time. So a run that breaks between the sum and its checkpoint finds the sum here. It is as
public as the next global adapter, of which it is a function.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedslm.errors import RunError
from fedslm.files import replace_file
from fedslm.privacy.scores import Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a session came to.

    Attributes:
      round: the round it was for.
      adapter_sha256: hash of the global adapter that it started from, hex.
      survivors: whose updates are in it, in the plan's order.
      weight: the sum of their public weights.
      arrays: the global adapter's trained arrays plus the weighted mean of the updates, float32 by name.
      accuracy: of the adapter that it started from, where the plan releases scores.
    """

    round: int
    adapter_sha256: str
    survivors: tuple[str, ...]
    weight: float
    arrays: dict[str, np.ndarray[Any, Any]]
    accuracy: Accuracy | None = None

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether it can be the next adapter: float32 arrays of these names and shapes, every number in it finite."""
        found = {name: array.shape for name, array in self.arrays.items()}
        arrays = self.arrays.values()
        is_finite = all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
        return found == dict(shapes) and is_finite and 0 < self.weight < math.inf


class AggregateFile:
    """One file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        """Names the file; it need not exist."""
        self._path = path

    def save(self, aggregate: Aggregate) -> None:
        """Replaces what is there; it is on the disk when this returns.

        Raises:
          RunError: it cannot be written.
        """
        facts = {
            "round": aggregate.round,
            "adapter_sha256": aggregate.adapter_sha256,
            "survivors": aggregate.survivors,
            "weight": aggregate.weight,
            "accuracy": None if aggregate.accuracy is None else dataclasses.asdict(aggregate.accuracy),
        }
        arrays = {name: np.ascontiguousarray(array) for name, array in aggregate.arrays.items()}
        metadata = {"aggregate": json.dumps(facts)}
        try:
            replace_file(self._path, lambda path: save_file(arrays, path, metadata=metadata))
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"The aggregate of round {aggregate.round} cannot be written: {error}; make room on the disk and resume."
            ) from None

    def load(self) -> Aggregate | None:
        """What was saved last, or None where there is nothing that can be read."""
        try:
            with safe_open(self._path, framework="np") as file:
                facts = json.loads(file.metadata()["aggregate"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Aggregate(
                round=int(facts["round"]),
                adapter_sha256=str(facts["adapter_sha256"]),
                survivors=tuple(map(str, facts["survivors"])),
                weight=float(facts["weight"]),
                arrays=arrays,
                accuracy=None if facts["accuracy"] is None else Accuracy(**facts["accuracy"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
