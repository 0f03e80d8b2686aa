"""The model card that travels with an adapter: what it is, how private, and what it must not be taken for."""

from __future__ import annotations

from pathlib import Path

from fedslm.governance.plan import Plan
from fedslm.reporting.promise import bound_words


def write_card(folder: Path, plan: Plan, *, rounds: int, seeded: bool) -> None:
    """Writes `README.md` beside an adapter's weights.

    Args:
      rounds: rounds the adapter has been through.
      seeded: it comes from a seeded simulation.
    """
    (folder / "README.md").write_text(card(plan, rounds=rounds, seeded=seeded))


def card(plan: Plan, *, rounds: int, seeded: bool) -> str:
    """The card's text, in Markdown with the metadata block that model hubs read."""
    return f"""---
base_model: {plan.model.source}
library_name: peft
tags: [lora, federated, fedslm]
---
# LoRA adapter of run {plan.run_id}

Tuned by {len(plan.hospitals)} hospitals over {rounds} rounds with FedSLM. Base model: `{plan.model.source}` at revision
`{plan.model.revision or "as installed"}`. Plan: `{plan.sha256}`.

- Privacy: {_privacy(plan)}
- Secure aggregation: {_masking(plan)}
- LoRA: {plan.adapter.method}, rank {plan.adapter.rank}, alpha {plan.adapter.alpha:g}, on {", ".join(plan.adapter.targets)}
- Origin: {_origin(seeded)}

Not a medical device. Do not use it for decisions about patients.
"""


def _masking(plan: Plan) -> str:
    if not plan.masked:
        return "OFF. The coordinator could read every hospital's update."
    words = f"on. The coordinator read only sums of updates; {bound_words(plan)}."
    if plan.privacy.mode == "none":
        return f"{words} It protects each sum by itself: without privacy, sums over different hospitals may tell more."
    return words


def _privacy(plan: Plan) -> str:
    privacy = plan.privacy
    if privacy.mode == "none":
        return "NONE. The adapter may reveal what it was trained on; treat it like the notes themselves."
    return (
        f"(epsilon {privacy.epsilon:g}, delta {privacy.delta:g})-differential privacy per {privacy.unit}, adding or removing "
        f"one, at every hospital (noise multiplier {privacy.noise_multiplier:g}, {privacy.max_sessions} sessions)."
    )


def _origin(seeded: bool) -> str:
    if seeded:
        return "a seeded simulation. Its noise is reproducible by whoever knows the seed, so the guarantee is only simulated."
    return "a deployment; noise and sampling from the hospitals' operating systems."
