"""`fedslm audit report`: one page that says what the ledgers say, fetches nothing, runs nothing, and hides nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedslm.cli import main
from fedslm.governance.keyfiles import write_identity
from fedslm.privacy.ledger import Closed
from fedslm.reporting.audit.charts import Bar, plans_chart, spending_chart
from fedslm.reporting.audit.facts import report_facts
from fedslm.reporting.audit.odds import guess, recognised
from fedslm.reporting.audit.page import render_page
from fedslm.reporting.audit.verify import Trust, verify_ledgers
from fedslm.reporting.audit.words import delta_words, epsilon_words, left_words, share_words
from tests.builders import masked_plan
from tests.reporting.books import KEYS, Book, full_book

Run = Callable[..., tuple[int, str, str]]
HOSTILE = "<script>alert(1)</script>\"' onload=x <!-- {{ 7 * 7 }} & </style></title> <img src=//evil.example>"
MADE = "2026-11-22T23:11:18Z"


@pytest.fixture(autouse=True)
def no_third_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: None)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the verb in a folder with everybody's public files."""
    monkeypatch.chdir(tmp_path)
    for name, key in KEYS.items():
        write_identity(f"{name}.pem", key, None, name=name)

    def call(line: str) -> tuple[int, str, str]:
        code = main(["audit", *line.split()])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def facts_of(folder: Path, *books: Book, **options: Any) -> dict[str, Any]:
    """The facts of some ledgers, each verified first."""
    paths = [book.save(folder / f"{place}.json") for place, book in enumerate(books)]
    verified = verify_ledgers(paths, trust=Trust(), receipts=None, timeout_s=1.0)
    return report_facts(verified, **{"plans": (), "is_disjoint": False, "made": MADE, **options})


@pytest.fixture(scope="module")
def book() -> Book:
    return full_book()


@pytest.fixture(scope="module")
def facts(book: Book, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One hospital, two plans; every test changes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedslm.privacy.accounting.prv_epsilon", lambda *_, **__: None)
        return facts_of(tmp_path_factory.mktemp("facts"), book)


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and the text in each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.data: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = tag, {name: value or "" for name, value in attrs}
        self.elements.append(found)
        self._open.append(found)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag not in ("style", "script"):
            self.text += data
        if tag == "data":
            self.data.append((attributes["value"], data))

    def attributes(self, name: str) -> list[str]:
        return [values[name] for _, values in self.elements if name in values]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def numbers(value: Any) -> Iterator[float]:
    """Every number in nested facts."""
    match value:
        case bool() | str() | None:
            return
        case int() | float():
            yield value
        case dict():
            for each in value.values():
                yield from numbers(each)
        case list() | tuple():
            for each in value:
                yield from numbers(each)


def strings_replaced(value: Any, text: str) -> Any:
    """The facts with a hostile text wherever they have free text; times and words that choose a sentence stay."""
    if isinstance(value, dict):
        kept = {"source", "event", "unit"}
        return {name: each if name in kept else strings_replaced(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [strings_replaced(each, text) for each in value]
    is_time = isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value)
    return text if isinstance(value, str) and not is_time else value


def test_the_page_fetches_nothing_and_runs_nothing(facts: dict[str, Any]) -> None:
    text = render_page(facts)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "form", "base", "foreignobject", "a:href"}
    )
    assert [name for _, values in page.elements for name in values if name.startswith("on")] == []
    links = page.attributes("href") + page.attributes("xlink:href") + page.attributes("src")
    assert [link for link in links if not link.startswith("#")] == []
    assert re.findall(r"@import|@font-face|javascript:|data:", text) == []
    assert [target for target in re.findall(r"url\(([^)]*)\)", text) if not target.startswith("#")] == []
    addresses = set(re.findall(r"\w+://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses


def test_the_policy_forbids_what_the_page_does_not_need(facts: dict[str, Any]) -> None:
    text = render_page(facts)
    (policy,) = [v["content"] for t, v in Page(text).elements if v.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert text.index("Content-Security-Policy") < text.index("<style")


def test_every_link_leads_somewhere_and_no_id_stands_twice(tmp_path: Path) -> None:
    page = Page(render_page(facts_of(tmp_path, full_book(), full_book("south"), record_book())))
    names = page.attributes("id")
    assert len(names) == len(set(names))
    targets = page.attributes("href") + page.attributes("xlink:href")
    assert {target.removeprefix("#") for target in targets} <= set(names)


def test_every_number_is_the_ledgers(facts: dict[str, Any]) -> None:
    page = Page(render_page(facts))
    known = set(numbers(facts)) | {float(number) for number in numbers(facts)}
    words = (
        epsilon_words,
        left_words,
        share_words,
        delta_words,
        lambda value: f"{int(value):,}",
        lambda value: f"{value:.3f}",
    )
    assert len(page.data) > 60
    for value, shown in page.data:
        assert float(value) in known, value
        assert shown in {word(float(value)) for word in words}, (value, shown)


def test_the_figures_that_matter_are_there(book: Book, facts: dict[str, Any]) -> None:
    shown = [value for value, _ in Page(render_page(facts)).data]
    (ledger,) = facts["ledgers"]
    own, (closed, under_way) = book.ledger, book.ledger.plans.values()
    assert ledger["epsilon"] == own.epsilon == pytest.approx(closed.epsilon + under_way.epsilon)
    assert ledger["left_epsilon"] == pytest.approx(8.0 - own.epsilon)
    assert ledger["left_delta"] == pytest.approx(2.5e-5 - own.delta)
    assert ledger["spent_epsilon"] == pytest.approx(closed.epsilon + ledger["plans"][1]["spent_epsilon"])
    assert 0 < ledger["plans"][1]["spent_epsilon"] < under_way.epsilon
    assert ledger["aside_epsilon"] == pytest.approx(own.epsilon - ledger["spent_epsilon"])
    assert (ledger["guess"], ledger["recognised"]) == (
        guess(own.epsilon, own.delta),
        recognised(own.epsilon, own.delta),
    )
    assert 0.5 < ledger["by_noise"]["guess"] < ledger["guess"]
    for name in ("epsilon", "left_epsilon", "spent_epsilon", "aside_epsilon", "guess", "recognised", "budget_epsilon"):
        assert str(ledger[name]) in shown, name


def test_the_unit_comes_first(facts: dict[str, Any]) -> None:
    words = Page(render_page(facts)).words
    assert words.index("Protected: each patient") < words.index("The guarantee, in plain words")
    assert words.index("Protected: each patient") < words.index(epsilon_words(facts["ledgers"][0]["epsilon"]))


def test_the_curve_ends_where_the_ledger_stands(book: Book, facts: dict[str, Any]) -> None:
    (ledger,) = facts["ledgers"]
    timeline = ledger["timeline"]
    assert timeline[-1] == {
        "time": book.ledger.rows[-1].time,
        "charged": book.ledger.epsilon,
        "spent": pytest.approx(ledger["spent_epsilon"]),
    }
    assert all(point["spent"] <= point["charged"] + 1e-9 for point in timeline)
    spent = [point["spent"] for point in timeline]
    assert spent == sorted(spent)


def test_every_row_is_told_once(book: Book, facts: dict[str, Any]) -> None:
    history = facts["ledgers"][0]["history"]
    told = [number for entry in history for number in range(entry["first"], entry["last"] + 1)]
    assert told == [row.number for row in book.ledger.rows]


def test_nothing_in_a_ledger_or_plan_gets_into_the_page(facts: dict[str, Any], tmp_path: Path) -> None:
    details = {"model": HOSTILE, "rounds": 3, "hospitals": [HOSTILE, HOSTILE], "promise": HOSTILE}
    changed = strings_replaced(copy.deepcopy(facts), HOSTILE)
    for plan in changed["ledgers"][0]["plans"]:
        plan["details"] = details
    page = Page(render_page(changed))
    clean = Page(render_page(facts))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean.elements}
    assert {name for _, values in page.elements for name in values} == {
        n for _, values in clean.elements for n in values
    }
    assert HOSTILE in page.text
    assert "49" not in page.text.split("onload=x")[1][:20]


def test_nothing_gets_out_of_a_drawing() -> None:
    point = {"time": MADE, "charged": 1.0, "spent": 0.5}
    drawings = [
        plans_chart([Bar(label=HOSTILE, spent=1.0, aside=0.5)], budget=2.0, title=HOSTILE, salt="a"),
        spending_chart([point], until=MADE, budget=2.0, title=HOSTILE, salt="b"),
    ]
    for drawing in drawings:
        page = Page(str(drawing))
        assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
        assert HOSTILE in page.text


def test_a_drawing_shows_the_figures_as_text(facts: dict[str, Any]) -> None:
    text = render_page(facts)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "budget 8.00" in drawings
    for plan in facts["ledgers"][0]["plans"]:
        assert epsilon_words(plan["epsilon"]) in drawings
        assert plan["plan"][:8] in drawings


def test_many_plans_are_drawn_as_rows_that_can_be_read() -> None:
    bars = [Bar(label=f"plan {number}", spent=0.1, aside=0.0) for number in range(40)]
    bars[3] = Bar(label="the bad one", spent=0.0, aside=0.0, is_bounded=False)
    text = Page(str(plans_chart(bars, budget=8.0, title="", salt="a"))).text
    assert "24 earlier" in text
    assert "the bad one" in text
    assert "NO BOUND" in text
    assert "plan 39" in text
    assert "plan 5" not in text


def test_the_same_facts_give_the_same_page(facts: dict[str, Any]) -> None:
    assert render_page(facts) == render_page(copy.deepcopy(facts))


# --- what may not be overlooked ---------------------------------------------------------------------------------------


def test_training_without_privacy_is_unmissable(tmp_path: Path) -> None:
    book = full_book()
    bad = Book()
    plan = bad.reserve("first", budget_epsilon=None)
    bad.book(plan, 2)
    bad.book(bad.reserve_without_privacy("bare"), 1)
    found = facts_of(tmp_path, bad)
    (ledger,) = found["ledgers"]
    assert (ledger["epsilon"], ledger["left_epsilon"], ledger["by_noise"], ledger["spent_epsilon"]) == (None,) * 4
    assert ledger["bounded_epsilon"] == bad.ledger.plans[plan].epsilon
    assert (ledger["guess"], ledger["recognised"]) == (1.0, 1.0)
    page = Page(render_page(found))
    assert "alert" in page.attributes("role")
    assert "No bound: north trained without privacy" in page.words
    assert page.words.index("No bound") < page.words.index("Protected: each patient")
    assert page.words.count("NO BOUND") == 2  # in both drawings
    assert "privacy=none: no bound" in page.words
    assert "unsigned, updates left the hospital unencrypted" in page.words
    assert "alert" not in Page(render_page(facts_of(tmp_path, book))).attributes("role")


def test_approved_training_without_privacy_that_never_began_costs_nothing(tmp_path: Path) -> None:
    book = Book()
    plan = book.reserve_without_privacy()
    book.add(Closed(plan=plan, sessions=0, epsilon=0.0))
    (ledger,) = facts_of(tmp_path, book)["ledgers"]
    assert (ledger["epsilon"], ledger["is_bounded"]) == (0.0, True)


def test_scores_of_held_out_patients_are_charged_and_told(tmp_path: Path) -> None:
    book = Book()
    plan = book.reserve("scored", sessions=3, scores=4.0)
    book.book(plan, 1)
    found = facts_of(tmp_path, book)
    assert found["ledgers"][0]["plans"][0]["scores_noise_multiplier"] == 4.0
    assert found["ledgers"][0]["epsilon"] == book.ledger.epsilon
    words = Page(render_page(found)).words
    assert "scores 4.000" in words
    assert "A patient is held out or trained on, never both" in words


def test_lost_rows_are_explained(tmp_path: Path) -> None:
    book = full_book()
    book.forfeit(epsilon=1.25)
    found = facts_of(tmp_path, book)
    page = Page(render_page(found))
    assert found["ledgers"][0]["epsilon"] == book.ledger.epsilon
    assert found["ledgers"][0]["spent_epsilon"] > 1.25
    assert "Rows of a ledger were lost." in page.words
    assert "counted as spent: epsilon 1.25" in page.words


def test_lost_rows_without_a_budget_have_no_bound(tmp_path: Path) -> None:
    book = Book()
    book.reserve("first", budget_epsilon=None)
    book.forfeit(epsilon=None)
    page = Page(render_page(facts_of(tmp_path, book)))
    assert "No bound: north" in page.words
    assert "what they spent is not known" in page.words.lower()


def test_an_identity_that_was_not_checked_is_said_first(facts: dict[str, Any]) -> None:
    words = Page(render_page(facts)).words
    assert words.index("Whose ledger this is has not been checked") < words.index("Protected: each patient")
    assert KEYS["north"].public.fingerprint in words
    known = copy.deepcopy(facts)
    known["ledgers"][0]["identity"]["source"] = "key"
    assert "has not been checked" not in Page(render_page(known)).words


def test_what_is_not_covered_is_listed(facts: dict[str, Any]) -> None:
    words = Page(render_page(facts)).words
    for leak in (
        "how quickly it answers",
        "That a hospital takes part",
        "Decisions by people",
        "floating-point",
        "erasing",
    ):
        assert leak in words


def test_a_ledger_without_plans_has_a_page(tmp_path: Path) -> None:
    words = Page(render_page(facts_of(tmp_path, Book()))).words
    assert "No plan was approved yet" in words


def test_a_changed_budget_is_told(tmp_path: Path) -> None:
    book = Book()
    book.reserve("first")
    book.reserve("second", budget_epsilon=12.0)
    found = facts_of(tmp_path, book)
    assert [each["epsilon"] for each in found["ledgers"][0]["budgets"]] == [8.0, 12.0]
    assert found["ledgers"][0]["budget_epsilon"] == 12.0
    assert "changed 1 time: 8.00 from" in Page(render_page(found)).words


# --- whom a figure is about -------------------------------------------------------------------------------------------


def record_book(hospital: str = "west", cap: int | None = 3) -> Book:
    book = Book(hospital, unit="record")
    book.book(book.reserve("reports", sessions=3, sigma=3.0, max_records_per_patient=cap), 1)
    return book


def test_where_the_unit_is_the_record_the_patients_epsilon_is_stated(tmp_path: Path) -> None:
    found = facts_of(tmp_path, record_book(cap=3))
    (ledger,) = found["ledgers"]
    assert ledger["plans"][0]["patient"]["records"] == 3
    assert ledger["patient_epsilon"] == ledger["plans"][0]["patient"]["epsilon"] > ledger["epsilon"]
    words = Page(render_page(found)).words
    assert "Protected: each record, one by one" in words
    assert f"with epsilon {epsilon_words(ledger['patient_epsilon'])} at most" in words


def test_without_a_cap_a_patient_has_no_bound(tmp_path: Path) -> None:
    found = facts_of(tmp_path, record_book(cap=None))
    assert found["ledgers"][0]["patient_epsilon"] is None
    assert "A person with several records is protected less: no bound" in Page(render_page(found)).words


def test_a_patient_of_several_hospitals_is_charged_the_sum(tmp_path: Path) -> None:
    north, south = full_book(), Book("south")
    south.reserve("first", sessions=3)
    found = facts_of(tmp_path, north, south)
    assert found["together"]["sum"]["epsilon"] == pytest.approx(north.ledger.epsilon + south.ledger.epsilon)
    assert found["together"]["sum"]["delta"] == pytest.approx(north.ledger.delta + south.ledger.delta)
    assert found["together"]["maximum"] is None
    words = Page(render_page(found)).words
    assert "Nobody declared" in words
    assert "the largest" not in words


def test_a_maximum_is_shown_where_the_patients_are_declared_to_differ(tmp_path: Path) -> None:
    north, south = full_book(), Book("south")
    south.reserve("first", sessions=3)
    found = facts_of(tmp_path, north, south, is_disjoint=True)
    assert found["together"]["maximum"]["epsilon"] == max(north.ledger.epsilon, south.ledger.epsilon)
    words = Page(render_page(found)).words
    assert "Declared, not checked" in words
    assert "the sum" in words


def test_a_patient_is_added_up_as_a_patient_whatever_the_units(tmp_path: Path) -> None:
    north, west = full_book(), record_book(cap=2)
    found = facts_of(tmp_path, north, west)
    patient = found["ledgers"][1]["patient_epsilon"]
    assert found["together"]["sum"]["epsilon"] == pytest.approx(north.ledger.epsilon + patient)
    assert facts_of(tmp_path, north, record_book(cap=None))["together"]["sum"]["epsilon"] is None


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_prints_the_facts(run: Run, tmp_path: Path) -> None:
    book = full_book()
    book.save(tmp_path / "north.json")
    book.save_receipts(tmp_path / "receipts.jsonl")
    line = "report north.json --key north.pem.pub --receipts receipts.jsonl --out page.html --json"
    code, out, err = run(line)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ledgers"][0]["epsilon"] == book.ledger.epsilon
    assert found["receipts"] == 6
    assert (
        "6 receipts that the coordinator collected are all booked" in Page((tmp_path / "page.html").read_text()).words
    )
    assert math.isclose(found["ledgers"][0]["timeline"][-1]["charged"], book.ledger.epsilon)


def test_a_page_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    full_book().save(tmp_path / "north.json")
    (tmp_path / "page.html").write_text("mine")
    code, _, err = run("report north.json --out page.html")
    assert code == 2
    assert "page.html exists" in err
    assert (tmp_path / "page.html").read_text() == "mine"


def test_no_page_is_written_of_a_ledger_that_does_not_hold(run: Run, tmp_path: Path) -> None:
    full_book().save(tmp_path / "north.json")
    code, out, err = run("report north.json --key south.pem.pub --out page.html --drafts drafts")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
    assert not (tmp_path / "drafts").exists()


def test_a_plan_is_read_beside_its_row(run: Run, tmp_path: Path) -> None:
    plan = real_plan()
    book = Book()
    book.book(book.approve(plan), 1)
    book.save(tmp_path / "north.json")
    (tmp_path / "plan.json").write_bytes(plan.to_bytes())
    code, out, _ = run("report north.json --plan plan.json --out page.html --json")
    assert code == 0
    assert json.loads(out)["ledgers"][0]["plans"][0]["details"]["model"] == "toy"
    assert "model toy, 3 rounds, 3 hospitals" in Page((tmp_path / "page.html").read_text()).words


def test_a_plan_that_no_ledger_names_is_refused(run: Run, tmp_path: Path) -> None:
    full_book().save(tmp_path / "north.json")
    (tmp_path / "plan.json").write_bytes(real_plan().to_bytes())
    code, _, err = run("report north.json --plan plan.json --out page.html")
    assert code == 2
    assert f"plan {real_plan().run_id} is none of those" in err
    (tmp_path / "damaged.json").write_text("{}")
    code, _, err = run("report north.json --plan damaged.json --out page.html")
    assert code == 2
    assert err.startswith("fedslm: damaged.json: ")


def test_a_row_that_says_something_else_than_its_plan_is_refused(run: Run, tmp_path: Path) -> None:
    plan = real_plan()
    other = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, noise_multiplier=9.0))
    book = Book()
    book.approve(other)
    row = book.ledger.plans[other.sha256].reserved
    liar = Book()
    liar.add(dataclasses.replace(row, plan=plan.sha256))
    liar.save(tmp_path / "north.json")
    (tmp_path / "plan.json").write_bytes(plan.to_bytes())
    code, _, err = run("report north.json --plan plan.json --out page.html")
    assert code == 1
    assert "noise_multiplier is 9.0, the plan says 8.0" in err


def real_plan() -> Any:
    """A plan for north, south and west whose promise holds."""
    from fedslm.governance.plan import PlannedHospital

    hospitals = tuple(PlannedHospital(name=name, declared_population=400, weight=1.0) for name in KEYS)
    return masked_plan(hospitals=hospitals, privacy={"epsilon": 7.0, "delta": 1e-6, "noise_multiplier": 8.0})
