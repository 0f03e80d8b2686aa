"""The verbs `identity` and `roster`: what they write, what they print, and a sentence for every wrong use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedslm.cli import main
from fedslm.crypto.identity import Identity
from fedslm.governance.keyfiles import read_identity, read_key_file, write_identity
from fedslm.governance.roster import read_roster

ROOT_FOLDER = Path(__file__).resolve().parent.parent.parent
NAMES = ("root", "coordinator", "hospital-1", "hospital-2", "hospital-3")
KEYS = {name: Identity.from_seeds(bytes([number]) * 32, bytes(32)) for number, name in enumerate(NAMES)}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everybody's keys, unencrypted, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, key in KEYS.items():
        write_identity(f"{name}.pem", key, None, name=name)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str, *more: str) -> tuple[int, str, str]:
        code = main([*line.split(), *more])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts somebody at a terminal who types these lines, then ends the input."""

    def sit_down(*lines: str) -> None:
        answers: Iterator[str] = iter(lines)

        def answer(_: str) -> str:
            for line in answers:
                return line
            raise EOFError

        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("getpass.getpass", answer)

    return sit_down


def words(*, members: int = 3, **changes: str) -> str:
    """The line that signs a roster."""
    options = {
        "root": "root.pem",
        "consortium": "toy",
        "coordinator": "coordinator=coordinator.pem.pub",
        "out": "roster.json",
        **changes,
    }
    given = [f"--{name} {value}" for name, value in options.items() if value]
    return " ".join(["roster sign", *given, *(f"--member {name}={name}.pem.pub" for name in NAMES[2 : 2 + members])])


@pytest.mark.parametrize("verb", ["identity", "roster"])
@pytest.mark.parametrize("line", ["--help", "-h", "show --help"])
def test_a_verbs_help_shows_how_it_is_used(run: Run, verb: str, line: str) -> None:
    code, out, err = run(f"{verb} {line}")
    assert (code, err) == (0, "")
    assert f"usage: fedslm {verb}" in out


def test_a_new_identity_is_announced_with_its_fingerprint(run: Run, folder: Path) -> None:
    (folder / "passphrase").write_text("correct horse\n")
    (folder / "passphrase").chmod(0o600)
    code, out, err = run("identity new hospital-4 --out new.pem --passphrase-file passphrase")
    assert (code, err) == (0, "")
    made = read_identity("new.pem", b"correct horse").public
    assert " ".join(out.split("in person:")[1].split()) == made.fingerprint
    assert max(len(line) for line in out.split("in person:")[1].splitlines()) < 30
    assert "new.pem\n    Private keys, encrypted" in out
    assert "new.pem.pub\n    Public keys. Hand this file to whoever keeps the consortium's root" in out
    assert read_key_file("new.pem.pub").label == "hospital-4"


def test_a_passphrase_is_typed_twice(run: Run, typed: Callable[..., None]) -> None:
    typed("correct horse", "correct horse")
    assert run("identity new hospital-4 --out=new.pem")[0] == 0
    assert read_key_file("new.pem").is_encrypted
    typed("correct horse")
    shown = run("identity show new.pem")
    assert shown[0] == 0
    assert "private, encrypted" in shown[1]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (("correct horse", "correct hose"), "passphrases differ; nothing was written"),
        (("", ""), "passphrase is empty"),
        ((), "No passphrase was typed"),
        (("correct horse",), "No passphrase was typed"),
    ],
)
def test_a_passphrase_mistyped_makes_nothing(
    run: Run, typed: Callable[..., None], folder: Path, lines: tuple[str, ...], named: str
) -> None:
    typed(*lines)
    code, out, err = run("identity new hospital-4 --out new.pem")
    assert (code, out) == (2, "")
    assert named in err
    assert not list(folder.glob("new*"))


def test_without_a_passphrase_there_is_a_warning(run: Run) -> None:
    code, out, err = run("identity new hospital-4 --out new.pem --no-passphrase")
    assert code == 0
    assert "NOT ENCRYPTED" in out
    assert err.startswith("WARNING: the private keys in new.pem are NOT encrypted")
    assert read_identity("new.pem", None).public == read_key_file("new.pem.pub").public


@pytest.mark.parametrize("kind", ["hospital-1.pem", "hospital-1.pem.pub"])
def test_an_identity_is_shown_for_people_and_for_programs(run: Run, kind: str) -> None:
    fingerprint = KEYS["hospital-1"].public.fingerprint
    code, out, _ = run(f"identity show {kind}")
    assert code == 0
    assert " ".join(out.split("fingerprint")[1].split()) == fingerprint
    assert "hospital-1" in out
    assert json.loads(run(f"identity show {kind} --json")[1]) == {
        "fingerprint": fingerprint,
        "is_encrypted": False,
        "is_private": not kind.endswith(".pub"),
        "name": "hospital-1",
    }


def test_a_file_without_a_name_is_shown_without(run: Run, folder: Path) -> None:
    (folder / "bare.pub").write_bytes(KEYS["root"].public.to_pem())
    assert "none in the file" in run("identity show bare.pub")[1]
    assert json.loads(run("identity show --json bare.pub")[1])["name"] is None


def test_a_signed_roster_reads_back_and_is_printed_with_its_hash(run: Run, folder: Path) -> None:
    code, out, err = run(words(serial="7"))
    assert (code, err) == (0, "")
    found = read_roster((folder / "roster.json").read_bytes())
    assert (found.consortium, found.serial, found.root) == ("toy", 7, KEYS["root"].public)
    assert dict(found.keys) == {name: KEYS[name].public for name in NAMES[2:]}
    assert f"roster_sha256: {found.sha256}" in out
    assert all(KEYS[name].public.fingerprint in out for name in NAMES)
    assert run("roster show roster.json")[1] in out
    assert json.loads(run("roster show roster.json --json")[1])["sha256"] == found.sha256


def test_a_consortium_may_have_a_space_in_its_name(run: Run, folder: Path) -> None:
    assert run(words(consortium=""), "--consortium", "Bone Marrow")[0] == 0
    assert read_roster((folder / "roster.json").read_bytes()).consortium == "Bone Marrow"


def test_a_revoked_member_is_marked_in_the_next_roster(run: Run, folder: Path) -> None:
    run(words())
    code, out, _ = run("roster revoke roster.json --member hospital-2 --root root.pem --out next.json")
    assert code == 0
    assert "hospital-2  REVOKED" in out
    found = read_roster((folder / "next.json").read_bytes())
    assert found.serial == 2
    assert sorted(found.keys) == ["hospital-1", "hospital-3"]
    summary = json.loads(run("roster show next.json --json")[1])
    assert [member["is_revoked"] for member in summary["members"]] == [False, True, False]
    assert summary["revoked"] == [KEYS["hospital-2"].public.fingerprint]
    assert summary["coordinator"] == {
        "name": "coordinator",
        "fingerprint": KEYS["coordinator"].public.fingerprint,
        "is_revoked": False,
    }


def test_an_encrypted_root_is_unlocked_from_a_file_or_the_terminal(
    run: Run, typed: Callable[..., None], folder: Path
) -> None:
    write_identity("locked.pem", KEYS["root"], b"correct horse")
    (folder / "passphrase").write_text("correct horse\n")
    (folder / "passphrase").chmod(0o600)
    assert run(words(root="locked.pem", out="first.json") + " --passphrase-file passphrase")[0] == 0
    assert run(words(root="locked.pem"))[0] == 2
    typed("correct horse")
    assert run(words(root="locked.pem"))[0] == 0
    typed("wrong horse")
    code, _, err = run(words(root="locked.pem", out="third.json"))
    assert code == 2
    assert "passphrase is wrong" in err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("identity", "followed by new or show, found nothing"),
        ("identity make", "followed by new or show, found 'make'"),
        ("identity new --out new.pem", "Expected a name, found nothing"),
        ("identity new a b --out new.pem", "Expected a name, found a b"),
        ("identity new hospital-4", "--out is missing"),
        ("identity new hospital-4 --out", "--out is given without a value"),
        ("identity new hospital-4 --out --no-passphrase", "--out is given without a value"),
        ("identity new hospital-4 --out a.pem --out b.pem", "--out is given 2 times"),
        ("identity new hospital-4 --out new.pem --loud", "There is no option '--loud' here; there are --out"),
        ("identity new hospital-4 --out new.pem", "no terminal to ask for the passphrase"),
        ("identity new ../etc --out new.pem --no-passphrase", "The name '../etc' is not allowed"),
        ("identity new hospital-4 --out root.pem --no-passphrase", "exists and is not overwritten"),
        ("identity new hospital-4 --out new.pem --no-passphrase --passphrase-file p", "contradict each other"),
        ("identity new hospital-4 --out new.pem --passphrase-file absent", "absent cannot be read"),
        ("identity show", "Expected a file, found nothing"),
        ("identity show absent.pem", "absent.pem cannot be read"),
        ("identity show root.pem -v", "There is no option '-v' here; there are --json."),
        ("roster", "followed by sign or show or revoke, found nothing"),
        (words(root=""), "--root is missing"),
        (words(consortium=""), "--consortium is missing"),
        (words(consortium="../etc"), "'../etc' is not allowed"),
        (words(coordinator=""), "--coordinator is missing"),
        (words(coordinator="coordinator"), "Expected NAME=PUB"),
        (words(coordinator="coordinator="), "Expected NAME=PUB"),
        (words(coordinator="coordinator=coordinator.pem"), "holds private keys"),
        (words(coordinator="coordinator=root.pem.pub"), "says that it is of 'root' but is given for 'coordinator'"),
        (words(out=""), "--out is missing"),
        (words(out="root.pem"), "exists and is not overwritten"),
        (words(members=2), "at least 3 members, found 2"),
        (words(members=0), "at least 3 members, found 0"),
        (words(serial="0"), "--serial=0 is not allowed"),
        (words(serial="-1"), "--serial=-1 is not allowed"),
        (words(serial="one"), "--serial=one is not allowed"),
        (words(root="root.pem.pub"), "can be read by others"),
        (words(root="absent.pem"), "absent.pem cannot be read"),
        (words() + " surplus", "Expected options only, found surplus"),
        ("roster show absent.json", "absent.json cannot be read"),
        ("roster revoke roster.json --root root.pem --out next.json", "--member is missing"),
        ("roster revoke absent.json --member a --root root.pem --out next.json", "absent.json cannot be read"),
    ],
)
def test_a_wrong_use_is_one_sentence_and_exit_code_2(run: Run, folder: Path, line: str, named: str) -> None:
    before = sorted(folder.iterdir())
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err.startswith("fedslm: ")
    assert err.count("\n") == 1
    assert named in err
    assert sorted(folder.iterdir()) == before


def test_a_roster_that_cannot_be_trusted_is_not_shown(run: Run, folder: Path) -> None:
    run(words())
    path = folder / "roster.json"
    path.write_bytes(path.read_bytes().replace(b'"serial":1', b'"serial":2'))
    code, out, err = run("roster show roster.json")
    assert (code, out) == (1, "")
    assert "does not verify" in err


def test_nobody_but_the_root_revises_a_roster(run: Run, folder: Path) -> None:
    run(words())
    code, _, err = run("roster revoke roster.json --member hospital-1 --root coordinator.pem --out next.json")
    assert code == 1
    assert "another root" in err
    assert run("roster revoke roster.json --member coordinator --root root.pem --out next.json")[0] == 1
    assert not (folder / "next.json").exists()


def test_one_key_is_not_two_members(run: Run) -> None:
    write_identity("double.pem", KEYS["hospital-1"], None, name="hospital-9")
    code, _, err = run(words() + " --member hospital-9=double.pem.pub")
    assert code == 1
    assert "twice" in err


@pytest.mark.parametrize("line", ["identity show root.pem", "identity --help", "roster --help"])
def test_the_verbs_load_no_model_and_no_network(line: str) -> None:
    heavy = "{'torch', 'transformers', 'flwr', 'peft', 'opacus', 'hydra', 'scipy', 'rich'}"
    code = f"import sys; from fedslm.cli import main; main({line.split()}); print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT_FOLDER)}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert output.stdout.splitlines()[-1] == "[]"
