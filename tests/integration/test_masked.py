"""A whole masked run: the same adapter as without masks, also after a break, and of every message only what is listed."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message
from safetensors.numpy import load_file

from clients import session as client_session
from fedslm.errors import RunError
from fedslm.flower.records import (
    ABORT,
    ARRAYS,
    CONFIG,
    CONFIRM,
    FROZEN,
    JOIN,
    MASK,
    SECAGG,
    TRAIN,
    UNMASK,
    ErrorCode,
    secagg_bytes,
)
from fedslm.reporting.events import Event
from fedslm.secagg.messages import (
    AbortReply,
    AbortRequest,
    ConfirmReply,
    ConfirmRequest,
    Invitation,
    JoinReply,
    MaskedReply,
    MaskRequest,
    Opening,
    SharesReply,
    UnmaskReply,
    UnmaskRequest,
)
from fedslm.secagg.wire import decode, encode
from server.run_folder import RunFolder
from simulations import run as simulation
from simulations.local_grid import LocalGrid
from simulations.run import RunResult, prepare, simulate, write_homes
from tests.conftest import without_privacy
from tests.toys import toy_overrides

pytestmark = pytest.mark.integration

Settings = Callable[..., list[str]]
# Without privacy, and every record in every step: the update is a function of the adapter alone.
WHOLE = ("privacy.sample_rate=1", "privacy.max_records_per_unit=2", "strategy=fedavg", "evaluation.every_rounds=0")
CANARY = "zq7Xylophone"

REQUESTS = {
    JOIN: Invitation,
    TRAIN: Opening,
    MASK: MaskRequest,
    CONFIRM: ConfirmRequest,
    UNMASK: UnmaskRequest,
    ABORT: AbortRequest,
}
REPLIES = {
    JOIN: JoinReply,
    TRAIN: SharesReply,
    MASK: MaskedReply,
    CONFIRM: ConfirmReply,
    UNMASK: UnmaskReply,
    ABORT: AbortReply,
}
SIGNED = {"plan": bytes, "plan-signature": bytes, "roster-sha256": bytes}
TOLD = {**SIGNED, "server-round": int, "session": int, "attempt": int}


def adapter(run: RunResult | Path) -> dict[str, np.ndarray[Any, Any]]:
    folder = run if isinstance(run, Path) else run.folder
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def differing(one: RunResult, other: RunResult | Path) -> list[str]:
    first, second = adapter(one), adapter(other)
    assert set(first) == set(second)
    return [name for name in first if not np.array_equal(first[name], second[name])]


def fields(run: RunResult, kind: str, name: str) -> list[Any]:
    return [event.fields[name] for event in run.events if event.kind == kind]


class At:
    """A view that does something at the first event of a kind in a round."""

    def __init__(self, kind: str, act: Callable[[Event], None], *, number: int = 2) -> None:
        self._kind, self._act, self._number = kind, act, number

    def __enter__(self) -> At:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def notify(self, event: Event) -> None:
        if event.kind == self._kind and event.fields.get("round") == self._number:
            self._kind = ""
            self._act(event)


def interrupt(_: Event) -> None:
    raise KeyboardInterrupt


# --- the same as without masks ----------------------------------------------------------------------------------------


def test_masked_and_in_the_clear_a_round_ends_at_the_same_adapter(unprivate: Settings, tmp_path: Path) -> None:
    settings = [*WHOLE, "rounds=1", "training.learning_rate=10"]
    runs = [
        simulate(unprivate(*settings, f"secagg={mode}", f"run_folder={tmp_path / mode}")) for mode in ("masked", "none")
    ]
    masked, clear = (adapter(run) for run in runs)
    # A level is 4.0 / (2^32 / 3 / 2) = 5.6e-9, and a mean of three is off by less than that. Float sums come on top.
    for name, array in clear.items():
        np.testing.assert_allclose(masked[name], array, rtol=1e-6, atol=2e-8)
    assert max(np.abs(array).max() for name, array in clear.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize("ring_bits", [16, 24])
def test_fewer_bits_make_shorter_messages_and_a_coarser_mean(
    ring_bits: int, unprivate: Settings, tmp_path: Path
) -> None:
    settings = [*WHOLE, "rounds=1", "training.learning_rate=10"]
    fine = simulate(unprivate(*settings, f"run_folder={tmp_path / 'fine'}"))
    coarse = simulate(unprivate(*settings, f"secagg.ring_bits={ring_bits}", f"run_folder={tmp_path / 'coarse'}"))
    (short,), (long,) = ({*fields(run, "hospital_masked", "bytes_up")} for run in (coarse, fine))
    assert short < long * (ring_bits + 1) / 32
    level = 4.0 / ((2**ring_bits - 1) // 3 // 2)
    errors = [np.abs(adapter(coarse)[name] - array).max() for name, array in adapter(fine).items()]
    assert level / 100 < max(errors) < 3 * level


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], RunResult]:
    """An uninterrupted run, private or not; made once."""

    @functools.cache
    def run(private: bool) -> RunResult:
        folder = tmp_path_factory.mktemp("unbroken") / "run"
        overrides = toy_overrides(toys, "evaluation.every_rounds=0", f"run_folder={folder}")
        return simulate(overrides if private else without_privacy(overrides))

    return run


@pytest.mark.parametrize(
    ("kind", "private"),
    [
        ("round_started", False),
        ("session_started", False),
        ("hospital_trained", False),
        ("hospital_trained", True),
        ("hospital_masked", False),
        ("hospital_masked", True),
        ("checkpoint_written", False),
        ("round_finished", False),
    ],
)
def test_interrupted_anywhere_in_a_round_a_run_ends_bit_for_bit_where_an_unbroken_one_does(
    kind: str, private: bool, settings: Settings, unbroken: Callable[[bool], RunResult], tmp_path: Path
) -> None:
    whole, run = unbroken(private), tmp_path / "run"
    overrides = settings("evaluation.every_rounds=0")
    with pytest.raises(KeyboardInterrupt):
        simulate(overrides if private else without_privacy(overrides), view=At(kind, interrupt))
    identities = [(run / "sites" / f"identity-{number}.pem").read_bytes() for number in range(3)]
    resumed = simulate([f"resume={run}"])
    assert differing(whole, resumed) == []
    assert identities == [(run / "sites" / f"identity-{number}.pem").read_bytes() for number in range(3)]
    sessions = fields(resumed, "session_started", "session")
    assert sessions == sorted(set(sessions))
    lost = kind in ("session_started", "hospital_trained", "hospital_masked")
    assert resumed.summary["sessions"] == (4 if lost else 3)


def test_a_run_without_its_identities_is_not_gone_on_with(unprivate: Settings, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(unprivate(), view=At("round_started", interrupt))
    (tmp_path / "run" / "sites" / "roster.json").unlink()
    with pytest.raises(RunError, match="start the run again in a new folder"):
        simulate([f"resume={tmp_path / 'run'}"])


# --- hospitals that drop out ------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, step: str, names: set[str], *, times: int = 1000) -> None:
    """Makes some hospitals raise in a step after the training, so many times in all."""
    whole, left = getattr(client_session.Part, step), [times]

    def fail(part: Any, data: bytes) -> bytes:
        if part._agreement.hospital in names and left[0]:
            left[0] -= 1
            raise ValueError(CANARY)
        return bytes(whole(part, data))

    monkeypatch.setattr(client_session.Part, step, fail)
    # The app's table holds the methods themselves.
    from clients import app

    kind = {"mask": MASK, "confirm": CONFIRM, "unmask": UNMASK}[step]
    monkeypatch.setitem(app.EXCHANGES, kind, fail)


@pytest.mark.parametrize(("step", "summed"), [("mask", 2), ("confirm", 3), ("unmask", 3)])
def test_a_hospital_that_fails_in_a_step_drops_out_and_the_round_goes_on(
    step: str, summed: int, unprivate: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, step, {"hospital-1"})
    result = simulate(unprivate("rounds=2", "evaluation.every_rounds=0"))
    assert [len(names) for names in fields(result, "round_finished", "survivors")] == [summed, summed]
    dropped = [event.fields for event in result.events if event.kind == "hospital_dropped"]
    assert [(found["hospital"], found["code"], found["step"]) for found in dropped] == [
        ("hospital-1", "FAILED", step)
    ] * 2
    told = b"".join(path.read_bytes() for path in result.folder.rglob("*") if path.is_file() and path.suffix != ".log")
    assert CANARY.encode() not in told


@pytest.mark.parametrize(
    ("step", "private"), [("mask", False), ("confirm", False), ("unmask", False), ("unmask", True)]
)
def test_a_session_that_loses_too_many_is_over_and_the_round_takes_another(
    step: str, private: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, step, {"hospital-0", "hospital-1"}, times=2)
    overrides = settings("rounds=2", "evaluation.every_rounds=0")
    result = simulate(overrides if private else without_privacy(overrides))
    assert result.summary["status"] == "finished"
    assert fields(result, "session_started", "session") == [1, 2, 3]
    assert fields(result, "session_started", "attempt") == [0, 1, 0]
    dropped = [event.fields for event in result.events if event.kind == "hospital_dropped"]
    assert [len(names) for names in fields(result, "round_finished", "survivors")] == [3, 3], dropped


# --- every message ----------------------------------------------------------------------------------------------------


class Recording(LocalGrid):
    """Remembers every message and every reply, each with its request's type."""

    seen: list[tuple[str, str, Message]]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        self.seen += [("request", message.metadata.message_type, copy.deepcopy(message)) for message in listed]
        self.kinds = getattr(self, "kinds", {})
        identities = super().push_messages(listed)
        self.kinds.update(zip(identities, (message.metadata.message_type for message in listed), strict=True))
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        # Copies: the server lets go of what it has read.
        self.seen += [
            ("reply", self.kinds[reply.metadata.reply_to_message_id], copy.deepcopy(reply)) for reply in replies
        ]
        return replies


def typed(config: ConfigRecord) -> dict[str, type]:
    return {key: type(value) for key, value in config.items()}


def walk_request(kind: str, message: Message) -> None:
    """Coordinator to hospital: the signed plan, the adapter, the protocol's bytes, and nothing else."""
    content = message.content
    assert not content.metric_records
    assert set(content.config_records) == {CONFIG}
    assert typed(content.config_records[CONFIG]) == (TOLD if kind == TRAIN else SIGNED)
    expected = {ARRAYS, FROZEN, SECAGG} if kind == TRAIN else {SECAGG}
    assert set(content.array_records) == expected
    data = secagg_bytes(message)
    assert encode(decode(REQUESTS[kind], data)) == data


def walk_reply(kind: str, message: Message) -> None:
    """Hospital to coordinator: name and plan at joining, then the protocol's bytes; or a code. Nothing else, ever."""
    if message.has_error():
        code, words, number = str(message.error.reason).split(" ")
        assert ErrorCode[code] == message.error.code
        assert words == "incident"
        assert re.fullmatch("[0-9a-f]{8}", number)
        return
    content = message.content
    assert not content.metric_records
    assert set(content.array_records) == {SECAGG}
    assert {name: typed(record) for name, record in content.config_records.items()} == (
        {CONFIG: {"hospital": str, "plan-sha256": str}} if kind == JOIN else {}
    )
    data = secagg_bytes(message)
    assert encode(decode(REPLIES[kind], data)) == data


def everything(message: Message) -> bytes:
    if message.has_error():
        return repr((message.error.code, message.error.reason)).encode()
    arrays: list[Array] = [array for record in message.content.array_records.values() for array in record.values()]
    return b"".join(array.data for array in arrays) + repr(message.content.config_records).encode()


@pytest.mark.parametrize("scored", [False, True])
def test_of_every_message_of_a_run_only_what_is_listed_travels(
    scored: bool, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rounds, with a hospital that fails in training, one that drops out later, and a session given up."""
    updates: list[bytes] = []
    scores: list[bytes] = []
    share = client_session.Part.share

    def listening(part: Any, opened: Any, update: Any, score: Any) -> bytes:
        updates.extend(np.ascontiguousarray(array).tobytes() for array in update.values())
        assert (score is not None) == scored
        scores.extend([] if score is None else [number.tobytes() for number in score])
        return bytes(share(part, opened, update, score))

    monkeypatch.setattr(client_session.Part, "share", listening)
    failing(monkeypatch, "confirm", {"hospital-0", "hospital-1"}, times=2)
    failing(monkeypatch, "mask", {"hospital-2"}, times=3)
    grids: list[Recording] = []

    def recording(*arguments: Any, **more: Any) -> Recording:
        grid = Recording(*arguments, **more)
        grid.seen = []
        grids.append(grid)
        return grid

    monkeypatch.setattr(simulation, "LocalGrid", recording)
    overrides = toy_overrides(toys, f"run_folder={tmp_path / 'run'}", "runtime.parallel=1")
    run = simulate([*overrides, "privacy.scores=dp"] if scored else without_privacy(overrides))
    assert run.summary["status"] == "finished"
    (grid,) = grids
    kinds = {(way, kind) for way, kind, _ in grid.seen}
    private = {ABORT} if scored else set()  # with noise no session has to be given up
    assert kinds == {(way, kind) for way in ("request", "reply") for kind in {*REPLIES} - private}
    assert any(message.has_error() for way, _, message in grid.seen if way == "reply")
    for way, kind, message in grid.seen:
        (walk_request if way == "request" else walk_reply)(kind, message)
        assert CANARY.encode() not in everything(message)
        assert b"patient" not in everything(message) or way == "request"
    replies = [everything(message) for way, _, message in grid.seen if way == "reply"]
    pieces = [update[start : start + 16] for update in updates for start in range(0, len(update) - 16, 64)]
    assert len(pieces) > 1000
    assert not any(piece in reply for reply in replies for piece in pieces if any(piece))
    assert len(scores) >= (2 * 9 if scored else 0)
    assert not any(score in reply for reply in replies for score in scores)
    plan = RunFolder(run.folder).plan()
    assert plan.secagg is not None
    vectors = [
        decode(MaskedReply, secagg_bytes(message)).vector
        for way, kind, message in grid.seen
        if (way, kind) == ("reply", MASK) and not message.has_error()
    ]
    assert {len(vector) for vector in vectors} == {4 * plan.vector_length}


# --- scores of held-out patients ----------------------------------------------------------------------------------------

# So many held-out patients and so little noise that the accuracy is off by 2 % or so; of each, all records are scored.
SCORED = ("privacy.scores=dp", "privacy.epsilon=60", "privacy.max_records_per_unit=2", "data.held_out_fraction=0.5")


def test_the_accuracy_that_the_hospitals_release_is_that_of_the_harness(settings: Settings, tmp_path: Path) -> None:
    run = simulate(settings(*SCORED, "evaluation.max_examples=1000"))
    plan = RunFolder(run.folder).plan()
    own = dict(zip(fields(run, "scored", "round"), fields(run, "scored", "accuracy"), strict=True))
    found = run.summary["held_out_accuracy"]
    assert [row["round"] for row in found] == [0, 1, 2] == fields(run, "held_out_scored", "round")
    assert plan.privacy.scores is not None
    for row in found[1:]:  # the harness scores no adapter before the first round
        assert 0 < row["stddev"] < 0.05
        assert abs(row["accuracy"] - own[row["round"]]) < 4 * row["stddev"]
    assert run.summary["epsilon"] <= 60
    assert [event.fields for event in run.events if event.kind == "hospital_dropped"] == []


def test_without_scores_the_summary_says_so(unprivate: Settings) -> None:
    assert simulate(unprivate("rounds=1")).summary["held_out_accuracy"] is None


def test_an_interrupted_run_with_scores_ends_bit_for_bit_where_an_unbroken_one_does(
    settings: Settings, tmp_path: Path
) -> None:
    more = (*SCORED, "evaluation.every_rounds=0")
    whole = simulate(settings(*more, f"run_folder={tmp_path / 'whole'}"))
    with pytest.raises(KeyboardInterrupt):
        simulate(settings(*more), view=At("hospital_masked", interrupt))
    resumed = simulate([f"resume={tmp_path / 'run'}"])
    assert differing(whole, resumed) == []
    assert resumed.summary["held_out_accuracy"] == whole.summary["held_out_accuracy"]


# --- the folder of a simulation ---------------------------------------------------------------------------------------


def test_a_masked_run_has_identities_and_leaves_no_secret_of_its_sessions(unprivate: Settings, tmp_path: Path) -> None:
    run = simulate(unprivate("rounds=2", "evaluation.every_rounds=0"))
    sites = run.folder / "sites"
    assert {path.name for path in sites.glob("*.pem")} == {f"identity-{number}.pem" for number in range(3)}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in sites.glob("*.pem"))
    for number in range(3):
        found = {str(path.relative_to(sites)) for path in (sites / f"state-{number}").rglob("*") if path.is_file()}
        assert {path for path in found if not path.endswith(("-wal", "-shm"))} == {
            f"state-{number}/patients.key",
            f"state-{number}/patients.sqlite",
            f"state-{number}/state.key",
        }
    # Root and coordinator signed once; nobody has their keys any more.
    pems = [path.read_bytes().count(b"BEGIN PRIVATE KEY") for path in run.folder.rglob("*.pem")]
    assert pems == [2, 2, 2]


def test_the_sites_of_a_prepared_run_are_those_of_its_plan(unprivate: Settings) -> None:
    with prepare(unprivate()) as job:
        configs = write_homes(job)
        again = write_homes(job)
    assert configs == again
    assert len(configs) == 3
    assert RunFolder(job.folder.path).plan() == job.plan


def test_a_comparison_trains_each_hospital_alone_in_the_clear(unprivate: Settings) -> None:
    run = simulate(unprivate("rounds=1", "compare=true"))
    assert run.summary["masked"] is True
    assert set(run.summary["comparison"]["single_own"]) == {"hospital-0", "hospital-1", "hospital-2"}
    alone = [RunFolder(path.parent).plan() for path in run.folder.glob("comparison/*/plan.json")]
    assert [plan.masked for plan in alone] == [False] * 4
