"""Every contradiction between settings, in one place. Each is refused before anything starts, naming both values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from fedslm.config.schema import (
    MIN_MASKED_HOSPITALS,
    NAME_PATTERN,
    DataConfig,
    FederationConfig,
    PrivacyConfig,
    check_masking,
    check_scores,
)
from fedslm.errors import ConfigError, PrivacyError


def check(config: FederationConfig) -> None:
    """Refuses settings that contradict each other.

    Raises:
      ConfigError: with both values and what to change (exit code 2).
    """
    for rule in _RULES:
        rule(config)


def check_hospitals(names: tuple[str, ...], *, min_cohort: int, masked: bool = False) -> None:
    """Refuses a federation of fewer hospitals than a federation needs.

    Args:
      masked: updates are to be encrypted, which takes three.
    Raises:
      ConfigError: one hospital only, too few to encrypt, or fewer than `min_cohort`; or a name that is none, which is not
        shown: a wrong column may hold notes.
    """
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(
                f"A value of the hospital column, {len(name)} characters long, is not a name; use 1 to 64 letters, digits, "
                "spaces, dots, dashes or underscores without accents, or set data.columns.hospital to another column."
            )
    if len(names) < 2:
        raise ConfigError(
            f"The number of hospitals in the data is {len(names)}, a federation needs at least 2; "
            "see data.columns.hospital."
        )
    if masked and len(names) < MIN_MASKED_HOSPITALS:
        check_masking(hospitals=len(names), min_cohort=min_cohort, colluders=0, honest=0)
    if len(names) < min_cohort:
        raise ConfigError(
            f"min_cohort={min_cohort} but the data has {len(names)} hospitals; lower min_cohort or add hospitals."
        )


def check_delta(delta: float, *, population: int, hospital: str) -> None:
    """Refuses a delta that would let a mechanism publish one patient in the clear (privacy.md: delta <= 1/(100 N)).

    Raises:
      PrivacyError: delta is above 1 / (100 * declared population).
    """
    largest = 1 / (100 * population)
    if delta > largest:
        raise PrivacyError(
            f"privacy.delta={delta:g} is above {largest:.2g} = 1/(100 * {population} patients) of {hospital}; "
            f"set privacy.delta={floor_delta(largest):g} or lower."
        )


def floor_delta(largest: float) -> float:
    """The largest power of ten that is at most `largest`: a delta people write down."""
    return float(10.0 ** math.floor(math.log10(largest)))


def _embedded_model_with_room(config: FederationConfig) -> None:
    if config.model.source == "embedded:tiny" and config.model.max_length_tokens > 256:
        raise ConfigError(
            f"model.max_length_tokens={config.model.max_length_tokens} but the embedded model reads 256 tokens; "
            "lower it or choose another model."
        )


def _file_has_path_and_columns(config: FederationConfig) -> None:
    data = config.data
    if data.kind == "embedded":
        return
    if data.path is None:
        raise ConfigError(f"data={data.kind} but data.path is not set; add data.path=FILE.")
    _columns_fit(data, config.privacy)


def _columns_fit(data: DataConfig, privacy: PrivacyConfig) -> None:
    if data.columns is None or data.columns.hospital is None:
        raise ConfigError(
            f"data={data.kind} but data.columns.hospital is not set; name the column that says which hospital holds a row."
        )
    if data.columns.patient_id is not None:
        return
    if privacy.unit == "patient":
        raise ConfigError(
            "privacy.unit=patient but data.columns.patient_id is not set; name the column, or set privacy.unit=record."
        )
    if privacy.max_records_per_patient is not None:
        raise ConfigError(
            f"privacy.max_records_per_patient={privacy.max_records_per_patient} but data.columns.patient_id is not set; "
            "name the column, or set the bound to null."
        )


def _embedded_takes_no_path(config: FederationConfig) -> None:
    if config.data.kind == "embedded" and config.data.path is not None:
        raise ConfigError(f"data.path={config.data.path} but data=embedded, which reads no file; use data=jsonl.")


def _record_unit_has_one_record(config: FederationConfig) -> None:
    if config.privacy.unit == "record" and config.privacy.max_records_per_unit != 1:
        raise ConfigError(
            f"privacy.unit=record but privacy.max_records_per_unit={config.privacy.max_records_per_unit}; "
            "a record is one record: set it to 1."
        )


def _patients_are_bounded_only_where_records_count(config: FederationConfig) -> None:
    if config.privacy.unit == "patient" and config.privacy.max_records_per_patient is not None:
        raise ConfigError(
            f"privacy.unit=patient but privacy.max_records_per_patient={config.privacy.max_records_per_patient}; a patient "
            "is protected with all records: set it to null, or cap a step with privacy.max_records_per_unit."
        )


def _epsilon_with_privacy(config: FederationConfig) -> None:
    if config.privacy.mode == "local" and config.privacy.epsilon is None:
        raise ConfigError(
            "privacy=local but privacy.epsilon is null; set a bound such as privacy.epsilon=8, or privacy=none."
        )
    if config.privacy.mode == "none" and config.privacy.epsilon is not None:
        raise ConfigError(f"privacy=none but privacy.epsilon={config.privacy.epsilon:g}; remove one of the two.")


def _masked_sums_hide(config: FederationConfig) -> None:
    # How many hospitals there are is not known yet; the plan checks the same numbers again with it.
    if config.secagg.mode == "masked" and config.min_cohort is not None:
        check_masking(
            hospitals=MIN_MASKED_HOSPITALS,
            min_cohort=config.min_cohort,
            colluders=config.secagg.colluders or 0,
            honest=config.secagg.honest,
        )


def _scores_leave_noised_and_masked(config: FederationConfig) -> None:
    if config.privacy.scores == "dp":
        ring_bits = config.secagg.ring_bits if config.secagg.mode == "masked" else None
        check_scores(mode=config.privacy.mode, unit=config.privacy.unit, ring_bits=ring_bits)


_RULES: tuple[Callable[[FederationConfig], None], ...] = (
    _embedded_model_with_room,
    _embedded_takes_no_path,
    _file_has_path_and_columns,
    _record_unit_has_one_record,
    _patients_are_bounded_only_where_records_count,
    _epsilon_with_privacy,
    _masked_sums_hide,
    _scores_leave_noised_and_masked,
)
