"""`fedslm plan`: what a run would cost each hospital, without running it: privacy, bytes, memory, time.

Privacy and bytes are exact. Memory is computed from the model's sizes; time from one forward and backward pass over
random tokens on this machine. Both are estimates and say so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedslm.config.compose import compose
from fedslm.config.schema import FederationConfig
from fedslm.data.tokenise import tokenise
from fedslm.governance.plan import Plan
from fedslm.models.adapters import Adapter
from fedslm.models.loading import BaseModel, load_base
from fedslm.privacy.accounting import epsilon_spent
from fedslm.privacy.gradients import Batch, mean_gradient
from fedslm.privacy.planned import planned_mechanism
from fedslm.reporting.drawing import duration_words, size_words
from fedslm.reporting.promise import UNMASKED, bound_words
from server.planning import draft_plan
from simulations.consortium import Consortium, gather
from simulations.traffic import session_traffic

PROBE_FLOPS = 2e11
SAMPLE = 500  # records whose length is looked at
ACTIVATION_VALUES = 20  # saved per token, layer and hidden unit in a Llama block's forward pass; measured 17 to 22


def estimate(overrides: Sequence[str]) -> dict[str, Any]:
    """Plans a run and estimates its cost.

    Returns:
      `plan_sha256`, `run_id`, the plan's settings in brief, and `hospitals`: name -> epsilon (None without privacy),
      noise_multiplier, expected_records_per_step, bytes_up, bytes_down, memory_bytes, seconds; for the whole run.
    Raises:
      FedSLMError: whatever would stop the run before its first round.
    """
    config = compose(overrides)
    consortium = gather(config)
    plan = draft_plan(config, consortium.population, seed=config.seed).plan
    base = load_base(config.model)
    adapter = Adapter(base, config.adapter)
    seconds_per_token = _seconds_per_token(base, adapter)
    rows = {
        site.hospital: _row(config, plan, consortium, site.hospital, (base, adapter), seconds_per_token)
        for site in consortium.sites
    }
    return {
        "plan_sha256": plan.sha256,
        "run_id": plan.run_id,
        "model": plan.model.name,
        "adapter_parameters": plan.adapter.trained_parameters,
        "rounds": plan.training.rounds,
        "privacy": plan.privacy.mode,
        "delta": plan.privacy.delta,
        "unit": plan.privacy.unit,
        "masked": plan.masked,
        "bound": bound_words(plan),
        "sessions": plan.privacy.max_sessions,
        "scores_noise_multiplier": None if plan.privacy.scores is None else plan.privacy.scores.noise_multiplier,
        "hospitals": rows,
        "seconds_one_after_the_other": sum(row["seconds"] for row in rows.values()),
    }


def _row(
    config: FederationConfig,
    plan: Plan,
    consortium: Consortium,
    name: str,
    loaded: tuple[BaseModel, Adapter],
    seconds_per_token: float,
) -> dict[str, Any]:
    base, adapter = loaded
    limit = plan.model.max_length_tokens
    sample = tokenise(consortium.records[name].train[:SAMPLE], base.tokenizer, max_length_tokens=limit)
    length = sum(len(example.input_ids) for example in sample) / len(sample)
    units = plan.hospital(name).declared_population
    records = (
        units
        * plan.privacy.sample_rate
        * min(plan.privacy.max_records_per_unit, len(consortium.records[name].train) / units)
    )
    steps = plan.training.rounds * plan.training.local_steps
    frozen = sum(array.size for array in adapter.arrays(trained=False).values())
    traffic = session_traffic(plan, name, frozen=frozen)
    return {
        "patients" if plan.privacy.unit == "patient" else "records": units,
        "epsilon": _epsilon(plan, name),
        "noise_multiplier": plan.privacy.noise_multiplier,
        "expected_records_per_step": records,
        "bytes_up": traffic.up * plan.training.rounds,
        "bytes_down": traffic.down * plan.training.rounds,
        "memory_bytes": _memory_bytes(config, plan, base, length),
        "seconds": records * length * steps * seconds_per_token,
    }


def _epsilon(plan: Plan, name: str) -> float | None:
    if plan.privacy.mode == "none":
        return None
    mechanism = planned_mechanism(plan, name)
    return epsilon_spent(mechanism, sessions=plan.privacy.max_sessions, delta=plan.privacy.delta)


def _memory_bytes(config: FederationConfig, plan: Plan, base: BaseModel, length: float) -> int:
    """Weights, activations of one physical batch, its per-example gradients, and what Python and torch take anyway."""
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    sizes = base.model.config
    batch = config.training.physical_batch_size
    width, layers = getattr(sizes, "hidden_size", 1024), getattr(sizes, "num_hidden_layers", 24)
    activations = 4 * ACTIVATION_VALUES * batch * length * width * layers
    gradients = 8 * batch * plan.adapter.trained_parameters
    return int(weights + activations + gradients + 500e6)


def _seconds_per_token(base: BaseModel, adapter: Adapter) -> float:
    """Times a gradient over random tokens, after a warm-up; no record is read for it."""
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    tokens = int(max(16, min(2048, PROBE_FLOPS / (4 * parameters))))
    rows = max(1, tokens // 32)
    ids = torch.randint(base.model.config.vocab_size, (rows, min(32, tokens)))
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    batch = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, unit_ids=torch.arange(rows))
    mean_gradient(adapter.model, batch)
    started = time.perf_counter()
    mean_gradient(adapter.model, batch)
    return (time.perf_counter() - started) / ids.numel()


def render(found: Mapping[str, Any]) -> RenderableType:
    """The estimate as a person reads it."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("hospital", "units", "epsilon", "sigma", "records", "up", "down", "memory", "time"):
        table.add_column(heading, justify="left" if heading == "hospital" else "right", no_wrap=True)
    for name, row in found["hospitals"].items():
        table.add_row(name, *_cells(row))
    return Group(*(Text(line) for line in _head(found)), Text(), table, Text(), *(Text(line) for line in _foot(found)))


def _cells(row: Mapping[str, Any]) -> list[str]:
    units = row.get("patients", row.get("records"))
    return [
        f"{units}",
        "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
        f"{row['noise_multiplier']:.3f}",
        f"{row['expected_records_per_step']:.0f}",
        size_words(row["bytes_up"]),
        size_words(row["bytes_down"]),
        size_words(row["memory_bytes"]),
        duration_words(row["seconds"]),
    ]


def _head(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"plan {found['plan_sha256']}",
        f"run {found['run_id']}: {found['rounds']} rounds, model {found['model']}, "
        f"{found['adapter_parameters']:,} adapter parameters",
    ]
    if found["privacy"] == "none":
        lines.append("PRIVACY OFF: the adapter may remember what patients' notes say.")
    lines.append(f"Encrypted: {found['bound']}." if found["masked"] else UNMASKED)
    return lines


def _foot(found: Mapping[str, Any]) -> list[str]:
    total = duration_words(found["seconds_one_after_the_other"])
    return [
        *_scores(found),
        "Records are those expected in a step; up, down and time are for the whole run.",
        f"Epsilon at delta {found['delta']:g} per {found['unit']}, add/remove, after all {found['sessions']} sessions: the "
        f"rounds and {found['sessions'] - found['rounds']} more for rounds that must be tried again.",
        f"Memory and time are estimates for this machine; one after the other the hospitals take {total}.",
    ]


def _scores(found: Mapping[str, Any]) -> list[str]:
    sigma = found["scores_noise_multiplier"]
    if sigma is None:
        return []
    return [
        f"Scores of held-out patients leave within the masked sum, under noise of {sigma:.3f}; nobody is both held out and "
        "trained on, so epsilon covers either."
    ]
