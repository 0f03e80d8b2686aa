"""`summary.json`: what a run came to, in stable keys, whether it finished, failed or was interrupted."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

from fedslm.errors import FedSLMError
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer, EventLog, Observer, read_events
from fedslm.reporting.promise import bound_words, notice
from server.checkpoints import Checkpoint
from server.rounds import epsilon_curve
from server.run_folder import RunFolder
from server.sessions import SessionCounter


def summarise(run: RunFolder, end: Checkpoint, *, status: str, seeded: bool, started: float) -> dict[str, Any]:
    """The figures of a run so far.

    Args:
      end: the last whole round.
      status: "finished", "failed" or "interrupted".
      seeded: it is a simulation with reproducible noise.
      started: `time.monotonic()` when this process took the run up.
    """
    plan = run.plan()
    privacy, curve = plan.privacy, epsilon_curve(plan)
    sessions = SessionCounter(run.sessions, at_least=end.sessions).started  # a session that failed has cost as much
    return {
        "status": status,
        "run_id": plan.run_id,
        "plan_sha256": plan.sha256,
        "run_folder": str(run.path),
        "adapter": str(run.adapter) if run.adapter.exists() else None,
        "model": plan.model.name,
        "hospitals": list(plan.names),
        "rounds": end.round,
        "privacy": privacy.mode,
        "epsilon": None if curve is None else curve.epsilon(sessions),
        "delta": privacy.delta,
        "unit": privacy.unit,
        "noise_multiplier": privacy.noise_multiplier,
        "masked": plan.masked,
        "bound": bound_words(plan),
        "notice": notice(plan),
        "sessions": sessions,
        "held_out_accuracy": _held_out_accuracy(run, plan),
        "seeded": seeded,
        "seconds": time.monotonic() - started,
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _held_out_accuracy(run: RunFolder, plan: Plan) -> list[dict[str, Any]] | None:
    """What the hospitals released, by round: `round`, `accuracy` and `stddev` of its noise; None where they release none."""
    if plan.privacy.scores is None:
        return None
    events = read_events(run.events) if run.events.exists() else []
    found = {event.fields["round"]: dict(event.fields) for event in events if event.kind == "held_out_scored"}
    return [found[round] for round in sorted(found)]


def record_failure(
    run: RunFolder,
    observers: Sequence[Observer],
    error: BaseException,
    *,
    resume_command: str,
    seeded: bool,
    started: float,
) -> dict[str, Any] | None:
    """Puts the end of a run on record: an event, and `summary.json`.

    Returns:
      The summary, or None where nothing can be written any more: that must not hide why the run ended.
    """
    is_interrupted = isinstance(error, KeyboardInterrupt)
    try:
        last = run.latest()
        with EventLog(run.events) as log:
            announcer = Announcer(log, *observers)
            if is_interrupted:
                announcer.emit("run_interrupted", round=last.round, resume_command=resume_command)
            else:
                message = str(error) if isinstance(error, FedSLMError) else type(error).__name__
                announcer.emit("run_failed", code=type(error).__name__, message=message)
        status = "interrupted" if is_interrupted else "failed"
        summary = summarise(run, last, status=status, seeded=seeded, started=started)
        run.write_summary(summary)
    except (FedSLMError, OSError):
        return None
    return summary


def _peak_rss_bytes() -> int:
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(own, children) * 1024
