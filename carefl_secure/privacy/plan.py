"""The one frozen description from which sampling, noise, accounting and the promise derive."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting import check_delta
from carefl_secure.privacy.events import SampledGaussian, SampledSkellam
from carefl_secure.privacy.promise import promise_text

__all__ = ["Adjacency", "Mechanism", "PrivacyPlan", "Trust", "Unit"]

Unit = Literal["record", "client", "none"]
Trust = Literal["secagg", "none"]
Adjacency = Literal["add-or-remove-one"]
Mechanism = Literal["skellam", "gaussian", "none"]

_FORMAT = "carefl.plan/1"
_SMALLEST_SUM = 3


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What is protected, how, and against whom; every client agrees on its hash beforehand.

    Parameters
    ----------
    unit : {"record", "client", "none"}
        What one more or less of must not show; ``"none"`` switches protection off.
    trust : {"secagg", "none"}
        Whether noise is shared under the secure sum or made whole by every client for itself.
    mechanism : {"skellam", "gaussian", "none"}
        Skellam under the secure sum, Gaussian without, none for unit none.
    rounds : int
        How many rounds are planned.
    clients : int
        How many clients are invited.
    min_survivors : int
        A round that ends with fewer clients releases nothing.
    max_colluders : int
        How many clients may tell the server everything and the promise still holds.
    public_records : int
        Declared number of records of all clients together; public, never counted from data.
    delta : float
        Probability with which epsilon may fail, in [1e-10, 1e-2].
    sample_rate : float
        Probability of each record in one step; 1 for unit client.
    clipping_norm : float
        Bound C on what one unit adds.
    noise_multiplier : float
        Standard deviation of all noise counted, over the norm bound; 0 for unit none.
    target_epsilon : float, optional
        What the noise was chosen for.
    local_steps : int
        Noisy steps in a round; more than 1 only for unit record with trust none.
    normalise : bool
        Scale every record to nearly norm C in place of clipping to it.
    adjacency : {"add-or-remove-one"}
        Which data sets count as neighbours.

    Raises
    ------
    ConfigError
        A value is out of range or two contradict each other.
    """

    unit: Unit
    trust: Trust
    mechanism: Mechanism
    rounds: int
    clients: int
    min_survivors: int
    max_colluders: int
    public_records: int
    delta: float
    sample_rate: float
    clipping_norm: float
    noise_multiplier: float
    target_epsilon: float | None = None
    local_steps: int = 1
    normalise: bool = True
    adjacency: Adjacency = "add-or-remove-one"

    def __post_init__(self) -> None:
        """Refuse a plan that cannot keep a promise, and bring numbers to one form."""
        _choose("unit", self.unit, get_args(Unit))
        _choose("trust", self.trust, get_args(Trust))
        _choose("mechanism", self.mechanism, get_args(Mechanism))
        _choose("adjacency", self.adjacency, get_args(Adjacency))
        for name in ("rounds", "clients", "min_survivors", "public_records", "local_steps"):
            _whole(name, getattr(self, name), 1)
        _whole("max_colluders", self.max_colluders, 0)
        if not isinstance(self.normalise, bool):
            raise ConfigError(f"normalise is {self.normalise!r}; choose true or false")
        for name in ("delta", "sample_rate", "clipping_norm", "noise_multiplier"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if self.target_epsilon is not None:
            object.__setattr__(self, "target_epsilon", _real("target_epsilon", self.target_epsilon))
        self._check_numbers()
        self._check_cohort()
        self._check_mechanism()

    def _check_numbers(self) -> None:
        check_delta(self.delta)
        if not 0.0 < self.sample_rate <= 1.0:
            raise ConfigError(f"sample_rate is {self.sample_rate}; choose it above 0, at most 1")
        if self.clipping_norm <= 0.0:
            raise ConfigError(f"clipping_norm is {self.clipping_norm}; choose it above 0")
        if self.noise_multiplier < 0.0:
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier}; choose it above 0")
        if self.target_epsilon is not None and self.target_epsilon <= 0.0:
            raise ConfigError(
                f"target_epsilon is {self.target_epsilon}; choose it above 0 (8 is usual)"
            )
        if self.unit == "record" and self.delta * self.public_records >= 1.0:
            raise ConfigError(
                f"delta {self.delta:g} would allow to publish one of {self.public_records} records "
                "outright; choose it well below 1 / public_records"
            )

    def _check_cohort(self) -> None:
        if self.min_survivors > self.clients:
            raise ConfigError(
                f"min_survivors is {self.min_survivors} with {self.clients} clients; lower it or "
                "invite more clients"
            )
        if self.max_colluders >= self.min_survivors:
            raise ConfigError(
                f"max_colluders is {self.max_colluders} and min_survivors {self.min_survivors}, so "
                "no honest client need be left to make noise; raise min_survivors"
            )
        if self.trust == "secagg" and self.min_survivors < _SMALLEST_SUM:
            raise ConfigError(
                f"min_survivors is {self.min_survivors}; a sum over two tells each of them the "
                f"other, so ask for at least {_SMALLEST_SUM}"
            )

    def _check_mechanism(self) -> None:
        wanted = "none" if self.unit == "none" else _MECHANISM[self.trust]
        if self.mechanism != wanted:
            raise ConfigError(
                f"unit {self.unit!r} with trust {self.trust!r} needs mechanism {wanted!r}, "
                f"not {self.mechanism!r}"
            )
        if self.unit == "none":
            if self.noise_multiplier != 0.0 or self.target_epsilon is not None:
                raise ConfigError(
                    "unit 'none' protects nothing: set noise_multiplier to 0 and leave out "
                    "target_epsilon, or choose unit 'record'"
                )
            return
        if self.noise_multiplier == 0.0:
            raise ConfigError(
                "noise_multiplier is 0, which protects nothing; raise it, or say unit 'none'"
            )
        if self.unit == "client" and self.trust == "none":
            raise ConfigError("unit 'client' needs trust 'secagg': its noise is shared in the sum")
        if self.unit == "client" and self.sample_rate != 1.0:
            raise ConfigError(
                "unit 'client' gains nothing from sampling, as the server knows who takes part; "
                "set sample_rate to 1"
            )
        if self.local_steps > 1 and not (self.unit == "record" and self.trust == "none"):
            raise ConfigError(
                f"local_steps is {self.local_steps}; a secure round releases one sum, set it to 1"
            )

    @property
    def noise_clients(self) -> int:
        """Honest clients that are certain to add noise: ``min_survivors - max_colluders``."""
        return self.min_survivors - self.max_colluders

    @property
    def expected_batch(self) -> float:
        """Public divisor of a sum: ``sample_rate * public_records``."""
        return self.sample_rate * self.public_records

    def skellam_event(
        self, *, l1: float, l2: float, share_variance: float, beta: float,
        rounds: int = 1, dimension: int | None = None,
    ) -> SampledSkellam:  # fmt: skip
        """Describe rounds in which every client adds Skellam noise of ``share_variance``.

        Parameters
        ----------
        l1, l2 : float
            Norm bounds of one unit after rounding, in integer units.
        share_variance : float
            Variance per coordinate that one client adds, in integer units.
        beta : float
            Probability that the rounding of a round breaks the bounds.
        rounds : int
            How many rounds.
        dimension : int, optional
            Length of the vector of integers, padding included; without it only RDP can price it.

        Returns
        -------
        SampledSkellam
            Only the noise of ``noise_clients`` honest survivors is counted.

        Raises
        ------
        ConfigError
            The plan is not for Skellam noise, or the variance is below what the plan promises.
        """
        if self.mechanism != "skellam":
            raise ConfigError(f"this plan uses mechanism {self.mechanism!r}, not 'skellam'")
        variance = share_variance * self.noise_clients
        if variance < (self.noise_multiplier * l2) ** 2 * (1.0 - 1e-9):
            raise ConfigError(
                f"a share of variance {share_variance:g} from {self.noise_clients} honest clients "
                f"is below noise_multiplier {self.noise_multiplier:g} at norm {l2:g}; size the "
                "encoding for this plan"
            )
        return SampledSkellam(self.sample_rate, l1, l2, variance, rounds, beta, dimension)

    def gaussian_event(self, rounds: int = 1) -> SampledGaussian:
        """Describe rounds of ``local_steps`` steps with a client's own Gaussian noise.

        Parameters
        ----------
        rounds : int
            How many rounds.

        Returns
        -------
        SampledGaussian

        Raises
        ------
        ConfigError
            The plan is not for Gaussian noise.
        """
        if self.mechanism != "gaussian":
            raise ConfigError(f"this plan uses mechanism {self.mechanism!r}, not 'gaussian'")
        return SampledGaussian(self.sample_rate, self.noise_multiplier, rounds * self.local_steps)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, with its format."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    def hash(self) -> bytes:
        """Return the SHA-256 of the canonical JSON of the plan, 32 bytes."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).digest()

    def promise(self, epsilon: float) -> str:
        """Say in plain words what the plan promises at a computed epsilon.

        Parameters
        ----------
        epsilon : float
            What the accountant found for ``delta``, not below 0.

        Returns
        -------
        str
            Sentences for a report: unit, adjacency, epsilon, delta, against whom, how strong, and
            what stays open.

        Raises
        ------
        ConfigError
            ``epsilon`` is negative or NaN.
        """
        return promise_text(
            unit=self.unit,
            trust=self.trust,
            epsilon=epsilon,
            delta=self.delta,
            colluders=self.max_colluders,
        )


_MECHANISM = {"secagg": "skellam", "none": "gaussian"}


def _choose(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be a finite number")
    return float(value)
