"""The sentences that both views of a run share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedslm.reporting.drawing import budget_words, clean, duration_words, percent_words, spent_words
from fedslm.reporting.events import Event
from fedslm.reporting.progress import Header, Progress

LOUD = "bold white on red"


def told(history: Iterable[Event]) -> Progress:
    """Where a run stands after these events."""
    progress = Progress()
    for event in history:
        progress.apply(event)
    return progress


def privacy_sentence(privacy: Mapping[str, Any]) -> str:
    """epsilon 8.0 at delta 1e-06 per patient"""
    delta, unit = f"delta {privacy['delta']:.3g}", f"per {clean(privacy['unit'])}"
    if privacy["epsilon"] is None:
        return f"noise multiplier {privacy['noise_multiplier']:.3g}, no epsilon budget, {delta} {unit}"
    return f"epsilon {budget_words(privacy['epsilon'])} at {delta} {unit}"


def run_sentence(header: Header, dot: str) -> str:
    """wards-7f3a91 · tiny-llama · 24,576 adapter parameters"""
    parameters = f"{header.adapter_parameters:,} adapter parameters"
    return f"{clean(header.run_id)}{dot}{clean(header.model)}{dot}{parameters}"


def warnings(header: Header) -> list[tuple[str, str]]:
    """What nobody may overlook, as (text, style); shown by every view, even a quiet one."""
    lines = []
    if not header.is_private:
        lines.append(("PRIVACY OFF: the adapter may remember what patients' notes say", LOUD))
    if not header.masked:
        lines.append(("updates are NOT encrypted: the coordinator can read each one", LOUD))
    if header.seeded:
        lines.append(("seeded simulation: noise is reproducible, not secret", "yellow"))
    return lines


def masking_sentence(header: Header) -> str:
    """encrypted: 1 of 5 may collude with the coordinator; 1 may drop out of a session"""
    return f"encrypted: {clean(header.bound)}" if header.bound else "encrypted: the coordinator sees only sums"


def epsilon_words(progress: Progress) -> str:
    """epsilon 3.21 of 8.0; empty with privacy off or before the first round."""
    if progress.epsilon is None or progress.header is None or not progress.header.is_private:
        return ""
    budget = progress.header.privacy["epsilon"]
    return f"epsilon {spent_words(progress.epsilon)}" + (f" of {budget_words(budget)}" if budget is not None else "")


def held_out_words(progress: Progress) -> str:
    """held-out patients: accuracy 61.2 % after round 3, noise 2.1 %; empty where the hospitals release no scores."""
    if progress.held_out is None:
        return ""
    round, accuracy, stddev = progress.held_out
    when = f"after round {round}" if round else "before training"
    return f"held-out patients: accuracy {percent_words(accuracy)} {when}, noise {percent_words(stddev)}"


def remaining_words(progress: Progress, now: float) -> str:
    """about 16.0 s left; empty while unknown or over."""
    remaining = progress.remaining_s(now)
    return "" if remaining is None else f"about {duration_words(remaining)} left"
