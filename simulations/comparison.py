"""What training together is worth: base, each hospital alone, federated, and pooled, at the same privacy.

Every contestant runs the same rounds through the same server and client objects; a hospital alone is a federation of
one, and "pooled" is a federation of one hospital that holds everything. Each has a folder of its own below the run's, so
that an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import build_client_app
from clients.site import Site
from clients.train import Workbench
from fedslm.errors import ConfigError, RunError
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer, Event
from server.app import run_plan
from server.checkpoints import Checkpoint
from server.planning import alone
from server.run_folder import RunFolder
from simulations.consortium import Consortium, write_sites
from simulations.identities import without_roster
from simulations.local_grid import LocalGrid
from simulations.scoring import Scorer

POOLED = "all hospitals pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All that a comparison needs.

    Attributes:
      folder: where the contestants' runs are kept.
      parallel: contestants trained at the same time.
      initial: checkpoint 0 of the federated run; all start from it.
      final: its last checkpoint.
    """

    plan: Plan
    consortium: Consortium
    bench: Workbench
    parallel: int
    scorer: Scorer
    folder: Path
    settings: dict[str, Any]
    description: dict[str, Any]
    initial: Checkpoint
    final: Checkpoint


def check_comparable(consortium: Consortium) -> None:
    """Refuses a comparison that would fail after hours of training.

    Raises:
      ConfigError: a hospital has no held-out multiple choice to score.
    """
    for name, records in consortium.records.items():
        if not any(example.choices for example in records.held_out):
            raise ConfigError(
                f"compare=true but {name} has no held-out record with choices; set data.columns.choices, raise "
                "data.held_out_fraction, or set compare=false."
            )


def compare(contest: Contest, announcer: Announcer) -> dict[str, Any]:
    """Trains and scores every contestant.

    Returns:
      Accuracies 0 to 1: `base`, `single_best` (with `single_best_hospital`), `federated`, `pooled`, `majority` on the
      pooled test set; `single_own`: each hospital's own model on its own patients; `by_hospital`: see `_by_hospital`.
    """
    singles = _train_all(contest, announcer)
    pooled = singles.pop(POOLED)
    base, federated = (_sheet(contest, checkpoint) for checkpoint in (contest.initial, contest.final))
    best = max(singles, key=lambda name: singles[name].pooled)
    return {
        "base": base.pooled,
        "single_best": singles[best].pooled,
        "single_best_hospital": best,
        "single_own": {name: sheet.own[name] for name, sheet in singles.items()},
        "federated": federated.pooled,
        "pooled": pooled.pooled,
        "majority": contest.scorer.majority,
        "test_examples": len(contest.scorer.pooled),
        "by_hospital": {name: _by_hospital(contest, name, base, singles[name], federated) for name in singles},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One model's accuracies: on each hospital's held-out patients, and on all of them together."""

    own: dict[str, float]
    pooled: float


def _sheet(contest: Contest, checkpoint: Checkpoint) -> Sheet:
    sets = contest.scorer.own
    own = {name: contest.scorer.score(checkpoint.adapter, examples).accuracy for name, examples in sets.items()}
    pooled = sum(own[name] * len(sets[name]) for name in sets) / len(contest.scorer.pooled)
    return Sheet(own=own, pooled=pooled)


def _by_hospital(contest: Contest, name: str, base: Sheet, single: Sheet, federated: Sheet) -> dict[str, float]:
    """A hospital's row: base, its own model and the federated one on its own patients, its own on everybody's."""
    return {
        "base": base.own[name],
        "single_own": single.own[name],
        "federated_own": federated.own[name],
        "single": single.pooled,
        "test_examples": len(contest.scorer.own[name]),
    }


def _train_all(contest: Contest, announcer: Announcer) -> dict[str, Sheet]:
    """Trains and scores every contestant, a few at a time, the longest first; by name, the pooled one last."""
    everybody = [*contest.consortium.sites, contest.consortium.pooled(POOLED)]
    sites = sorted(everybody, key=lambda site: -site.declared_population)
    stop = threading.Event()

    def train(index: int, site: Site) -> Sheet:
        announcer.emit("comparison_started", name=site.hospital, index=index, total=len(sites))
        sheet = _sheet(contest, _train_alone(contest, site, announcer, stop))
        announcer.emit("comparison_finished", name=site.hospital, accuracy=sheet.pooled)
        return sheet

    pool = ThreadPoolExecutor(max_workers=contest.parallel, thread_name_prefix="contestant")
    try:
        done = list(pool.map(train, range(1, len(sites) + 1), sites))
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    sheets = {site.hospital: sheet for site, sheet in zip(sites, done, strict=True)}
    return {site.hospital: sheets[site.hospital] for site in everybody}


def _train_alone(contest: Contest, site: Site, announcer: Announcer, stop: threading.Event) -> Checkpoint:
    """Runs one contestant from where its folder stands."""
    names = contest.plan.names if site.hospital == POOLED else (site.hospital,)
    plan = alone(contest.plan, names, population=site.declared_population, name=site.hospital)
    folder = contest.folder / f"{site.hospital.replace(' ', '-')}-{plan.run_id}"
    with RunFolder(folder) as run:
        if (folder / "plan.json").exists():
            run.open()
        else:
            run.create(
                plan, settings=contest.settings, description=contest.description, initial=contest.initial.adapter
            )
        configs = write_sites(without_roster((site,), folder / "sites"), folder / "sites")
        relay = _Relay(announcer, site.hospital, plan.training.rounds, stop)
        with LocalGrid(build_client_app(contest.bench), configs) as grid:
            return run_plan(grid, folder, observers=(relay,), seeded=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Relay:
    """Tells the main run's observers how far a contestant is."""

    announcer: Announcer
    name: str
    rounds: int
    stop: threading.Event

    def notify(self, event: Event) -> None:
        """Passes on the end of each round.

        Raises:
          RunError: the comparison was stopped; a contestant goes on from its checkpoint when it is resumed.
        """
        if self.stop.is_set():
            raise RunError("The comparison was stopped; resume the run to go on.")
        if event.kind == "round_finished":
            self.announcer.emit("comparison_round", name=self.name, round=event.fields["round"], rounds=self.rounds)
