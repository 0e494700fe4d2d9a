"""Which privacy plans cannot keep a promise, and are refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting import check_delta

if TYPE_CHECKING:
    from carefl_secure.privacy.plan import PrivacyPlan

__all__ = ["as_real", "check_choice", "check_plan", "check_whole"]

_SMALLEST_SUM = 3
_MECHANISM = {"secagg": "skellam", "none": "gaussian"}


def check_plan(plan: PrivacyPlan) -> None:
    """Hold a plan's values against their ranges and against one another.

    Raises
    ------
    ConfigError
        A value is out of range or two contradict each other.
    """
    _check_numbers(plan)
    _check_cohort(plan)
    _check_mechanism(plan)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def as_real(name: str, value: object) -> float:
    """Return a finite number as a float; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be a finite number")
    return float(value)


def _check_numbers(plan: PrivacyPlan) -> None:
    check_delta(plan.delta)
    if not 0.0 < plan.sample_rate <= 1.0:
        raise ConfigError(f"sample_rate is {plan.sample_rate}; choose it above 0, at most 1")
    if plan.clipping_norm <= 0.0:
        raise ConfigError(f"clipping_norm is {plan.clipping_norm}; choose it above 0")
    if plan.noise_multiplier < 0.0:
        raise ConfigError(f"noise_multiplier is {plan.noise_multiplier}; choose it above 0")
    if plan.target_epsilon is not None and plan.target_epsilon <= 0.0:
        raise ConfigError(
            f"target_epsilon is {plan.target_epsilon}; choose it above 0 (8 is usual)"
        )
    if plan.unit in ("record", "person") and plan.delta * plan.public_records >= 1.0:
        raise ConfigError(
            f"delta {plan.delta:g} would allow to publish one of {plan.public_records} "
            f"{plan.unit}s "
            "outright; choose it well below 1 / public_records"
        )


def _check_cohort(plan: PrivacyPlan) -> None:
    if plan.min_survivors > plan.clients:
        raise ConfigError(
            f"min_survivors is {plan.min_survivors} with {plan.clients} clients; lower it or "
            "invite more clients"
        )
    if plan.max_colluders >= plan.min_survivors:
        raise ConfigError(
            f"max_colluders is {plan.max_colluders} and min_survivors {plan.min_survivors}, so "
            "no honest client need be left to make noise; raise min_survivors"
        )
    if plan.trust == "secagg" and plan.min_survivors < _SMALLEST_SUM:
        raise ConfigError(
            f"min_survivors is {plan.min_survivors}; a sum over two tells each of them the "
            f"other, so ask for at least {_SMALLEST_SUM}"
        )


def _check_mechanism(plan: PrivacyPlan) -> None:
    wanted = "none" if plan.unit == "none" else _MECHANISM[plan.trust]
    if plan.mechanism != wanted:
        raise ConfigError(
            f"unit {plan.unit!r} with trust {plan.trust!r} needs mechanism {wanted!r}, "
            f"not {plan.mechanism!r}"
        )
    if plan.unit == "none":
        if plan.noise_multiplier != 0.0 or plan.target_epsilon is not None:
            raise ConfigError(
                "unit 'none' protects nothing: set noise_multiplier to 0 and leave out "
                "target_epsilon, or choose unit 'record'"
            )
        return
    if plan.noise_multiplier == 0.0:
        raise ConfigError(
            "noise_multiplier is 0, which protects nothing; raise it, or say unit 'none'"
        )
    if plan.unit == "client" and plan.trust == "none":
        raise ConfigError("unit 'client' needs trust 'secagg': its noise is shared in the sum")
    if plan.unit == "person" and plan.trust == "none":
        raise ConfigError(
            "unit 'person' needs trust 'secagg': local noise is made for single records; set "
            "trust to 'secagg' or unit to 'record'"
        )
    if plan.unit == "client" and plan.sample_rate != 1.0:
        raise ConfigError(
            "unit 'client' gains nothing from sampling, as the server knows who takes part; "
            "set sample_rate to 1"
        )
    if plan.local_steps > 1 and not (plan.unit == "record" and plan.trust == "none"):
        raise ConfigError(
            f"local_steps is {plan.local_steps}; a secure round releases one sum, set it to 1"
        )
