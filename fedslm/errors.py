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


class TooFewHospitalsError(FedSLMError):
    """Fewer hospitals than the plan requires take part, or answered."""

    exit_code = 4


class RunError(FedSLMError):
    """A run could not go on: the disk is full, the folder is taken, a checkpoint is damaged."""
