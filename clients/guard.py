"""What stands between a hospital's training and the outside, outermost first: `redact`, `close_egress`, `approve`.

They are mods of the installed ClientApp. Whoever submits a run cannot remove them: a hospital runs its own wheel.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message

from clients.site import find_site, read_site
from fedslm.errors import BudgetExceededError, ConfigError, DataError, ModelError, PrivacyError
from fedslm.flower.records import CONFIG, JOIN, UPDATE, ErrorCode, error_reply, read_plan

Handler = Callable[[Message, Context], Message]

# What each kind of request may be answered with: (array records, config keys). Anything else stays inside.
EGRESS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    JOIN: (frozenset(), frozenset({"hospital", "plan-sha256"})),
    "train": (frozenset({UPDATE}), frozenset()),
}

# First match wins, so that a subclass stands before its base.
_CODES: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (BudgetExceededError, ErrorCode.BUDGET_EXHAUSTED),
    (ConfigError, ErrorCode.PLAN_REFUSED),
    (PrivacyError, ErrorCode.PLAN_REFUSED),
    (DataError, ErrorCode.DATA_UNUSABLE),
    (ModelError, ErrorCode.MODEL_UNAVAILABLE),
    (FloatingPointError, ErrorCode.NOT_FINITE),
)


class EgressError(Exception):
    """A reply held something that is not on the closed list; nothing of it was sent."""


def redact(message: Message, context: Context, call_next: Handler) -> Message:
    """Outermost: turns every exception into a code and an incident number; its text stays in the hospital's log.

    Flower would send type and text to the coordinator, and a parser's text can quote a patient.
    """
    try:
        return call_next(message, context)
    except Exception as error:
        incident = secrets.token_hex(4)
        _keep_locally(context, incident, error)
        return error_reply(message, _code(error), incident)


def close_egress(message: Message, context: Context, call_next: Handler) -> Message:
    """Lets only what is on the closed list leave.

    Raises:
      EgressError: the reply holds another record, a metric, another key, or an error's text that is not ours.
    """
    reply = call_next(message, context)
    if reply.has_error():
        raise EgressError("The app answered with an error of its own making; its text was not sent.")
    arrays, keys = EGRESS.get(message.metadata.message_type.removesuffix(".default"), (frozenset(), frozenset()))
    content = reply.content
    sent = {key for record in content.config_records.values() for key in record}
    if (
        content.metric_records
        or set(content.array_records) - arrays
        or set(content.config_records) - {CONFIG}
        or sent - keys
    ):
        raise EgressError("The reply held records that are not on the closed list; it was not sent.")
    return reply


def approve(message: Message, context: Context, call_next: Handler) -> Message:
    """Refuses every message whose plan this hospital's site file does not cover.

    Raises:
      ConfigError: plan and site file disagree.
    """
    read_site(find_site(dict(context.node_config))).approve(read_plan(message))
    return call_next(message, context)


def _code(error: Exception) -> ErrorCode:
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.FAILED)


def _keep_locally(context: Context, incident: str, error: Exception) -> None:
    """Writes the incident where only the hospital reads it; a log that cannot be written must not lose the reply."""
    text = f"incident {incident}\n{''.join(traceback.format_exception(error))}"
    try:
        log_file = read_site(find_site(dict(context.node_config))).log_file
        if log_file is None:
            logging.getLogger("clients").error("%s", text)
            return
        Path(log_file).touch(mode=0o600)  # a traceback may quote a note: for the hospital's own account only
        with Path(log_file).open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text + "\n")
    except Exception:
        logging.getLogger("clients").error("%s", text)
