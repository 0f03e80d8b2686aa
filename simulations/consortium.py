"""A consortium on one disk: every hospital's site file, made from the settings, read by clients exactly as at home."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from clients.records import Records, read_records
from clients.records.jsonl import hospitals_in
from clients.site import SIMULATION_KEY, SITE_FILE_KEY, RecordSource, Site
from fedslm.config.checks import check_hospitals
from fedslm.config.schema import DataConfig, FederationConfig, RuntimeConfig
from fedslm.data.hospitals import hospital_names
from fedslm.data.partition import count_units
from server.planning import least_cohort


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """All sites of a simulation, and the records in them: the harness owns them all.

    Attributes:
      sites: in plan order.
      records: by hospital name.
    """

    sites: tuple[Site, ...]
    records: dict[str, Records]

    @property
    def population(self) -> dict[str, int]:
        """Declared privacy units by hospital, in plan order."""
        return {site.hospital: site.declared_population for site in self.sites}

    def in_the_clear(self) -> Consortium:
        """The same sites for plans that are not masked: those of one hospital by itself."""
        sites = tuple(dataclasses.replace(site, allow_unmasked=True) for site in self.sites)
        return dataclasses.replace(self, sites=sites)

    def pooled(self, name: str) -> Site:
        """One site that holds every hospital's records: what no consortium could have, as the yardstick."""
        sources = tuple(source for site in self.sites for source in site.sources)
        population = sum(self.population.values())
        return dataclasses.replace(self.sites[0], hospital=name, sources=sources, declared_population=population)


def gather(config: FederationConfig, *, log_file: Path | None = None) -> Consortium:
    """Makes the sites that the settings describe and reads their records once.

    In a simulation each hospital declares the number of units it was given; a deployment declares a constant.

    Raises:
      ConfigError: fewer than two hospitals, or than three for a masked run.
      DataError: unreadable records, an empty hospital, missing patient ids.
    """
    names = _names(config)
    least = least_cohort(config, len(names))
    check_hospitals(names, min_cohort=least, masked=config.secagg.mode == "masked")
    records: dict[str, Records] = {}
    sites = []
    for name in names:
        site = _site(config, name, names, log_file)
        records[name] = read_records(site)
        units = count_units(records[name].train, unit=config.privacy.unit)
        sites.append(dataclasses.replace(site, declared_population=units))
    return Consortium(sites=tuple(sites), records=records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How a machine's cores are shared out: `parallel` hospitals at a time, `threads` torch threads each."""

    parallel: int
    threads: int


def share_cores(runtime: RuntimeConfig, hospitals: int) -> Shares:
    """Fills in the zeros of the runtime's settings.

    Small models gain more from hospitals side by side than from several threads on one small matrix (measured on two
    cores: 1.7 times against 1.2). On a GPU hospitals take turns.
    """
    cores = len(os.sched_getaffinity(0))
    parallel = runtime.parallel or (1 if torch.cuda.is_available() else cores)
    parallel = min(parallel, hospitals)
    return Shares(parallel=parallel, threads=runtime.threads or max(1, cores // parallel))


def write_sites(sites: tuple[Site, ...], folder: Path) -> list[dict[str, str]]:
    """Writes 0.yaml, 1.yaml, ... and returns each node's configuration, as `--node-config` would give it."""
    folder.mkdir(parents=True, exist_ok=True)
    configs = []
    for number, site in enumerate(sites):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(_plain(site), sort_keys=False))
        configs.append({SITE_FILE_KEY: str(path.resolve()), SIMULATION_KEY: "true"})
    return configs


def _plain(site: Site) -> dict[str, object]:
    values = dataclasses.asdict(site)
    return {**values, "sources": [dict(source) for source in values["sources"]]}


def _names(config: FederationConfig) -> tuple[str, ...]:
    if config.data.kind == "embedded":
        return hospital_names()
    return tuple(hospitals_in(_source(config.data, seed=config.seed, hospital=None)))


def _site(config: FederationConfig, name: str, names: tuple[str, ...], log_file: Path | None) -> Site:
    return Site(
        hospital=name,
        sources=(_source(config.data, seed=config.seed, hospital=name),),
        unit=config.privacy.unit,
        declared_population=1,  # replaced as soon as the records are read
        budget_epsilon=config.privacy.epsilon or "unlimited",
        allow_privacy_none=config.privacy.mode == "none",
        allow_unmasked=config.secagg.mode == "none",
        min_colluders=config.secagg.colluders,
        simulation_seed=config.seed,
        physical_batch_size=config.training.physical_batch_size,
        threads=share_cores(config.runtime, len(names)).threads,
        log_file=None if log_file is None else str(log_file.resolve()),
    )


def _source(data: DataConfig, *, seed: int, hospital: str | None) -> RecordSource:
    return RecordSource(
        kind=data.kind,
        path=None if data.path is None else str(Path(data.path).expanduser().resolve()),
        columns=data.columns,
        hospital=hospital,
        seed=seed,
        scale=data.scale,
        held_out_fraction=data.held_out_fraction,
        shuffle_labels=data.shuffle_labels,
    )
