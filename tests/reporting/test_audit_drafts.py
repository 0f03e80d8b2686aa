"""The drafts for Art. 35 and Art. 30: they say what is known, mark what is not, and take no text for Markdown."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from fedslm.errors import ConfigError
from fedslm.reporting.audit.drafts import TITLES, draft, write_drafts
from fedslm.reporting.audit.words import epsilon_words
from tests.reporting.books import Book, full_book
from tests.reporting.test_audit_report import facts_of, record_book, strings_replaced

HOSTILE = (
    "x\n\n# Injected\n\n| a | b |\n<img src=x onerror=alert(1)> [link](https://evil.example) **bold** `code` ![i](x)"
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A hospital with a plan that was given, and one that trained without privacy."""
    north, west = full_book(), Book("west")
    west.book(west.reserve_without_privacy(), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: None)
        found = facts_of(tmp_path_factory.mktemp("facts"), north, west, record_book("south", cap=None))
    found["ledgers"][0]["plans"][0]["details"] = {
        "model": "toy",
        "model_source": "/models/toy",
        "model_revision": None,
        "adapter": "LoRA of rank 4",
        "rounds": 3,
        "hospitals": ["north", "west"],
        "is_masked": True,
        "promise": "Updates are encrypted.",
    }
    return found


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


@pytest.mark.parametrize("kind", TITLES)
@pytest.mark.parametrize("hospital", ["north", "west"])
def test_what_people_must_fill_in_is_marked_and_listed_at_the_top(
    kind: str, hospital: str, facts: dict[str, Any]
) -> None:
    text = draft(kind, hospital, facts)
    top, _, body = text.partition("\n## ")[2].partition("\n\n## " if kind == "dpia" else "\n\n| Art. 30(1)")
    listed = re.findall(r"^(\d+)\. (.+)$", top, re.MULTILINE)
    marked = re.findall(r"\*\*\[FILL IN (\d+): (.+?)\]\*\*", body)
    assert len(listed) > 8
    assert marked == listed
    assert "It is no legal advice" in text


def test_the_assessment_has_the_parts_that_article_35_asks_for(facts: dict[str, Any]) -> None:
    text = draft("dpia", "north", facts)
    for part in (
        "35(7)(a)",
        "35(7)(b)",
        "35(7)(c)",
        "35(7)(d)",
        "35(2)",
        "35(9)",
        "35(11)",
        "Art. 36",
        "Art. 17",
        "Art. 9(2)",
    ):
        assert part in text


def test_the_record_has_the_lines_that_article_30_asks_for(facts: dict[str, Any]) -> None:
    text = draft("processing-record", "north", facts)
    assert re.findall(r"^\| \((\w)\)", text, re.MULTILINE) == ["a", "a", "b", "c", "c", "d", "e", "f", "g"]


@pytest.mark.parametrize("kind", TITLES)
def test_the_figures_are_the_ledgers(kind: str, facts: dict[str, Any]) -> None:
    text = draft(kind, "north", facts)
    ledger = facts["ledgers"][0]
    assert f"epsilon {epsilon_words(ledger['epsilon'])} at delta" in text
    for plan in ledger["plans"]:
        assert plan["plan"][:12] in text
        assert epsilon_words(plan["epsilon"]) in text
        assert f"{plan['sessions']} of {plan['max_sessions']}" in text
    assert "/models/toy" in text or kind == "processing-record"


@pytest.mark.parametrize("kind", TITLES)
def test_training_without_privacy_is_said(kind: str, facts: dict[str, Any]) -> None:
    text = draft(kind, "west", facts)
    assert "NO BOUND" in text
    assert "NO BOUND" not in draft(kind, "north", facts)


def test_scores_that_leave_are_said(facts: dict[str, Any]) -> None:
    changed = copy.deepcopy(facts)
    changed["ledgers"][0]["plans"][0]["scores_noise_multiplier"] = 4.0
    assert "held-out patients, noised and charged" in draft("dpia", "north", changed)
    assert "loss or score computed from records" in draft("dpia", "north", facts)


def test_the_record_as_unit_is_said(facts: dict[str, Any]) -> None:
    text = draft("dpia", "south", facts)
    assert "**The unit is the record.**" in text
    assert "**no bound**" in text


@pytest.mark.parametrize("kind", TITLES)
def test_no_text_of_a_ledger_or_plan_becomes_markdown(kind: str, facts: dict[str, Any]) -> None:
    changed = strings_replaced(copy.deepcopy(facts), HOSTILE)
    html, clean = rendered(draft(kind, HOSTILE, changed)), rendered(draft(kind, "north", facts))
    for tag in ("h1", "h2", "h3"):
        assert html.count(f"<{tag}>") == clean.count(f"<{tag}>")
    for tag in ("<img", "<a ", "<script"):
        assert tag not in html
    assert "<strong>bold" not in html
    assert "Injected" in html


def test_the_words_of_a_hospital_stay_as_they_are(facts: dict[str, Any]) -> None:
    changed = copy.deepcopy(facts)
    changed["ledgers"][0]["hospital"] = "St_Mary_s 1.5 - [East]"
    assert "St_Mary_s 1.5 - [East] fine-tunes" in rendered(draft("dpia", "St_Mary_s 1.5 - [East]", changed))


def test_each_hospital_gets_its_own_files(tmp_path: Path, facts: dict[str, Any]) -> None:
    written = write_drafts(tmp_path / "deep" / "drafts", facts)
    names = [f"{kind}-{name}.md" for name in ("north", "west", "south") for kind in TITLES]
    assert [path.name for path in written] == names
    assert (tmp_path / "deep" / "drafts" / "dpia-north.md").read_text() == draft("dpia", "north", facts)


def test_work_that_somebody_did_is_not_overwritten(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "dpia-south.md").write_text("mine")
    with pytest.raises(ConfigError, match="somebody may have worked on it"):
        write_drafts(tmp_path, facts)
    assert [path.name for path in tmp_path.iterdir()] == ["dpia-south.md"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        write_drafts(tmp_path / "file" / "drafts", facts)
