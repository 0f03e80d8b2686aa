"""The errors a user can meet, each with the exit code it ends the command with.

Every message is one sentence that names the value found, what is allowed and what to do about it. Messages never hold
patient text, keys, updates or losses: they may be logged. Whatever else is raised is a fault of ours and ends with 1.
"""

from __future__ import annotations

from typing import ClassVar


class FedSLMError(Exception):
    """Base of every error that is shown to a user without a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(FedSLMError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2


class DataError(FedSLMError):
    """Records are missing, malformed, or do not fit the column map."""


class ModelError(FedSLMError):
    """A model or adapter cannot be loaded, or cannot be trained this way."""


class PrivacyError(FedSLMError):
    """A privacy guarantee cannot be given with these settings."""

    exit_code = 2


class BudgetExceededError(PrivacyError):
    """The privacy budget does not cover what was asked for."""

    exit_code = 3


class LedgerError(FedSLMError):
    """A privacy ledger is damaged, altered, another's, or of another version; nothing is trained on its word."""


class RollbackError(LedgerError):
    """A privacy ledger is behind what its hospital signed: an older copy was restored, or it was lost."""


class TooFewHospitalsError(FedSLMError):
    """Fewer hospitals than the plan requires take part, or answered."""

    exit_code = 4


class RunError(FedSLMError):
    """A run could not go on: the disk is full, the folder is taken, a checkpoint is damaged."""


class ThresholdError(TooFewHospitalsError):
    """A session of secure aggregation lost more hospitals than it may; no sum was read and the model is untouched."""


class ProtocolError(FedSLMError):
    """A message of secure aggregation is refused. Each kind is one reason, so that a log says which rule was broken."""


class DecodeError(ProtocolError):
    """Bytes are not a message of this version: damaged, truncated, with something extra, or not canonical."""


class SignatureError(ProtocolError):
    """A signature does not verify; both halves of it must."""


class SealError(ProtocolError):
    """A ciphertext does not open, or what it held names another sender, receiver or session."""


class RosterError(ProtocolError):
    """The roster is not the pinned one, is not signed by the consortium's root, or names another key for a member."""


class AdvertError(ProtocolError):
    """An advert is forged, doubled, altered, used before, or from somebody outside the roster."""


class BoundError(ProtocolError):
    """Too few or too many hospitals for the plan's promise, or a set that is no part of the one before it."""


class SessionError(ProtocolError):
    """A session or a step of it was there before, is out of order, or its state is lost: it is never repeated."""


class ConsistencyError(ProtocolError):
    """The coordinator tells hospitals different things: another set, another adapter, another list of one sender."""


class ShareError(ProtocolError):
    """Shares do not give back what was committed to; names whom it can."""


class RangeError(ProtocolError):
    """An update lies outside the fixed-point range; nothing of it was sent."""
