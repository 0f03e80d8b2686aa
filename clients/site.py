"""`site.yaml`: what belongs to one hospital and cannot be set from outside."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedslm.config.checks import check_delta
from fedslm.config.schema import STRICT, ColumnMap, Count, Name, Positive, PrivacyUnit, build
from fedslm.errors import BudgetExceededError, ConfigError
from fedslm.governance.plan import Plan, PlannedSecAgg, Sha256
from fedslm.secagg.terms import default_colluders

SITE_FILE_KEY = "site-file"
SITES_FOLDER_VARIABLE = "FEDSLM_SITES"
SIMULATION_KEY = "simulation"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class RecordSource:
    """One place a hospital's records come from.

    Attributes:
      kind: "jsonl" for a file; "embedded" for one hospital of the synthetic consortium.
      path: the file.
      columns: the column map of the file.
      hospital: keep only the rows of this hospital (of a file that holds several), or which embedded hospital.
      seed, scale: of the embedded consortium.
      held_out_fraction: share of patients never trained on, where the source does not split by itself.
      shuffle_labels: a control for simulations: answers are permuted over the records.
    """

    kind: Literal["jsonl", "embedded"]
    path: str | None = None
    columns: ColumnMap | None = None
    hospital: str | None = None
    seed: int = 0
    scale: Annotated[float, Field(gt=0)] = 1.0
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    shuffle_labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What a hospital signs with, and where it keeps what outlives a message; see `Site`.

    Attributes:
      anchor_file: None in a simulation only.
    """

    identity: Path
    passphrase_file: Path | None
    state_folder: Path
    anchor_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterPin:
    """Whom a hospital trusts; see `Site`."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one population's patients may be exposed to, over its life.

    Attributes:
      epsilon: math.inf where the site file says "unlimited".
    """

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Site:
    """One hospital's own settings.

    Attributes:
      hospital: its name, as in the plan.
      sources: where its records are.
      unit: what it wants protected; a plan with another unit is refused.
      declared_population: how many such units it declares; the public normaliser rests on it.
      population: whose records these are. One ledger is kept for each population, for life.
      budget_epsilon, budget_delta: what all plans together may spend on the population; "unlimited" only where privacy may
        be given up. None as delta is 1/(100 * declared_population), which is also the most that one plan may have; up to
        ten times that may be allowed by hand, for a ledger that was lost.
      max_epsilon: a plan that spends more is refused; None sets no bound of its own.
      allow_privacy_none: whether a plan without privacy may be trained at all; it needs an unlimited budget.
      simulation_seed: seeded sampling and noise, for simulations only; a node that is none refuses every plan while it is
        set. In a deployment it is absent and both come from the operating system's generator.
      log_file: where incidents are explained; it never leaves the hospital.
      identity: file of its signing keys.
      passphrase_file: file of their passphrase; None where they have none.
      roster: file of the consortium's roster.
      roster_sha256: the roster that this hospital compared with the others and trusts; no other is accepted.
      state_folder: folder for what must outlive a message: the ledger, `clients/store.py` and what is sealed beside it.
      anchor_file: where the ledger's newest row is noted again: on another disk than `state_folder`, so that a restored
        backup of the one does not pass. Only a simulation may do without.
      allow_unmasked: whether a plan may be trained under which the coordinator can read this hospital's updates.
      min_cohort: a masked plan that lets fewer hospitals make a sum is refused.
      min_colluders: a masked plan that promises less against colluders is refused; None asks for floor((n-1)/3) of its n.
      min_honest: a masked plan under which a sum may hold fewer honest updates is refused.
    """

    hospital: Name
    sources: Annotated[tuple[RecordSource, ...], Field(min_length=1)]
    unit: PrivacyUnit
    declared_population: Count
    population: Name = "patients"
    budget_epsilon: Positive | Literal["unlimited"] = 8.0
    budget_delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_epsilon: Positive | None = None
    allow_privacy_none: bool = False
    simulation_seed: int | None = None
    physical_batch_size: Count = 32
    threads: Annotated[int, Field(ge=0)] = 0
    log_file: str | None = None
    identity: str | None = None
    passphrase_file: str | None = None
    roster: str | None = None
    roster_sha256: Sha256 | None = None
    state_folder: str | None = None
    anchor_file: str | None = None
    allow_unmasked: bool = False
    min_cohort: Annotated[int, Field(ge=3)] = 3
    min_colluders: Annotated[int, Field(ge=0)] | None = None
    min_honest: Annotated[int, Field(ge=2)] = 2

    def __post_init__(self) -> None:
        if self.budget_delta is not None and self.budget_delta > 1 / (10 * self.declared_population):
            raise ConfigError(
                f"site.yaml of {self.hospital} has budget_delta={self.budget_delta:g}, above "
                f"{1 / (10 * self.declared_population):.2g} = 1/(10 * {self.declared_population} {self.unit}s); lower it."
            )
        if self.allow_privacy_none and self.budget_epsilon != "unlimited":
            raise ConfigError(
                f"site.yaml of {self.hospital} has allow_privacy_none=true and budget_epsilon={self.budget_epsilon:g}, but a "
                "plan without privacy has no epsilon; set budget_epsilon=unlimited, or allow_privacy_none=false."
            )
        if self.anchor_file is not None and self.state_folder is not None:
            self._require_apart(Path(self.anchor_file), Path(self.state_folder))

    def approve(self, plan: Plan) -> None:
        """Accepts a plan that this hospital's policy covers.

        Raises:
          ConfigError: the plan and this site disagree; both values are named, for the local log.
          BudgetExceededError: the plan alone spends more than the budget.
        """
        planned = plan.hospital(self.hospital)
        if plan.privacy.mode == "none" and not self.allow_privacy_none:
            raise ConfigError(
                f"The plan has privacy=none and site.yaml of {self.hospital} has allow_privacy_none=false."
            )
        if plan.privacy.unit != self.unit:
            raise ConfigError(f"The plan protects the {plan.privacy.unit}, site.yaml asks for the {self.unit}.")
        if planned.declared_population != self.declared_population:
            raise ConfigError(
                f"The plan declares {planned.declared_population} {self.unit}s, site.yaml {self.declared_population}."
            )
        if self.max_epsilon is not None and (plan.privacy.epsilon or float("inf")) > self.max_epsilon:
            raise ConfigError(f"The plan spends epsilon {plan.privacy.epsilon}, site.yaml allows {self.max_epsilon}.")
        if (plan.privacy.epsilon or 0.0) > self.budget.epsilon:
            raise BudgetExceededError(
                f"The plan spends epsilon {plan.privacy.epsilon}, the budget of {self.hospital} is {self.budget.epsilon:g}."
            )
        if plan.privacy.mode == "local":
            check_delta(plan.privacy.delta, population=self.declared_population, hospital=self.hospital)
        if not plan.masked and not self.allow_unmasked:
            raise ConfigError(
                f"The plan is not masked, so the coordinator could read updates, and site.yaml of {self.hospital} has "
                "allow_unmasked=false."
            )
        self.home()
        if plan.secagg is not None:
            self.roster_pin()
            self._require_promise(plan, plan.secagg)

    def _require_promise(self, plan: Plan, promised: PlannedSecAgg) -> None:
        """The coordinator writes the plan: how much it is kept from reading must not be for it alone to say."""
        default = default_colluders(len(plan.hospitals))
        asked = {
            "min_cohort": (plan.min_cohort, self.min_cohort),
            "min_colluders": (promised.colluders, default if self.min_colluders is None else self.min_colluders),
            "min_honest": (promised.honest, self.min_honest),
        }
        for name, (offered, least) in asked.items():
            if offered < least:
                raise ConfigError(
                    f"The plan's {name.removeprefix('min_')} is {offered}, site.yaml of {self.hospital} asks for at least "
                    f"{name}={least}."
                )

    def _require_apart(self, anchor: Path, folder: Path) -> None:
        if anchor.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"site.yaml of {self.hospital} has its anchor_file {anchor} inside the state_folder {folder}; a backup of the "
                "one would bring back the other: put it on another disk."
            )

    @property
    def budget(self) -> Budget:
        """What the site file allows to be spent on the population."""
        epsilon = math.inf if self.budget_epsilon == "unlimited" else self.budget_epsilon
        delta = 1 / (100 * self.declared_population) if self.budget_delta is None else self.budget_delta
        return Budget(epsilon=epsilon, delta=delta)

    def home(self) -> Home:
        """The settings that every plan needs: what is spent is on a signed ledger.

        Raises:
          ConfigError: some are missing, by name.
        """
        self._require("identity", "state_folder")
        return Home(
            identity=Path(str(self.identity)),
            passphrase_file=None if self.passphrase_file is None else Path(self.passphrase_file),
            state_folder=Path(str(self.state_folder)),
            anchor_file=None if self.anchor_file is None else Path(self.anchor_file),
        )

    def roster_pin(self) -> RosterPin:
        """The settings that a masked plan needs besides.

        Raises:
          ConfigError: some are missing, by name.
        """
        self._require("roster", "roster_sha256")
        return RosterPin(path=Path(str(self.roster)), sha256=str(self.roster_sha256))

    def _require(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ConfigError(f"The plan needs {', '.join(missing)} in site.yaml of {self.hospital}.")


def own_site(node_config: dict[str, Any]) -> Site:
    """The site of the node this process runs for, fit for work.

    Raises:
      ConfigError: see `find_site` and `read_site`; or a setting that only a simulation may have or do without.
    """
    site = read_site(find_site(node_config))
    if is_simulated(node_config):
        return site
    if site.simulation_seed is not None:
        raise ConfigError(
            f"site.yaml of {site.hospital} has simulation_seed={site.simulation_seed}, so its noise would hide nothing; "
            "remove the line."
        )
    return with_anchor(site)


def with_anchor(site: Site) -> Site:
    """The site, where it has an anchor or is one of a simulation.

    Raises:
      ConfigError: it has none.
    """
    if site.anchor_file is None and site.simulation_seed is None:
        raise ConfigError(
            f"site.yaml of {site.hospital} has no anchor_file; name a file on another disk than state_folder, so that an old "
            "copy of the ledger is found out."
        )
    return site


def is_simulated(node_config: dict[str, Any]) -> bool:
    """Whether a harness started this node: it says so in the node's own configuration, or in the environment."""
    return SITE_FILE_KEY not in node_config or node_config.get(SIMULATION_KEY) == "true"


def read_site(path: Path) -> Site:
    """Reads and validates a site file; again only after it changed, because every message asks for it several times.

    Raises:
      ConfigError: missing, not YAML, or a wrong value, with the setting's name.
    """
    try:
        found = path.stat()
        return _read_site(path, found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError as error:
        raise ConfigError(f"The site file {path} cannot be read: {error.strerror}.") from None


@functools.lru_cache(maxsize=64)
def _read_site(path: Path, *_version: int) -> Site:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"The site file {path} is not YAML.") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"The site file {path} is empty; it needs at least hospital, sources, unit and declared_population."
        )
    return build(Site, values, where=f"{path}: ")


def find_site(node_config: dict[str, Any]) -> Path:
    """The site file of the node this process runs for.

    A node names it in its own configuration. Flower's simulation engine gives a node only its number: there the harness
    names a folder in an environment variable, and the node's file in it is NUMBER.yaml. No message can set either.

    Raises:
      ConfigError: neither is set.
    """
    if SITE_FILE_KEY in node_config:
        return Path(str(node_config[SITE_FILE_KEY]))
    folder = os.environ.get(SITES_FOLDER_VARIABLE)
    if folder and "partition-id" in node_config:
        return Path(folder) / f"{node_config['partition-id']}.yaml"
    raise ConfigError(
        f"This node names no site file; start it with --node-config '{SITE_FILE_KEY}=\"/path/site.yaml\"'."
    )
