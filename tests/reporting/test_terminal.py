"""What a person sees: complete, honest, within the width, and harmless whatever a hospital calls itself."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from fedslm.reporting.drawing import duration_words, size_words, sparkline, spent_words
from fedslm.reporting.events import KINDS, Event
from fedslm.reporting.progress import Progress
from fedslm.reporting.terminal import LiveView, PlainView, choose_view, closing_lines, comparison_table

HOSPITALS = ("st-marien-cardiology", "north-oncology", "riverside", "lakeview-paediatrics", "old-town-clinic")
DP = {"mode": "local", "epsilon": 8.0, "delta": 1e-6, "unit": "patient", "noise_multiplier": 1.1}
NO_DP = {"mode": "none", "epsilon": None, "delta": None, "unit": "patient", "noise_multiplier": None}


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


class Story:
    """Tells a view a run, one event a second from second 1000 on; the clock stands at the last event."""

    def __init__(self, view: Any = None) -> None:
        self.now = 1000.0
        self.view = LiveView(clock=lambda: self.now) if view is None else view

    def tell(self, kind: str, **fields: Any) -> Story:
        self.now += 1
        self.view.notify(Event(time=self.now, kind=kind, fields=fields))
        return self

    def start(self, **changes: Any) -> Story:
        fields = {
            "run_id": "wards-7f3a91",
            "plan_sha256": "ab" * 32,
            "hospitals": HOSPITALS,
            "rounds": 4,
            "first_round": 1,
            "privacy": DP,
            "masked": True,
            "bound": "1 of 5 may collude with the coordinator; 1 may drop out of a session",
            "seeded": False,
            "model": "tiny-llama",
            "adapter_parameters": 24576,
        }
        self.tell("run_started", **{**fields, **changes})
        for hospital in changes.get("hospitals", HOSPITALS):
            self.tell("hospital_joined", hospital=hospital)
        return self

    def trained(self, number: int, hospital: str) -> Story:
        fields = {"seconds": 4.21, "bytes_up": 600_000, "bytes_down": 98_800}
        return self.tell("hospital_trained", round=number, hospital=hospital, **fields)

    def round(self, number: int, *, lost: str = "", epsilon: float | None = 1.0) -> Story:
        self.tell("round_started", round=number)
        survivors = [hospital for hospital in HOSPITALS if hospital != lost]
        for hospital in survivors:
            self.trained(number, hospital)
        if lost:
            self.tell("hospital_dropped", round=number, hospital=lost, code="timeout", step="train")
        self.tell("round_finished", round=number, seconds=10.0, epsilon=epsilon, survivors=survivors)
        self.tell("scored", round=number, loss=2.0 / number, accuracy=0.2 + number / 10, seconds=1.0)
        return self.tell("checkpoint_written", round=number, seconds=1.0)


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)


def drawn(renderable: RenderableType, width: int = 80, height: int = 50) -> str:
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(renderable)
    return console.export_text()


def widest(text: str) -> int:
    return max(cell_len(line) for line in text.splitlines())


def row(text: str, begin: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(begin))


def plain(quiet: bool = False) -> tuple[Story, io.StringIO]:
    stream = io.StringIO()
    story = Story(PlainView(Console(file=stream, width=80), quiet=quiet, clock=lambda: story.now))
    return story, stream


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    story = Story().start(masked=False, bound="", seeded=True).round(1).round(2, lost="north-oncology", epsilon=3.2)
    story.tell("hospital_refused", hospital="riverside", code="policy-model-not-allowed")
    story.tell("comparison_started", name="a very long name of a model " * 5, index=1, total=7)
    assert widest(drawn(story.view, width)) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_a_running_round_shows_everything(width: int) -> None:
    story = Story().start().round(1, epsilon=2.5).round(2, lost="riverside", epsilon=3.211)
    text = drawn(story.tell("round_started", round=3).trained(3, "north-oncology").view, width)
    for words in (
        "wards-7f3a91 · tiny-llama · 24,576 adapter parameters",
        "epsilon 8.0 at delta 1e-06 per patient",
        "encrypted: 1 of 5 may collude with the coordinator; 1 may drop out of a session",
        "round 3 of 4",
        "all test patients: loss 1.000  accuracy 40.0 %  from 30.0 %  ▁█",
        "saved through round 2",
        "1 drop in round 2: riverside (timeout)",
    ):
        assert words in text
    assert row(text, "north-oncology").split()[1:3] == ["trained", "3"]
    assert row(text, "north-oncology").split()[-7:] == ["3.22", "1.80", "MB", "296", "kB", "4.2", "s"]
    assert row(text, "riverside").split()[1] == "training"
    assert "2.50" in row(text, "riverside")  # it did not train in round 2, so it spent nothing there
    assert "PRIVACY OFF" not in text
    assert "NOT encrypted" not in text


def failed_session(story: Story) -> Story:
    """Round 1: two of five are lost on the way, and it is tried again with the other three."""
    story.start().tell("round_started", round=1)
    story.tell("session_started", round=1, session=1, attempt=0, hospitals=HOSPITALS)
    for name in HOSPITALS[:4]:
        story.trained(1, name)
    story.tell("hospital_dropped", round=1, hospital=HOSPITALS[4], code="NO_ANSWER", step="train")
    story.tell("hospital_masked", round=1, hospital=HOSPITALS[0], seconds=1.0, bytes_up=400_000, bytes_down=1_200)
    story.tell("hospital_dropped", round=1, hospital=HOSPITALS[3], code="NO_ANSWER", step="mask")
    return story.tell("session_failed", round=1, session=1, code="TOO_FEW", missing=HOSPITALS[3:])


def test_a_session_that_failed_is_said_where_it_is_tried_again() -> None:
    story = failed_session(Story())
    text = drawn(story.view, 80)
    assert "round 1: session 1 failed, 2 of 5 missing, trying again" in text
    assert "2 drops, the last in round 1: lakeview-paediatrics (NO_ANSWER in mask)" in text
    assert row(text, HOSPITALS[0]).split()[1] == "masked"
    assert row(text, HOSPITALS[0]).split()[-6:-4] == ["1.00", "MB"]  # both replies
    text = drawn(story.tell("session_started", round=1, session=2, attempt=1, hospitals=HOSPITALS[:3]).view, 80)
    assert row(text, HOSPITALS[0]).split()[1] == "training"
    assert row(text, HOSPITALS[3]).split()[1] == "dropped"
    story.tell("round_finished", round=1, seconds=9.0, epsilon=1.0, survivors=HOSPITALS[:3])
    assert "trying again" not in drawn(story.view, 80)


def test_a_session_that_failed_has_its_lines_in_a_log() -> None:
    story, stream = plain()
    failed_session(story).tell("session_started", round=1, session=2, attempt=1, hospitals=HOSPITALS[:3])
    assert stream.getvalue().splitlines()[-4:] == [
        "round 1: old-town-clinic dropped (NO_ANSWER)",
        "round 1: lakeview-paediatrics dropped (NO_ANSWER in mask)",
        "round 1: session 1 failed, 2 of 5 missing (TOO_FEW)",
        "round 1: trying again in session 2, 3 hospitals",
    ]


def test_a_bar_does_not_run_back_when_vectors_come() -> None:
    story = Story().start().tell("round_started", round=1)
    story.tell("session_started", round=1, session=1, attempt=0, hospitals=HOSPITALS)
    for name in HOSPITALS:
        story.trained(1, name)
    trained = drawn(story.view, 80)
    masked = story.tell("hospital_masked", round=1, hospital="riverside", seconds=1.0, bytes_up=1, bytes_down=1).view
    assert row(drawn(masked, 80), "round 1 of 4") == row(trained, "round 1 of 4")


def test_columns_do_not_jump_when_states_change() -> None:
    story = Story().start()
    before = drawn(story.view)
    story.round(1, lost="riverside")
    story.tell("hospital_refused", hospital="north-oncology", code="policy")
    assert row(drawn(story.view), "hospital ") == row(before, "hospital ")


def test_what_nobody_may_overlook_is_in_every_view() -> None:
    live = drawn(Story().start(privacy=NO_DP, masked=False, bound="", seeded=True).round(1, epsilon=None).view)
    for quiet in (False, True):
        story, stream = plain(quiet)
        story.start(privacy=NO_DP, masked=False, bound="", seeded=True).round(1, epsilon=None)
        for text in (live, stream.getvalue()):
            assert "PRIVACY OFF" in text
            assert "updates are NOT encrypted: the coordinator can read each one" in text
            assert "seeded simulation: noise is reproducible, not secret" in text
            assert "epsilon" not in text


def test_privacy_off_is_white_on_red() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=False)
    console.print(Story().start(privacy=NO_DP).view)
    assert "\x1b[1;37;41mPRIVACY OFF" in console.file.getvalue()  # type: ignore[attr-defined]


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    console.print(Story().start(privacy=NO_DP).view)
    assert "37;41" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_noise_zero_is_privacy_off_whatever_the_mode_is_called() -> None:
    assert "PRIVACY OFF" in drawn(Story().start(privacy={**DP, "noise_multiplier": 0.0}).view)


def test_noise_without_a_budget_is_said_so() -> None:
    text = drawn(Story().start(privacy={**DP, "epsilon": None}).round(1, epsilon=2.0).view)
    assert "noise multiplier 1.1, no epsilon budget, delta 1e-06 per patient" in text
    assert "2.00" in row(text, "riverside")


@pytest.mark.parametrize("name", ["\x1b[2J\x1b[31mevil", "[red]evil[/red]", "a\nb", "\u202eevil"])
def test_a_hospital_s_name_is_only_ever_text(name: str) -> None:
    story, stream = plain()
    live = Story()
    for each in (story, live):
        each.start(hospitals=(name,)).tell("hospital_dropped", round=1, hospital=name, code=name, step=name)
        each.tell("hospital_refused", hospital=name, code=name).tell("run_failed", code=name, message=name)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    console.print(live.view)
    for text in (stream.getvalue(), console.file.getvalue()):  # type: ignore[attr-defined]
        assert "\x1b[2J" not in text
        assert "\u202e" not in text
        assert "a\nb" not in text
        assert "[red]" in text or "[red]" not in name


def test_many_hospitals_leave_room_for_the_footer() -> None:
    names = tuple(f"hospital-{number:02d}" for number in range(40))
    text = drawn(Story().start(hospitals=names).round(1).view, 80, 24)
    assert len(text.splitlines()) <= 24
    assert "more:" in text
    assert "round 1 of 4" in text


def test_without_unicode_all_is_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=stream, width=80, force_terminal=True)
    console.print(Story().start().round(1).round(2).tell("round_started", round=3).view)
    console.print(comparison_table(COMPARISON))
    stream.flush()


def test_a_name_the_terminal_cannot_write_does_not_end_the_run() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    story = Story(choose_view(stream))
    story.start(hospitals=("süd",))
    stream.flush()
    assert b"s?d joined" in stream.buffer.getvalue()


def test_time_left_is_the_median_round_and_shrinks_with_the_clock() -> None:
    story = Story().start()
    assert "left" not in drawn(story.view)
    story.round(1).round(2)  # 8 s each up to score and checkpoint; two more to go
    assert "about 16.0 s left" in drawn(story.view)
    story.tell("round_started", round=3)
    story.now += 5
    assert "about 11.0 s left" in drawn(story.view)
    story.now += 500
    assert "about 8.0 s left" in drawn(story.view)


def test_the_elapsed_time_stops_with_the_run() -> None:
    story = Story().start().tell("run_finished", round=4, seconds=6.0)
    story.now += 1000
    assert "elapsed 6.0 s" in drawn(story.view)


def test_a_resumed_run_shows_the_curve_of_its_first_part() -> None:
    first = Recorder()
    Story(first).start().round(1).round(2, epsilon=2.5).tell("round_started", round=3)
    live, silent = LiveView(history=first.events), io.StringIO()
    assert "epsilon" in drawn(live)
    Story(live).tell("run_interrupted", round=3, resume_command="fedslm simulate resume=x")
    assert "interrupted in round 3" in drawn(live)
    story = Story(live).start(first_round=3)
    assert "2.50" in row(drawn(live), "riverside")
    text = drawn(story.round(3).view)
    assert "from 30.0 %  ▁▅█" in text
    assert "round 3 of 4" in text
    assert "interrupted" not in text
    PlainView(Console(file=silent), history=first.events)
    assert silent.getvalue() == ""


def test_a_resumed_run_without_its_history_does_not_claim_that_nothing_was_spent() -> None:
    text = drawn(Story().start(first_round=3).view)
    assert row(text, "riverside").split()[3] == "?"


def test_a_stranger_is_shown_as_refused_but_not_counted() -> None:
    story, stream = plain()
    story.start().tell("hospital_refused", hospital="node 7", code="NOT_IN_PLAN").round(1)
    assert "5 of 5 hospitals" in stream.getvalue()


def test_before_the_run_starts_there_is_a_sign_of_life() -> None:
    assert "FedSLM  starting" in drawn(Story().view)


def test_a_failure_shows_its_code() -> None:
    story = (
        Story().start().tell("round_started", round=1).tell("run_failed", code="too-few", message="Only 2 answered.")
    )
    assert "failed (too-few)" in drawn(story.view)


def test_the_comparison_shows_its_progress() -> None:
    story = Story().start().round(4).tell("run_finished", round=4, seconds=40.0)
    story.tell("comparison_started", name="pooled", index=1, total=4)
    story.tell("comparison_started", name="contender", index=2, total=4)
    story.tell("comparison_round", name="pooled", round=1, rounds=2).tell(
        "comparison_round", name="contender", round=2, rounds=2
    )
    text = drawn(story.view)
    assert "comparison 0 of 4 done" in text
    assert "38 %" in text  # half of one and the whole of another, of four
    assert "pooled: round 1 of 2" in text
    assert "contender: round 2 of 2" in text
    story.tell("comparison_finished", name="contender", accuracy=0.5)
    assert "contender" not in drawn(story.view)
    assert "comparison 1 of 4 done" in drawn(story.view)
    assert "accuracy 66.0 %" in drawn(story.tell("comparison_finished", name="pooled", accuracy=0.66).view)


def test_progress_understands_every_kind() -> None:
    assert all(hasattr(Progress(), f"_{kind}") for kind in KINDS)


def test_a_hospital_that_was_not_asked_is_not_left_training() -> None:
    story = Story().start().tell("round_started", round=1).trained(1, "riverside")
    story.tell("round_finished", round=1, seconds=1.0, epsilon=1.0, survivors=["riverside"])
    assert row(drawn(story.view), "north-oncology").split()[1] == "joined"


def test_an_update_lost_after_training_has_still_cost_privacy() -> None:
    story = Story().start().tell("round_started", round=1).trained(1, "riverside")
    story.tell("hospital_dropped", round=1, hospital="riverside", code="timeout", step="mask")
    story.tell("round_finished", round=1, seconds=1.0, epsilon=1.5, survivors=[])
    assert "dropped" in row(drawn(story.view), "riverside")
    assert "1.50" in row(drawn(story.view), "riverside")


def test_the_last_picture_stays_on_the_screen() -> None:
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True, width=80), clock=lambda: 0.0)
    with view:
        Story(view).start()
    assert "wards-7f3a91" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_plain_lines_are_one_a_round() -> None:
    story, stream = plain()
    story.start().tell("scored", round=0, loss=2.5, accuracy=0.2, seconds=1.0)
    story.round(1).round(2, lost="riverside", epsilon=3.2).tell("run_finished", round=2, seconds=40.0)
    assert stream.getvalue().splitlines()[-5:] == [
        "before training: loss 2.500, accuracy 20.0 %",
        "round 1 of 4: 5 of 5 hospitals, epsilon 1.00 of 8.0, 3.00 MB up, 494 kB down, 10.0 s, loss 2.000, "
        "accuracy 30.0 %, about 21.0 s left",
        "round 2: riverside dropped (timeout)",
        "round 2 of 4: 4 of 5 hospitals, epsilon 3.20 of 8.0, 5.40 MB up, 889 kB down, 10.0 s, loss 1.000, "
        "accuracy 40.0 %, about 15.0 s left",
        "finished after round 2, 40.0 s",
    ]


def test_a_round_nobody_scores_is_printed_as_well() -> None:
    story, stream = plain()
    story.start().tell("round_started", round=1)
    story.tell("round_finished", round=1, seconds=10.0, epsilon=1.0, survivors=HOSPITALS)
    with story.view:
        pass
    assert stream.getvalue().splitlines()[-1].startswith("round 1 of 4: 5 of 5")


def test_a_score_that_comes_first_is_on_the_round_s_line() -> None:
    story, stream = plain()
    story.start().tell("round_started", round=1)
    story.tell("scored", round=1, loss=1.0, accuracy=0.5, seconds=1.0)
    story.tell("round_finished", round=1, seconds=10.0, epsilon=1.0, survivors=HOSPITALS)
    assert "accuracy 50.0 %" in stream.getvalue().splitlines()[-1]


def test_quiet_still_tells_of_refusals_and_failures() -> None:
    story, stream = plain(quiet=True)
    story.start().round(1).tell("hospital_refused", hospital="riverside", code="policy")
    story.tell("run_failed", code="too-few", message="Only 2 answered.")
    assert stream.getvalue().splitlines() == ["riverside refused (policy)", "failed (too-few)"]


def test_only_a_terminal_gets_the_live_view() -> None:
    def terminal(**options: Any) -> Console:
        return Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm", **options})

    assert isinstance(choose_view(terminal()), LiveView)
    assert isinstance(choose_view(terminal(), quiet=True), PlainView)
    assert isinstance(choose_view(terminal(TERM="dumb")), PlainView)
    assert isinstance(choose_view(io.StringIO()), PlainView)


COMPARISON = {
    "base": 0.213,
    "single_best": 0.482,
    "single_best_hospital": "north-oncology",
    "single_own": dict.fromkeys(HOSPITALS, 0.5),
    "federated": 0.634,
    "pooled": 0.66,
    "majority": 0.25,
    "by_hospital": {
        name: {"base": 0.2, "single": 0.4, "single_own": 0.5 + number / 20, "federated_own": 0.62}
        for number, name in enumerate(HOSPITALS)
    },
}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_comparison_fits_and_is_complete(width: int) -> None:
    text = drawn(comparison_table(COMPARISON), width)
    assert widest(text) <= width
    for words in ("commonest answer", "base model", "best single: north-oncology", "federated", "pooled", "63.4 %"):
        assert words in text
    assert row(text, "st-marien").split()[-7:] == ["20.0", "%", "50.0", "%", "62.0", "%", "+12.0"]
    assert row(text, "old-town").endswith("-8.0")
    assert row(text, "mean of").split()[-1] == "+2.0"


def test_the_federated_row_stands_out() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, no_color=False)
    console.print(comparison_table(COMPARISON))
    assert "\x1b[1;32mfederated" in console.file.getvalue()  # type: ignore[attr-defined]


def summary(**changes: Any) -> dict[str, Any]:
    done = {"status": "finished", "run_folder": "runs/a b", "adapter": "runs/a b/adapter", "rounds": 20}
    return {**done, "epsilon": 7.991, "delta": 1e-6, "unit": "patient", "seconds": 252.3, **changes}


def test_the_last_lines_say_what_was_done_and_where_it_lies() -> None:
    assert closing_lines(summary(report="runs/a b/report.html")) == [
        "Done after 20 rounds, 4m 12s.",
        "Privacy spent: epsilon 8.00 at delta 1e-06 per patient.",
        "run folder  runs/a b",
        "report      runs/a b/report.html",
        "adapter     runs/a b/adapter",
    ]


def test_an_unfinished_run_says_how_to_go_on() -> None:
    lines = closing_lines(summary(status="interrupted", adapter=None, rounds=1))
    assert lines[0] == "Interrupted after 1 round, 4m 12s."
    assert lines[-1] == "go on with  fedslm simulate 'resume=runs/a b'"
    assert not any(line.startswith("adapter") for line in lines)
    assert closing_lines(summary(status="failed", resume_command="x y"))[-1] == "go on with  x y"


def test_the_last_lines_count_the_attempts_that_came_to_nothing() -> None:
    assert closing_lines(summary(sessions=23))[0] == "Done after 20 rounds in 23 sessions, 4m 12s."
    assert closing_lines(summary(sessions=20))[0] == "Done after 20 rounds, 4m 12s."


def test_the_last_lines_say_that_updates_could_be_read() -> None:
    assert "NOT ENCRYPTED: the coordinator could read each hospital's update." in closing_lines(summary(masked=False))
    assert not any("ENCRYPTED" in line for line in closing_lines(summary(masked=True)))


def test_the_last_lines_do_not_claim_privacy_that_was_off() -> None:
    lines = closing_lines(summary(epsilon=None, delta=None))
    assert any(line.startswith("PRIVACY OFF") for line in lines)
    assert not any("epsilon" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1m 00s"), (3599.4, "59m 59s"), (3900, "1h 05m")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_600, "1.00 MB"), (12_340_000, "12.3 MB")]
)
def test_sizes(size: int, words: str) -> None:
    assert size_words(size) == words


def test_spent_epsilon_is_never_rounded_down() -> None:
    assert [spent_words(epsilon) for epsilon in (0.0, 3.2, 3.2001, 7.999)] == ["0.00", "3.20", "3.21", "8.00"]


def test_a_sparkline_shows_the_last_values_from_low_to_high() -> None:
    assert sparkline([9, 0, 0.5, 1], 3) == "▁▅█"
    assert sparkline([2, 2], 5) == "▁▁"
    assert sparkline([], 5) == sparkline([1], 0) == ""


def test_importing_the_views_loads_nothing_heavy() -> None:
    code = "import sys, fedslm.reporting.terminal; print({'torch', 'numpy', 'flwr', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_the_hospitals_released_is_one_line() -> None:
    story = Story().start().tell("held_out_scored", round=2, accuracy=0.612, stddev=0.0213)
    words = "held-out patients: accuracy 61.2 % after round 2, noise 2.1 %"
    assert words in drawn(story.view, width=70)
    assert "held-out" not in drawn(story.tell("held_out_scored", round=3, accuracy=None, stddev=None).view)
    stream = io.StringIO()
    plain = Story(PlainView(Console(file=stream, width=200))).start()
    plain.tell("held_out_scored", round=0, accuracy=None, stddev=None)
    plain.tell("held_out_scored", round=0, accuracy=0.5, stddev=0.01)
    told = [line for line in stream.getvalue().splitlines() if "held-out" in line]
    assert told == ["held-out patients: accuracy 50.0 % before training, noise 1.0 %"]
