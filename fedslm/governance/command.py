"""The verbs `identity` and `roster` of the command line: who signs, and who belongs to the consortium.

Nothing heavy is imported: they also run on the machine that keeps the consortium's root, which has no model and no network.
"""

from __future__ import annotations

import getpass
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedslm.config.schema import NAME_PATTERN
from fedslm.crypto.identity import Identity, PublicIdentity
from fedslm.errors import ConfigError
from fedslm.governance.keyfiles import (
    create_file,
    public_path,
    read_identity,
    read_key_file,
    read_passphrase,
    read_public,
    write_identity,
)
from fedslm.governance.roster import MIN_MEMBERS, Member, Roster, read_roster, sign_roster

IDENTITY_HELP = """Makes and shows the keys that a hospital, the coordinator or the consortium's root signs with.

usage: fedslm identity new NAME --out FILE [--passphrase-file FILE | --no-passphrase]
       fedslm identity show FILE [--json]

  new   writes FILE (private keys, encrypted under a passphrase that it asks for) and FILE.pub (to hand out)
  show  prints the fingerprint of a private or public file; needs no passphrase

  --passphrase-file FILE  takes the passphrase from a file of one line that only you can read
  --no-passphrase         leaves the private keys unencrypted: for machines that start on their own
"""

ROSTER_HELP = """Signs and shows the list of a consortium's members.

usage: fedslm roster sign --root FILE --consortium NAME --coordinator NAME=PUB --member NAME=PUB ... --out FILE
                          [--serial N] [--passphrase-file FILE]
       fedslm roster show FILE [--json]
       fedslm roster revoke FILE --member NAME --root FILE --out FILE [--passphrase-file FILE]

  sign    writes a roster signed by the root's private file; PUB is a member's public file, FILE.pub
  show    checks the signature and prints members, fingerprints and the hash that every hospital pins
  revoke  writes the next roster, in which a member's key counts no longer

Keep the root's private file away from the coordinator, who could otherwise invent hospitals.
"""

Action = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What stood on the command line after the verb.

    Attributes:
      words: whatever is no option.
      values: per option, everything it was given.
      flags: options without a value.
    """

    words: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    flags: frozenset[str]

    @classmethod
    def parse(
        cls,
        arguments: Sequence[str],
        *,
        words: Sequence[str] = (),
        options: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> Given:
        """Sorts arguments; an option's value follows it, or stands after "=".

        Args:
          words: what each word means; exactly so many are wanted, or more where the last one ends in "...".
          options: those with a value.
          flags: those without one.

        Raises:
          ConfigError: an unknown option, one without a value, or too many or too few words.
        """
        found: list[str] = []
        values: dict[str, tuple[str, ...]] = {}
        rest = iter(arguments)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if name in options:
                values[name] = (*values.get(name, ()), _value(name, value if equals else next(rest, "")))
            elif argument.startswith("-") and argument not in flags:
                raise ConfigError(f"There is no option '{name}' here; there are {', '.join([*options, *flags])}.")
            else:
                found.append(argument)
        plain = tuple(argument for argument in found if argument not in flags)
        takes_more = bool(words) and words[-1].endswith("...")
        if len(plain) < len(words) or (len(plain) > len(words) and not takes_more):
            raise ConfigError(
                f"Expected {' and '.join(words) or 'options only'}, found {' '.join(plain) or 'nothing'}."
            )
        return cls(words=plain, values=values, flags=frozenset(found) & frozenset(flags))

    def one(self, name: str) -> str:
        """The value of an option that must be there.

        Raises:
          ConfigError: it is not, or it is there twice.
        """
        value = self.maybe(name)
        if value is None:
            raise ConfigError(f"{name} is missing; give it a value.")
        return value

    def maybe(self, name: str) -> str | None:
        """The value of an option, or None without it.

        Raises:
          ConfigError: it is there twice.
        """
        values = self.values.get(name, ())
        if len(values) > 1:
            raise ConfigError(f"{name} is given {len(values)} times; give it once.")
        return values[0] if values else None


def identity(arguments: list[str]) -> int:
    """`fedslm identity`: 0 when done; every other end is an exception with its own exit code."""
    return dispatch("identity", {"new": _new, "show": _show_identity}, IDENTITY_HELP, arguments)


def roster(arguments: list[str]) -> int:
    """`fedslm roster`: 0 when done; every other end is an exception with its own exit code."""
    return dispatch("roster", {"sign": _sign, "show": _show_roster, "revoke": _revoke}, ROSTER_HELP, arguments)


def dispatch(verb: str, actions: Mapping[str, Action], text: str, arguments: Sequence[str]) -> int:
    """Runs one action of a verb.

    Args:
      text: what `--help` prints.
    Returns:
      0 when done.
    Raises:
      ConfigError: no such action; or whatever the action raises.
    """
    if {"-h", "--help"} & set(arguments):
        print(text, end="")
        return 0
    if not arguments or arguments[0] not in actions:
        found = f"'{arguments[0]}'" if arguments else "nothing"
        raise ConfigError(
            f"fedslm {verb} is followed by {' or '.join(actions)}, found {found}; see fedslm {verb} --help."
        )
    actions[arguments[0]](arguments[1:])
    return 0


def _new(arguments: Sequence[str]) -> None:
    options = ["--out", "--passphrase-file"]
    given = Given.parse(arguments, words=["a name"], options=options, flags=["--no-passphrase"])
    name, out = _checked_name(given.words[0]), given.one("--out")
    passphrase = _new_passphrase(given)
    made = Identity.generate()
    write_identity(out, made, passphrase, name=name)
    print(_announcement(name, out, made.public, is_encrypted=passphrase is not None))
    if passphrase is None:
        print(
            f"WARNING: the private keys in {out} are NOT encrypted: whoever copies that file can sign as '{name}'.",
            file=sys.stderr,
        )


def _announcement(name: str, out: str, public: PublicIdentity, *, is_encrypted: bool) -> str:
    private = "encrypted" if is_encrypted else "NOT ENCRYPTED"
    return (
        f"Made the identity '{name}'.\n\n"
        f"  {out}\n    Private keys, {private}. They stay on this machine; keep a copy where only you get at it.\n"
        f"  {public_path(out)}\n    Public keys. Hand this file to whoever keeps the consortium's root.\n\n"
        "Its fingerprint, to read out to them when you do, by telephone or in person:\n\n"
        f"{_lines(public.fingerprint)}\n"
    )


def _show_identity(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, words=["a file"], flags=["--json"])
    found = read_key_file(given.words[0])
    kind = ("private, encrypted" if found.is_encrypted else "private, NOT ENCRYPTED") if found.is_private else "public"
    if given.flags:
        fields = {"is_encrypted": found.is_encrypted, "is_private": found.is_private, "name": found.label or None}
        print(json.dumps({**fields, "fingerprint": found.public.fingerprint}, indent=2, sort_keys=True))
    else:
        print(f"name         {found.label or 'none in the file'}\nkeys         {kind}\nfingerprint\n")
        print(_lines(found.public.fingerprint))


def _sign(arguments: Sequence[str]) -> None:
    options = ["--root", "--consortium", "--coordinator", "--member", "--out", "--serial", "--passphrase-file"]
    given = Given.parse(arguments, options=options)
    members = tuple(_member(text) for text in given.values.get("--member", ()))
    if len(members) < MIN_MEMBERS:
        raise ConfigError(
            f"A consortium has at least {MIN_MEMBERS} members, found {len(members)} --member: "
            "of two, each could work out the other's update."
        )
    coordinator, out = _member(given.one("--coordinator")), given.one("--out")
    consortium, serial = _checked_name(given.one("--consortium")), _serial(given.maybe("--serial") or "1")
    root = _open_root(given)
    made = Roster(
        version=1,
        consortium=consortium,
        serial=serial,
        root=root.public,
        coordinator=coordinator,
        members=members,
    )
    _write(made, root, out)


def _show_roster(arguments: Sequence[str]) -> None:
    given = Given.parse(arguments, words=["a file"], flags=["--json"])
    found = _read_roster(given.words[0])
    print(json.dumps(_summary(found), indent=2, sort_keys=True) if given.flags else _table(found))


def _revoke(arguments: Sequence[str]) -> None:
    options = ["--member", "--root", "--out", "--passphrase-file"]
    given = Given.parse(arguments, words=["a file"], options=options)
    name, out = given.one("--member"), given.one("--out")
    _write(_read_roster(given.words[0]).revoke(name), _open_root(given), out)


def _write(made: Roster, root: Identity, out: str) -> None:
    create_file(out, sign_roster(made, root), mode=0o644)
    print(f"Wrote {out}.\n\n{_table(made)}")


def _table(found: Roster) -> str:
    """A roster for people: names over fingerprints, and what to pin."""
    entries = [("root", "", found.root.fingerprint, False)]
    entries += [
        (role, member.name, member.key.fingerprint, found.is_revoked(member))
        for role, member in [("coordinator", found.coordinator), *(("member", each) for each in found.members)]
    ]
    people = "\n".join(
        f"  {role:<12} {name}{'  REVOKED' if is_revoked else ''}".rstrip() + f"\n    {fingerprint}"
        for role, name, fingerprint, is_revoked in entries
    )
    return (
        f"Roster {found.serial} of the consortium '{found.consortium}', signed by its root.\n\n{people}\n\n"
        "Compare the fingerprints with what each member read out, then the hash with one another, and pin it in site.yaml:\n\n"
        f"  roster_sha256: {found.sha256}"
    )


def _summary(found: Roster) -> dict[str, object]:
    """The same for programs."""

    def entry(member: Member) -> dict[str, object]:
        fields = {"name": member.name, "fingerprint": member.key.fingerprint}
        return {**fields, "is_revoked": found.is_revoked(member)}

    return {
        "consortium": found.consortium,
        "serial": found.serial,
        "sha256": found.sha256,
        "root": found.root.fingerprint,
        "coordinator": entry(found.coordinator),
        "members": [entry(member) for member in found.members],
        "revoked": list(found.revoked),
    }


def _lines(fingerprint: str) -> str:
    """A fingerprint in three lines of four groups, short enough to read to each other."""
    groups = fingerprint.split()
    return "\n".join("  " + " ".join(groups[start : start + 4]) for start in range(0, len(groups), 4))


def _member(text: str) -> Member:
    """Reads "NAME=PUB". A file that calls itself by another name was probably mixed up."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"Expected NAME=PUB, a name and its public file, found '{text}'.")
    member = Member(name=_checked_name(name), key=read_public(path))
    label = read_key_file(path).label
    if label not in ("", name):
        raise ConfigError(f"{path} says that it is of '{label}' but is given for '{name}'; check which file is whose.")
    return member


def _checked_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"The name {name!r} is not allowed; take 1 to 64 letters, digits, spaces or any of _.- "
            "and start with a letter or digit."
        )
    return name


def _serial(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"--serial={text} is not allowed; it counts the consortium's rosters: 1, 2, ...")
    return int(text)


def _read_roster(path: str) -> Roster:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    return read_roster(data)


def _open_root(given: Given) -> Identity:
    path, file = given.one("--root"), given.maybe("--passphrase-file")
    if file is not None:
        return read_identity(path, read_passphrase(file))
    is_encrypted = read_key_file(path).is_encrypted
    return read_identity(path, _ask(f"Passphrase of {path}: ") if is_encrypted else None)


def _new_passphrase(given: Given) -> bytes | None:
    file = given.maybe("--passphrase-file")
    if given.flags and file is not None:
        raise ConfigError("--no-passphrase and --passphrase-file contradict each other; give one of them.")
    if given.flags:
        return None
    if file is not None:
        return read_passphrase(file)
    first = _ask("A passphrase for the private keys: ")
    if _ask("The same once more: ") != first:
        raise ConfigError("The two passphrases differ; nothing was written, start again.")
    return first


def _ask(prompt: str) -> bytes:
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask for the passphrase on; give --passphrase-file FILE.")
    try:
        return getpass.getpass(prompt).encode()
    except EOFError:
        raise ConfigError("No passphrase was typed; nothing was written.") from None


def _value(name: str, value: str) -> str:
    if not value or value.startswith("--"):
        raise ConfigError(f"{name} is given without a value; it needs one.")
    return value
