"""What stands between a hospital's training and the outside: mods of the installed ClientApp, outermost first.

`redact`, `close_egress`, `approve`, `spend`, `mask`. Whoever submits a run cannot remove them: a hospital runs its own
wheel.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from flwr.app import Context, Message

from clients.ledger import open_ledger
from clients.promise import verify_epsilon
from clients.session import take_part
from clients.site import find_site, own_site, read_site
from fedslm.errors import (
    BudgetExceededError,
    ConfigError,
    DataError,
    LedgerError,
    ModelError,
    PrivacyError,
    ProtocolError,
)
from fedslm.flower.records import (
    ABORT,
    CONFIG,
    CONFIRM,
    JOIN,
    MASK,
    SCORES,
    SECAGG,
    TRAIN,
    UNMASK,
    UPDATE,
    ErrorCode,
    error_reply,
    protocol_code,
    read_plan,
    read_train_request,
    secagg_bytes,
    secagg_reply,
)
from fedslm.secagg.messages import AbortReply, ConfirmReply, JoinReply, MaskedReply, SharesReply, UnmaskReply
from fedslm.secagg.wire import Document, kind_of

Handler = Callable[[Message, Context], Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """What one kind of request may be answered with, exactly.

    Attributes:
      arrays: the array record.
      keys: of the config record.
      document: what the array record `SECAGG` holds.
    """

    arrays: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    document: type[Document] | None = None


def _sealed(document: type[Document], *keys: str) -> Exit:
    return Exit(arrays=frozenset({SECAGG}), keys=frozenset(keys), document=document)


# The closed list, by kind of request and whether the plan is masked. Anything else stays inside.
EGRESS: dict[tuple[str, bool], Exit] = {
    (JOIN, False): Exit(keys=frozenset({"hospital", "plan-sha256"})),
    (TRAIN, False): Exit(arrays=frozenset({UPDATE})),
    (JOIN, True): _sealed(JoinReply, "hospital", "plan-sha256"),
    (TRAIN, True): _sealed(SharesReply),
    (MASK, True): _sealed(MaskedReply),
    (CONFIRM, True): _sealed(ConfirmReply),
    (UNMASK, True): _sealed(UnmaskReply),
    (ABORT, True): _sealed(AbortReply),
}

# First match wins, so that a subclass stands before its base.
_CODES: tuple[tuple[type[Exception], ErrorCode], ...] = (
    (BudgetExceededError, ErrorCode.BUDGET_EXHAUSTED),
    (ConfigError, ErrorCode.PLAN_REFUSED),
    (PrivacyError, ErrorCode.PLAN_REFUSED),
    (LedgerError, ErrorCode.LEDGER_REFUSED),
    (DataError, ErrorCode.DATA_UNUSABLE),
    (ModelError, ErrorCode.MODEL_UNAVAILABLE),
    (FloatingPointError, ErrorCode.NOT_FINITE),
)


class EgressError(Exception):
    """A reply held something that is not on the closed list; nothing of it was sent."""


def redact(message: Message, context: Context, call_next: Handler) -> Message:
    """Outermost: turns every exception into a code and an incident number; its text stays in the hospital's log.

    Flower would send type and text to the coordinator, and a parser's text can quote a patient. Only what ends the
    process goes through.
    """
    try:
        return call_next(message, context)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in a library written in Rust is no Exception
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
    allowed = EGRESS.get((_kind(message), read_plan(message).masked))
    if allowed is None or not _is_allowed(reply, allowed):
        raise EgressError("The reply held records that are not on the closed list; it was not sent.")
    return reply


def approve(message: Message, context: Context, call_next: Handler) -> Message:
    """Refuses every message whose plan this hospital's site file does not cover, or that costs more than it says.

    Raises:
      ConfigError: plan and site file disagree. PrivacyError: see `verify_epsilon`.
    """
    site, plan = own_site(dict(context.node_config)), read_plan(message)
    site.approve(plan)
    if _kind(message) in (JOIN, TRAIN):  # nobody reserves or trains on the coordinator's word for what it costs
        verify_epsilon(plan, site.hospital)
    return call_next(message, context)


def spend(message: Message, context: Context, call_next: Handler) -> Message:
    """Pays for a plan in the clear: reserves it at the invitation, and books a session before it is trained.

    A masked plan is paid for in its session (`clients/session.py`), which is opened and booked at once.

    Raises:
      BudgetExceededError, LedgerError, RunError: see `LedgerBook`; nothing was trained.
    """
    plan, kind = read_plan(message), _kind(message)
    if not plan.masked and kind in (JOIN, TRAIN):
        with open_ledger(own_site(dict(context.node_config))) as ledger:
            if kind == JOIN:
                ledger.reserve(plan, coordinator="")
            else:
                read_train_request(message).require_planned_adapter()  # what is not worked for is not paid for
                ledger.book(plan, coordinator="")
    return call_next(message, context)


def mask(message: Message, context: Context, call_next: Handler) -> Message:
    """Innermost: under a masked plan the update stays here, and the shares of what will mask it are sent in its place.

    The training beneath knows nothing of it. Whatever the session's terms break is refused before it starts.

    Raises:
      ProtocolError, BudgetExceededError: the session is refused, or the update cannot be encoded.
    """
    if _kind(message) != TRAIN or not read_plan(message).masked:
        return call_next(message, context)
    with take_part(message, context) as part:
        opened = part.open(message)
        records = call_next(message, context).content.array_records
        update = {name: array.numpy() for name, array in records[UPDATE].items()}
        scores = records[SCORES][SCORES].numpy() if SCORES in records else None
        return secagg_reply(message, part.share(opened, update, scores))


def _kind(message: Message) -> str:
    return message.metadata.message_type.removesuffix(".default")


def _is_allowed(reply: Message, allowed: Exit) -> bool:
    content = reply.content
    keys = {name: frozenset(record) for name, record in content.config_records.items()}
    if content.metric_records or set(content.array_records) != allowed.arrays:
        return False
    if keys != ({CONFIG: allowed.keys} if allowed.keys else {}):
        return False
    return allowed.document is None or kind_of(secagg_bytes(reply)) == allowed.document.LAYOUT.kind


def _code(error: BaseException) -> ErrorCode:
    if isinstance(error, ProtocolError):
        return protocol_code(error)
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.FAILED)


def _keep_locally(context: Context, incident: str, error: BaseException) -> None:
    """Writes the incident where only the hospital reads it; a log that cannot be written must not lose the reply."""
    text = f"incident {incident}\n{''.join(traceback.format_exception(error))}"
    try:
        log_file = read_site(find_site(dict(context.node_config))).log_file
        if log_file is None:
            logging.getLogger("clients").error("%s", text)
            return
        with _open_log(log_file) as log:
            log.write(text + "\n")
    except Exception:
        logging.getLogger("clients").error("%s", text)


def _open_log(path: str) -> TextIO:
    """Opens a log for this account only, whoever could read it before: a traceback may quote a note.

    Raises:
      OSError: it cannot be opened, is no regular file, or its permissions cannot be set.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):  # nobody wants the permissions of a device changed
            raise OSError(f"The log {path} is no regular file.")
        if stat.S_IMODE(mode) != 0o600:
            os.fchmod(handle, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace")
    except BaseException:
        os.close(handle)
        raise
