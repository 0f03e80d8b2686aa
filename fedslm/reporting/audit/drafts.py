"""Drafts for a data-protection impact assessment (Art. 35 GDPR) and a record of processing (Art. 30), in Markdown.

They say what ledgers and plans say. Whatever only people can know is marked where it belongs and listed at the top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedslm.errors import ConfigError
from fedslm.governance.keyfiles import create_file
from fedslm.reporting.audit.page import FILTERS, TEMPLATES
from fedslm.reporting.audit.words import time_words

TITLES = {
    "dpia": "Data-protection impact assessment (Art. 35 GDPR): federated training of a language model",
    "processing-record": "Record of processing activities (Art. 30 GDPR): federated training of a language model",
}

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~&@]|:(?=//))")


def write_drafts(folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Writes both drafts for every hospital.

    Args:
      folder: made if it is not there.
      facts: see `report_facts`.

    Returns:
      The files, `dpia-HOSPITAL.md` and `processing-record-HOSPITAL.md`.

    Raises:
      ConfigError: one of them exists, as somebody may have worked on it, or cannot be written.
    """
    hospitals = dict.fromkeys(ledger["hospital"] for ledger in facts["ledgers"])
    texts = {folder / f"{kind}-{name}.md": draft(kind, name, facts) for name in hospitals for kind in TITLES}
    for path in texts:
        if path.exists():
            raise ConfigError(f"{path} exists, and somebody may have worked on it; choose another folder for --drafts.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}.") from None
    for path, text in texts.items():
        create_file(path, text.encode(), mode=0o644)
    return list(texts)


def draft(kind: str, hospital: str, facts: Mapping[str, Any]) -> str:
    """One draft as Markdown.

    Args:
      kind: "dpia" or "processing-record".
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # it is not HTML; `finalize` escapes for Markdown, whatever stands in the values
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({**FILTERS, "code": _code})
    ledgers = [ledger for ledger in facts["ledgers"] if ledger["hospital"] == hospital]
    details = [
        plan["details"] | {"plan": plan["plan"]} for each in ledgers for plan in each["plans"] if plan["details"]
    ]
    others = sorted({name for plan in details for name in plan["hospitals"]} - {hospital})
    asked: list[str] = []
    body = environment.get_template(f"{kind}.md.j2").render(
        hospital=hospital, ledgers=ledgers, details=details, others=others, ask=_asking(asked)
    )
    return _head(kind, hospital, facts, asked) + body


def _asking(asked: list[str]) -> Callable[[str], Markup]:
    """What a template calls where a human has to write something."""

    def ask(what: str) -> Markup:
        asked.append(what)
        return Markup(f"**[FILL IN {len(asked)}: {what}]**")  # the templates' own words

    return ask


def _head(kind: str, hospital: str, facts: Mapping[str, Any], asked: list[str]) -> str:
    questions = "\n".join(f"{number}. {what}" for number, what in enumerate(asked, start=1))
    made = f"made on {time_words(facts['made'])} by FedSLM {_escaped(facts['release'])}"
    return (
        f"# {TITLES[kind]}\n\n"
        f"**Draft for {_escaped(hospital)}**, {made} from verified ledgers and plans. It is no legal advice and not finished: "
        "it knows what the software did, not why, by whom, or whether it may be done.\n\n"
        f"## To be filled in by people\n\nEach is marked FILL IN with its number below.\n\n{questions}\n\n"
    )


def _escaped(value: object) -> object:
    """A value as text that Markdown takes for nothing else: no tag, link, emphasis, table cell or line of its own."""
    if isinstance(value, Markup):
        return value
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> Markup:
    """A value as a code span, in which nothing has a meaning but a backtick, which it loses."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "/")
    return Markup(f"`{text}`")  # a code span is the escaping
