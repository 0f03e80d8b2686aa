"""One round at one hospital: load the global adapter, take the plan's private steps, answer with the update.

Everything that touches privacy comes from the plan and the site file through one `Mechanism`: who is drawn, with which
records, how they are clipped and noised, by what the sum is divided, and how often. No loss is computed for anyone to
see, nothing is counted, and nothing of the draw is logged.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clients.records import Records, read_records
from clients.site import Site
from clients.streams import STEP, open_stream
from fedslm.config.schema import AdapterConfig, ModelConfig
from fedslm.crypto.prg import SecureStream
from fedslm.data.example import Example
from fedslm.data.tokenise import TokenisedExample, tokenise
from fedslm.errors import DataError, ModelError
from fedslm.flower.records import TrainRequest
from fedslm.governance.plan import Plan, PlannedAdapter
from fedslm.models.adapters import Adapter, peft_name
from fedslm.models.loading import load_base
from fedslm.privacy.gradients import IGNORED, Batch, PerUnitGradients, mean_gradient, private_gradient
from fedslm.privacy.planned import planned_mechanism
from fedslm.privacy.sampling import PoissonSampler

Update = dict[str, np.ndarray[Any, Any]]
Shape = tuple[ModelConfig, AdapterConfig]
Tool = tuple[Any, Adapter]
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """A hospital's training records by privacy unit.

    Attributes:
      examples: every training record. Only the drawn ones are tokenised: memory stays that of the text.
      records_of: for each unit, the indices of its records; where a patient's records are bounded, of those within it.
    """

    examples: tuple[Example, ...]
    records_of: list[np.ndarray[Any, np.dtype[np.int64]]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Routine:
    """How a session trains.

    Attributes:
      steps: optimizer steps.
      sampler: who takes part in each.
      gradient: from the drawn records to the step's gradient by PEFT name.
    """

    steps: int
    sampler: PoissonSampler
    gradient: Callable[[Batch, SecureStream], dict[str, torch.Tensor]]


class Workbench:
    """What a client process keeps between messages: one frozen base, adapters on it, and records by site.

    In a deployment a process lives for one message; in a simulation all hospitals share one workbench, so one base.
    Safe to use from several threads: whoever trains or scores borrows an adapter for himself.
    """

    def __init__(self) -> None:
        """Starts empty; everything is loaded when first asked for."""
        self._first: dict[Shape, Tool] = {}
        self._free: dict[Shape, list[Tool]] = {}
        self._records: dict[Site, Records] = {}
        self._units: dict[tuple[Site, int | None], Units] = {}
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

    def units(self, site: Site, *, max_records_per_patient: int | None = None) -> Units:
        """A site's training records, grouped by privacy unit; read once.

        Args:
          max_records_per_patient: the plan's bound, where the record is the unit.

        Raises:
          DataError: they cannot be read, or have no patient ids where the unit is the patient or patients are bounded.
        """
        key = site, max_records_per_patient
        with self._lock:
            found = self._units.get(key)
        if found is None:
            found = _units(self.records(site).train, site, max_records_per_patient)
            with self._lock:
                self._units[key] = found
        return found

    def records(self, site: Site) -> Records:
        """A site's records, those to train on and those held out; read once.

        Raises:
          DataError: they cannot be read, or have no patient ids where the unit is the patient.
        """
        with self._lock:
            found = self._records.get(site)
        if found is None:
            found = read_records(site)
            with self._lock:
                self._records[site] = found
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
    units = bench.units(site, max_records_per_patient=plan.privacy.max_records_per_patient)
    with bench.adapter(plan.model, plan.adapter) as (tokenizer, adapter):
        request.require_planned_adapter()
        load_adapter(adapter, request)
        _take_steps(adapter, units, request, site, tokenizer)
        after = adapter.arrays(trained=True)
    return {name: after[name] - request.trained[name] for name in after}


def load_adapter(adapter: Adapter, request: TrainRequest) -> None:
    """Puts the global adapter that came with a request into a borrowed one.

    Raises:
      ModelError: its arrays are not the plan's.
    """
    expected = set(adapter.arrays(trained=True))
    if set(request.trained) != expected:
        raise ModelError("The adapter's arrays are not those of the plan's method and targets.")
    adapter.load({**request.frozen, **request.trained})


def _units(examples: tuple[Example, ...], site: Site, bound: int | None) -> Units:
    """Groups the records by patient, or takes each by itself, where a patient may be bound to so many."""
    if site.unit == "record" and bound is None:
        return Units(examples=examples, records_of=_alone(range(len(examples))))
    patients: dict[str | None, list[int]] = {}
    for row, example in enumerate(examples):
        patients.setdefault(example.patient_id, []).append(row)
    if site.unit == "patient":
        return Units(examples=examples, records_of=[np.array(rows, dtype=np.int64) for rows in patients.values()])
    if None in patients:
        raise DataError(
            f"{len(patients[None])} training rows of {site.hospital} have no patient id, and the plan has "
            f"max_records_per_patient={bound}; map a column to it (in a simulation data.columns.patient_id), or agree on a "
            "plan without that bound."
        )
    kept = sorted(row for rows in patients.values() for row in _bounded(rows, examples, bound))
    return Units(examples=examples, records_of=_alone(kept))


def _alone(rows: Iterable[int]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.array([row], dtype=np.int64) for row in rows]


def _bounded(rows: list[int], examples: tuple[Example, ...], bound: int | None) -> list[int]:
    """At most `bound` of one patient's records, the same ones in every session.

    They are those whose texts have the lowest hashes, as good as random, and no other patient's records matter. What is
    protected one by one are the records kept: without one of them the patient's next would be kept in its place, which
    the patient's epsilon covers and the record's does not.
    """

    return sorted(rows, key=lambda row: examples[row].rank)[:bound]


def _take_steps(adapter: Adapter, units: Units, request: TrainRequest, site: Site, tokenizer: Any) -> None:
    """Takes a session's steps on the adapter in place.

    FedProx's pull is added after the noise: it depends on public values only.
    """
    plan, parameters = request.plan, adapter.trained
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = OPTIMIZERS[plan.training.optimizer](parameters.values(), lr=plan.training.learning_rate)
    routine = _private(adapter, plan, site) if plan.privacy.mode == "local" else _plain(adapter, plan, site)
    for number in range(routine.steps):
        stream = open_stream(site, plan, STEP, request.round, request.attempt, number)
        batch = draw(units, routine.sampler, stream, tokenizer, max_length_tokens=plan.model.max_length_tokens)
        gradient = routine.gradient(batch, stream)
        for name, parameter in parameters.items():
            pull = plan.training.proximal_mu * (parameter.detach() - start[name])
            parameter.grad = gradient[name].to(parameter.device, parameter.dtype) + pull
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.privacy.mode == "local" and number == 0:
            _must_have_moved(parameters, start)


def _must_have_moved(parameters: dict[str, torch.nn.Parameter], start: dict[str, torch.Tensor]) -> None:
    """Noise alone moves every adapter: one that stands still is not wired to the model, while epsilon is spent."""
    if all(torch.equal(parameter, start[name]) for name, parameter in parameters.items()):
        raise ModelError("The adapter did not move in a private step; it is not wired to the model it was trained on.")


def draw(
    units: Units, sampler: PoissonSampler, stream: SecureStream, tokenizer: Any, *, max_length_tokens: int
) -> Batch:
    """One Poisson draw of units with some records of each, padded on the right."""
    drawn = sampler.draw(len(units.records_of), stream=stream)
    rows = [sampler.choose(units.records_of[unit], stream=stream) for unit in drawn]
    if not rows:
        return Batch.empty()
    owners = np.repeat(drawn, [len(picked) for picked in rows])
    chosen = [units.examples[row] for row in np.concatenate(rows)]
    tokens = _readable(chosen, tokenizer, max_length_tokens)
    return collate(tokens, owners, pad_id=tokenizer.pad_token_id)


def _readable(examples: list[Example], tokenizer: Any, max_length_tokens: int) -> list[TokenisedExample]:
    """Tokenises a draw; a record on which the tokenizer fails gives nothing, so that who was drawn does not show."""
    try:
        return tokenise(examples, tokenizer, max_length_tokens=max_length_tokens)
    except Exception as error:
        if len(examples) == 1:
            _log.warning("A record was left out of a step: %s", type(error).__name__)
            return [TokenisedExample(input_ids=np.zeros(1, dtype=np.int64), completion_start=1)]
        return [token for example in examples for token in _readable([example], tokenizer, max_length_tokens)]


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


def _private(adapter: Adapter, plan: Plan, site: Site) -> Routine:
    engine = PerUnitGradients(adapter.model, physical_batch_size=site.physical_batch_size)
    mechanism = planned_mechanism(plan, site.hospital)

    def gradient(batch: Batch, stream: SecureStream) -> dict[str, torch.Tensor]:
        return _by_peft_name(private_gradient(engine, batch, mechanism=mechanism, stream=stream).values)

    return Routine(steps=mechanism.steps, sampler=mechanism.sampler, gradient=gradient)


def _plain(adapter: Adapter, plan: Plan, site: Site) -> Routine:
    """Without privacy a loss or gradient that is not finite stops the hospital's round: nothing has to be hidden."""

    def gradient(batch: Batch, stream: SecureStream) -> dict[str, torch.Tensor]:
        mean = mean_gradient(adapter.model, batch, physical_batch_size=site.physical_batch_size)
        if not np.isfinite(mean.loss) or not all(torch.isfinite(value).all() for value in mean.values.values()):
            raise FloatingPointError("The loss or its gradient is not finite; lower the learning rate.")
        return _by_peft_name(mean.values)

    sampler = PoissonSampler(
        sample_rate=plan.privacy.sample_rate, max_records_per_unit=plan.privacy.max_records_per_unit
    )
    return Routine(steps=plan.training.local_steps, sampler=sampler, gradient=gradient)


def _by_peft_name(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {peft_name(name): value for name, value in values.items()}
