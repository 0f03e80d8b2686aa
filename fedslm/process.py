"""What must be settled in a process before torch, transformers or flwr are imported, and what quiets them afterwards."""

from __future__ import annotations

import logging
import os
import resource
import warnings

BEFORE_IMPORTS = {
    # Idle torch threads sleep instead of spinning: three to four times faster where cores are shared, no slower alone.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def settle() -> None:
    """Sets the environment of this process and its children, where the user has not, and silences known chatter.

    Call it before anything imports torch. Progress bars and advice of libraries would tear the live table apart.
    """
    for name, value in BEFORE_IMPORTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    logging.getLogger("absl").setLevel(logging.ERROR)  # the Renyi accountant says which orders it drops


def forbid_core_dumps() -> None:
    """A crash of this process leaves no picture of its memory, in which keys would be."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
