"""`fedslm ledger`: what a hospital's own people see and may do."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from clients.ledger import open_ledger
from clients.site import Site
from fedslm.cli import main
from fedslm.crypto.identity import Identity
from fedslm.governance.keyfiles import write_identity
from fedslm.privacy.ledger import Export
from tests.clients.test_ledger import anchor, book, made_site, plan, restored_after, state

RUN = plan().sha256


@pytest.fixture
def site(tmp_path: Path) -> Site:
    write_identity(tmp_path / "id.pem", Identity.generate(), None, name="hospital-0")
    made = made_site(tmp_path)
    book(made, plan())
    return made


@pytest.fixture
def flag(tmp_path: Path) -> str:
    return f"--site={tmp_path / 'site.yaml'}"


def test_show_says_what_is_left(site: Site, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "show", flag]) == 0
    out, err = capsys.readouterr()
    assert "budget   epsilon 20, delta 0.0001" in out
    assert "charged  epsilon 8, delta 1e-05" in out
    assert "left     epsilon 12, delta 9e-05" in out
    assert f"{RUN[:12]}  open" in out
    assert "1 of 3" in out
    assert err == ""


def test_show_for_programs_says_the_same(site: Site, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "show", flag, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with open_ledger(site) as ledger:
        head, key = ledger.head(), ledger.read().opened.key
    assert found == {
        "hospital": "hospital-0",
        "population": "patients",
        "unit": "patient",
        "fingerprint": key.fingerprint,
        "ledger": head.ledger,
        "row": 3,
        "sha256": head.sha256,
        "budget_epsilon": 20.0,
        "budget_delta": 1e-4,
        "epsilon": 8.0,
        "delta": 1e-5,
        "left_epsilon": 12.0,
        "left_delta": pytest.approx(9e-5),
        "plans": [
            {"plan": RUN, "is_open": True, "sessions": 1, "max_sessions": 3, "epsilon": 8.0, "delta": 1e-5},
        ],
        "problem": None,
    }


def test_a_ledger_that_is_behind_is_shown_and_named_as_such(
    site: Site, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with restored_after(state(site)):
        book(site, plan())
    assert main(["ledger", "show", flag]) == 0
    assert "NOTHING CAN BE SPENT: The ledger" in capsys.readouterr().err
    assert main(["ledger", "show", flag, "--json"]) == 0
    assert "row 4" in json.loads(capsys.readouterr().out)["problem"]


def test_close_and_a_wrong_plan(site: Site, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "close", "ffff", flag]) == 1
    assert f"open are {RUN[:12]}" in capsys.readouterr().err
    assert main(["ledger", "close", RUN[:8], flag]) == 0
    assert "1 of 3 sessions were started" in capsys.readouterr().out
    assert main(["ledger", "show", flag, "--json"]) == 0
    (account,) = json.loads(capsys.readouterr().out)["plans"]
    assert not account["is_open"]
    assert account["epsilon"] < 8


def test_an_export_restores_what_was_lost(
    site: Site, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ledger.json"
    assert main(["ledger", "export", "--out", str(out), flag]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert len(Export.from_bytes(out.read_bytes()).verify(None).rows) == 3
    assert main(["ledger", "export", "--out", str(out), flag]) == 2  # it overwrites nothing
    shutil.rmtree(state(site))
    capsys.readouterr()
    assert main(["ledger", "show", flag]) == 1
    assert "see fedslm ledger restore" in capsys.readouterr().err
    assert main(["ledger", "restore", f"--from={out}", flag]) == 0
    assert "3 rows came back; the ledger ends at row 3." in capsys.readouterr().out
    book(site, plan())


def test_only_who_asks_for_it_gives_the_budget_up(site: Site, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with restored_after(state(site)):
        book(site, plan())
    assert main(["ledger", "restore", flag]) == 1
    assert "--forfeit" in capsys.readouterr().err
    assert main(["ledger", "restore", "--forfeit", flag]) == 0
    assert "epsilon 12 and delta 9e-05 count as spent" in capsys.readouterr().out
    assert main(["ledger", "restore", "--forfeit", flag]) == 0
    assert capsys.readouterr().out == "0 rows came back; the ledger ends at row 5.\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "followed by show or export or close or restore"),
        (["shwo"], "'shwo'"),
        (["show", "--jsno"], "--jsno"),
        (["export"], "--out is missing"),
        (["close"], "Expected a plan"),
        (["restore", "--from=nowhere.json"], "nowhere.json cannot be read"),
        (["show", "--site=nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
    ids=str,
)
def test_a_wrong_command_is_one_sentence(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", *arguments]) == 2
    out, err = capsys.readouterr()
    assert named in err
    assert out == ""
    assert err.count("\n") == 1


def test_a_site_that_never_trained_has_an_empty_ledger(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_identity(tmp_path / "id.pem", Identity.generate(), None, name="hospital-0")
    made = made_site(tmp_path)
    assert main(["ledger", "show", flag]) == 0
    assert "charged  epsilon 0, delta 0" in capsys.readouterr().out
    assert anchor(made).exists()
