"""One round at one hospital: load the global adapter, take the plan's private steps, answer with the update.

Everything that touches privacy comes from the plan and the site file through one `Mechanism`. No loss is computed for
anyone to see, nothing is counted, and nothing of the draw is logged.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clients.records import read_records
from clients.site import Site
from clients.streams import STEP, open_stream
from fedslm.config.schema import AdapterConfig, ModelConfig
from fedslm.crypto.prg import SecureStream
from fedslm.data.example import Example
from fedslm.data.tokenise import TokenisedExample, tokenise
from fedslm.errors import ModelError
from fedslm.flower.records import TrainRequest
from fedslm.governance.plan import Plan, PlannedAdapter
from fedslm.models.adapters import Adapter, peft_name
from fedslm.models.loading import load_base
from fedslm.privacy.gradients import IGNORED, Batch, PerUnitGradients, mean_gradient, private_gradient
from fedslm.privacy.planned import planned_mechanism
from fedslm.privacy.sampling import choose_records, poisson_sample

Update = dict[str, np.ndarray[Any, Any]]
Shape = tuple[ModelConfig, AdapterConfig]
Tool = tuple[Any, Adapter]
Step = Callable[[Batch, SecureStream], dict[str, torch.Tensor]]
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """A hospital's training records by privacy unit.

    Attributes:
      examples: every training record. Only the drawn ones are tokenised: memory stays that of the text.
      records_of: for each unit, the indices of its records.
    """

    examples: tuple[Example, ...]
    records_of: list[np.ndarray[Any, np.dtype[np.int64]]]


class Workbench:
    """What a client process keeps between messages: one frozen base, adapters on it, and records by site.

    In a deployment a process lives for one message; in a simulation all hospitals share one workbench, so one base.
    Safe to use from several threads: whoever trains or scores borrows an adapter for himself.
    """

    def __init__(self) -> None:
        """Starts empty; everything is loaded when first asked for."""
        self._first: dict[Shape, Tool] = {}
        self._free: dict[Shape, list[Tool]] = {}
        self._units: dict[Site, Units] = {}
        self._lock = threading.Lock()

    @contextmanager
    def adapter(self, model: ModelConfig, planned: PlannedAdapter) -> Iterator[Tool]:
        """Lends the tokenizer and the base model with the planned adapter attached; the base is loaded once.

        Every borrower has an adapter to himself; all share the frozen weights.

        Raises:
          ModelError: the base cannot be loaded or has no such modules.
        """
        shape = (
            model,
            AdapterConfig(method=planned.method, rank=planned.rank, alpha=planned.alpha, targets=planned.targets),
        )
        tool = self._borrow(shape)
        try:
            yield tool
        finally:
            with self._lock:
                self._free[shape].append(tool)

    def _borrow(self, shape: Shape) -> Tool:
        with self._lock:
            if shape not in self._first:
                base = load_base(shape[0])
                self._first[shape], self._free[shape] = (base.tokenizer, Adapter(base, shape[1])), []
            if self._free[shape]:
                return self._free[shape].pop()
            # The first is never lent, so that no hook of a running step is on it when it is copied. A tokenizer is not
            # safe to share between threads.
            tokenizer, adapter = self._first[shape]
            return copy.deepcopy(tokenizer), adapter.twin()

    def units(self, site: Site) -> Units:
        """A site's training records, grouped by patient; read once.

        Raises:
          DataError: they cannot be read, or have no patient ids where the unit is the patient.
        """
        with self._lock:
            found = self._units.get(site)
        if found is None:
            found = _read_units(site)
            with self._lock:
                self._units[site] = found
        return found


def train_round(request: TrainRequest, site: Site, bench: Workbench) -> Update:
    """Runs the plan's local steps from the given global adapter.

    Returns:
      Local minus global, float32 by name, trained arrays only.
    Raises:
      ModelError: the adapter is not the plan's. DataError: the records cannot be used.
    """
    if site.threads:
        torch.set_num_threads(site.threads)
    plan = request.plan
    with bench.adapter(plan.model, plan.adapter) as (tokenizer, adapter):
        request.require_planned_adapter()
        _load(adapter, request)
        _take_steps(adapter, bench.units(site), request, site, tokenizer)
        after = adapter.arrays(trained=True)
    update = {name: after[name] - request.trained[name] for name in after}
    _must_have_moved(update, plan)
    return update


def _must_have_moved(update: Update, plan: Plan) -> None:
    """Noise alone moves every adapter: one that stands still is not wired to the model, while epsilon is spent."""
    if plan.privacy.mode == "local" and not any(array.any() for array in update.values()):
        raise ModelError("The adapter did not move in a private step; it is not wired to the model it was trained on.")


def _load(adapter: Adapter, request: TrainRequest) -> None:
    expected = set(adapter.arrays(trained=True))
    if set(request.trained) != expected:
        raise ModelError("The adapter's arrays are not those of the plan's method and targets.")
    adapter.load({**request.frozen, **request.trained})


def _read_units(site: Site) -> Units:
    examples = read_records(site).train
    owners: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        owners.setdefault(str(example.patient_id) if site.unit == "patient" else str(row), []).append(row)
    return Units(examples=examples, records_of=[np.array(rows, dtype=np.int64) for rows in owners.values()])


def _take_steps(adapter: Adapter, units: Units, request: TrainRequest, site: Site, tokenizer: Any) -> None:
    """Takes the plan's local steps on the adapter in place.

    FedProx's pull is added after the noise: it depends on public values only.
    """
    plan, parameters = request.plan, adapter.trained
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = OPTIMIZERS[plan.training.optimizer](parameters.values(), lr=plan.training.learning_rate)
    step = _private_step(adapter, plan, site) if plan.privacy.mode == "local" else _plain_step(adapter, site)
    for number in range(plan.training.local_steps):
        stream = open_stream(site, plan, STEP, request.round, request.attempt, number)
        gradient = step(draw(units, plan, stream, tokenizer), stream)
        for name, parameter in parameters.items():
            pull = plan.training.proximal_mu * (parameter.detach() - start[name])
            parameter.grad = gradient[name].to(parameter.device, parameter.dtype) + pull
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def draw(units: Units, plan: Plan, stream: SecureStream, tokenizer: Any) -> Batch:
    """One Poisson draw of units with at most `max_records_per_unit` records each, padded on the right."""
    drawn = poisson_sample(len(units.records_of), sample_rate=plan.privacy.sample_rate, stream=stream)
    cap = plan.privacy.max_records_per_unit
    rows = [choose_records(units.records_of[unit], max_records_per_unit=cap, stream=stream) for unit in drawn]
    if not rows:
        return Batch.empty()
    owners = np.repeat(drawn, [len(picked) for picked in rows])
    chosen = [units.examples[row] for row in np.concatenate(rows)]
    tokens = tokenise(chosen, tokenizer, max_length_tokens=plan.model.max_length_tokens)
    return collate(tokens, owners, pad_id=tokenizer.pad_token_id)


def collate(examples: list[TokenisedExample], owners: np.ndarray[Any, Any], *, pad_id: int) -> Batch:
    """Pads examples on the right into one batch; labels cover the completions only."""
    width = max(len(example.input_ids) for example in examples)
    ids = np.full((len(examples), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    labels = np.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length], mask[row, :length] = example.input_ids, 1
        labels[row, example.completion_start : length] = example.input_ids[example.completion_start :]
    ids_tensor, mask_tensor, labels_tensor = (torch.from_numpy(array) for array in (ids, mask, labels))
    return Batch(
        input_ids=ids_tensor, attention_mask=mask_tensor, labels=labels_tensor, unit_ids=torch.from_numpy(owners)
    )


def _private_step(adapter: Adapter, plan: Plan, site: Site) -> Step:
    engine = PerUnitGradients(adapter.model, physical_batch_size=site.physical_batch_size)
    mechanism = planned_mechanism(plan, site.hospital)

    def step(batch: Batch, stream: SecureStream) -> dict[str, torch.Tensor]:
        return _by_peft_name(private_gradient(engine, batch, mechanism=mechanism, stream=stream).values)

    return step


def _plain_step(adapter: Adapter, site: Site) -> Step:
    """Without privacy a loss or gradient that is not finite stops the hospital's round: nothing has to be hidden."""

    def step(batch: Batch, stream: SecureStream) -> dict[str, torch.Tensor]:
        mean = mean_gradient(adapter.model, batch, physical_batch_size=site.physical_batch_size)
        if not np.isfinite(mean.loss) or not all(torch.isfinite(value).all() for value in mean.values.values()):
            raise FloatingPointError("The loss or its gradient is not finite; lower the learning rate.")
        return _by_peft_name(mean.values)

    return step


def _by_peft_name(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {peft_name(name): value for name, value in values.items()}
