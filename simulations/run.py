"""`fedslm simulate`: a whole federation on this machine, from settings to a scored adapter in a run folder."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import Context, RecordDict

from clients.app import build_client_app
from clients.train import Workbench
from fedslm.config.checks import check
from fedslm.config.compose import changed, compose_values
from fedslm.config.schema import FederationConfig, build
from fedslm.errors import ConfigError
from fedslm.flower.compat import quiet
from fedslm.governance.plan import Plan
from fedslm.reporting.closing import closing_lines
from fedslm.reporting.events import Announcer, Event, EventLog, Observer, read_events
from server.app import build_server_app
from server.checkpoints import Checkpoint
from server.planning import Draft, draft_plan
from server.run_folder import RunFolder
from server.summary import record_failure, summarise
from simulations.comparison import Contest, check_comparable, compare
from simulations.consortium import Consortium, gather, share_cores, write_sites
from simulations.identities import Identities, with_identities, without_roster
from simulations.local_grid import LocalGrid
from simulations.ray_runtime import run_with_ray
from simulations.scoring import RoundScorer, Scorer

RESUME = "resume="
SITES = "sites"
INCIDENTS = "incidents.log"
NOT_IN_THE_PLAN = ("compare", "evaluation", "runtime")


class View(Observer, AbstractContextManager[Any], Protocol):
    """What shows a run to a person while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run.

    Attributes:
      folder: the run folder.
      adapter: the final adapter, for `PeftModel.from_pretrained`.
      summary: the content of `summary.json`.
      events: everything that happened, oldest first.
    """

    folder: Path
    adapter: Path
    summary: Mapping[str, Any]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start or to go on."""

    config: FederationConfig
    settings: dict[str, Any]
    consortium: Consortium
    folder: RunFolder
    plan: Plan


def simulate(overrides: Sequence[str] = (), *, view: View | None = None) -> RunResult:
    """Runs a federation on this machine, or goes on with one (`resume=FOLDER`).

    Args:
      overrides: settings as on the command line.
      view: told of every event while the run goes on.
    Raises:
      FedSLMError: one sentence and an exit code. KeyboardInterrupt: after the interruption is on record.
    """
    quiet()
    started = time.monotonic()
    resumed = [text.removeprefix(RESUME) for text in overrides if text.startswith(RESUME)]
    others = [text for text in overrides if not text.startswith(RESUME)]
    with prepare_resume(Path(resumed[-1]), others) if resumed else prepare(others) as job, view or nullcontext():
        observers = () if view is None else (view,)
        try:
            summary = _run(job, observers, started)
        except BaseException as error:
            _record_failure(job, observers, error, started)
            raise
        folder = job.folder
        return RunResult(
            folder=folder.path, adapter=folder.adapter, summary=summary, events=tuple(read_events(folder.events))
        )


class _Prepared(AbstractContextManager[Job]):
    """A job whose run folder is locked until the block ends."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> Job:
        return self._job

    def __exit__(self, *_: object) -> None:
        self._job.folder.close()


def prepare(overrides: Sequence[str]) -> _Prepared:
    """Makes the plan and the run folder of a new run.

    Raises:
      FedSLMError: a setting, the data or the model is not usable; nothing is left behind.
    """
    settings = compose_values(overrides)
    config = _checked(settings)
    _use_threads(config)
    consortium = _gathered(config)
    draft = draft_plan(config, consortium.population, seed=config.seed)
    folder = RunFolder(_folder_path(config, draft.plan))
    _create(folder, draft, settings)
    return _Prepared(Job(config=config, settings=settings, consortium=consortium, folder=folder, plan=draft.plan))


def _create(folder: RunFolder, draft: Draft, settings: Mapping[str, Any]) -> None:
    identities = Identities.draw(draft.plan) if draft.plan.masked else None
    folder.create(
        draft.plan,
        settings=settings,
        description=draft.description,
        initial=draft.initial,
        roster=None if identities is None else identities.roster,
        plan_signature=None if identities is None else identities.plan_signature,
    )
    if identities is not None:
        identities.write(folder.path / SITES)


def prepare_resume(path: Path, overrides: Sequence[str]) -> _Prepared:
    """Opens an existing run.

    Raises:
      ConfigError: there is none, another process has it, or a setting that is in its plan is to be changed.
    """
    folder = RunFolder(path)
    folder.open()
    try:
        settings = folder.settings()
        _refuse_changes(settings, overrides)
        config = _checked(_merged(settings, overrides))
        _use_threads(config)
        return _Prepared(
            Job(config=config, settings=settings, consortium=_gathered(config), folder=folder, plan=folder.plan())
        )
    except BaseException:
        folder.close()
        raise


def history(overrides: Sequence[str]) -> list[Event]:
    """What happened so far in the run that `resume=FOLDER` names; nothing for a new run."""
    folders = [Path(text.removeprefix(RESUME)) for text in overrides if text.startswith(RESUME)]
    return read_events(folders[-1] / "events.jsonl") if folders and (folders[-1] / "events.jsonl").is_file() else []


def _checked(settings: Mapping[str, Any]) -> FederationConfig:
    config = build(FederationConfig, settings)
    check(config)
    return config


def _gathered(config: FederationConfig) -> Consortium:
    consortium = gather(config)
    if config.compare:
        check_comparable(consortium)
    return consortium


def _use_threads(config: FederationConfig) -> None:
    # Planning and scoring run in this thread; the hospitals set their own.
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)


def _refuse_changes(settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    differences = [
        f"{name} is {old!r} in the run, {new!r} asked"
        for name, (old, new) in changed(settings, overrides).items()
        if name.split(".")[0] not in NOT_IN_THE_PLAN
    ]
    if differences:
        raise ConfigError(f"A resumed run keeps its plan: {'; '.join(differences)}; start a new run to change it.")


def _merged(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    merged = dict(settings)
    for name, (_, new) in changed(settings, overrides).items():
        group, _, key = name.partition(".")
        merged[group] = {**merged[group], key: new} if key else new
    return merged


def _folder_path(config: FederationConfig, plan: Plan) -> Path:
    if config.run_folder is not None:
        return Path(config.run_folder).expanduser()
    return Path("runs") / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{plan.run_id}"


def _run(job: Job, observers: tuple[Observer, ...], started: float) -> dict[str, Any]:
    bench = Workbench()
    scorer = Scorer(job.plan, job.consortium, bench, batch_size=job.config.evaluation.batch_size)
    _federate(job, bench, scorer, observers)
    final = job.folder.latest()
    summary = _finished(job, final, scorer, started)
    job.folder.write_summary(summary)
    if job.config.compare:
        with EventLog(job.folder.events) as log:
            comparison = compare(_contest(job, bench, scorer, final), Announcer(log, *observers))
        summary = {**_finished(job, final, scorer, started), "comparison": comparison}
        job.folder.write_summary(summary)
    return summary


def _finished(job: Job, final: Checkpoint, scorer: Scorer, started: float) -> dict[str, Any]:
    summary = summarise(job.folder, final, status="finished", seeded=True, started=started)
    return {**summary, "majority": scorer.majority, "majority_own": scorer.majority_own}


def _federate(job: Job, bench: Workbench, scorer: Scorer, observers: tuple[Observer, ...]) -> None:
    evaluation, path = job.config.evaluation, job.folder.path
    after_round = RoundScorer(
        scorer,
        every_rounds=evaluation.every_rounds,
        max_examples=evaluation.max_examples,
        last_round=job.plan.training.rounds,
    )
    server_app = build_server_app(folder=path, observers=observers, after_round=after_round, seeded=True)
    configs = write_homes(job)
    if job.config.runtime.name == "ray":
        run_with_ray(server_app, sites=path / SITES, nodes=len(configs), runtime=job.config.runtime)
        return
    parallel = share_cores(job.config.runtime, len(configs)).parallel
    with LocalGrid(build_client_app(bench), configs, parallel=parallel) as grid:
        server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}))


def write_homes(job: Job) -> list[dict[str, str]]:
    """Writes every hospital's site file into the run folder, and returns each node's configuration."""
    folder = job.folder.path / SITES
    log_file = str((folder / INCIDENTS).resolve())
    sites = tuple(dataclasses.replace(site, log_file=log_file) for site in job.consortium.sites)
    return write_sites(with_identities(sites, folder) if job.plan.masked else without_roster(sites, folder), folder)


def _contest(job: Job, bench: Workbench, scorer: Scorer, final: Checkpoint) -> Contest:
    return Contest(
        plan=job.plan,
        consortium=job.consortium.in_the_clear(),
        bench=bench,
        parallel=share_cores(job.config.runtime, len(job.plan.hospitals) + 1).parallel,
        scorer=scorer,
        folder=job.folder.path / "comparison",
        settings=job.settings,
        description=job.folder.description(),
        initial=job.folder.checkpoints().initial(),
        final=final,
    )


def _record_failure(job: Job, observers: tuple[Observer, ...], error: BaseException, started: float) -> None:
    """Puts the end on record, and how to go on into the error's notes."""
    command = resume_command(job.folder.path)
    summary = record_failure(job.folder, observers, error, resume_command=command, seeded=True, started=started)
    for line in closing_lines({**summary, "resume_command": command}) if summary else ():
        error.add_note(line)
    incidents = job.folder.path / SITES / INCIDENTS
    if incidents.is_file():
        error.add_note(f"incidents   {incidents}")


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"fedslm simulate resume={folder}"
