"""The one frozen description from which sampling, noise, accounting and the promise derive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.accountant import check_delta
from carefl_secure.privacy.accounting.events import SampledGaussian, SampledSkellam, check_whole
from carefl_secure.privacy.banded import response
from carefl_secure.privacy.sampling import any_of
from carefl_secure.privacy.statement import promise_text
from carefl_secure.strict_json import canonical_hash, dataclass_from_json

Unit = Literal["record", "person", "client", "none"]
Trust = Literal["secagg", "none"]
Adjacency = Literal["add-or-remove-one"]
Mechanism = Literal["skellam", "gaussian", "none"]

_FORMAT = "carefl.plan/1"
_SMALLEST_SUM = 3
_PROMISE = ("unit", "trust", "mechanism", "delta", "target_epsilon", "max_colluders", "correlation")
_OPTIONAL = ("records_per_person", "correlation", "target_unclipped_quantile")
_MECHANISM = {"secagg": "skellam", "none": "gaussian"}


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    r"""What is protected, how, and against whom; every client agrees on its hash beforehand.

    ConfigError where a value is out of range or two contradict each other. Where ``records_per_person`` is given, for
    unit person, records are sampled and clipped one by one, and no person has more than this many; without it a person
    is sampled as a whole and its mean gradient is clipped. ``correlation`` holds numerators :math:`m_0, \ldots,
    m_{b-1}` of b bands, over :math:`m_0`, for unit record under the secure sum: each round's noise takes back part of
    that of the b - 1 rounds before, and each record has one round in b.
    """

    unit: Unit  # what one more or less of must not show; "none" switches protection off
    trust: Trust  # noise shared under the secure sum, or added in full by every client
    mechanism: Mechanism  # Skellam under the secure sum, Gaussian without, none for unit none
    rounds: int
    clients: int
    min_survivors: int  # a round that ends with fewer clients releases nothing
    max_colluders: int  # how many may reveal everything to the server and the promise still holds
    public_records: int  # declared records (unit person: persons) of all clients; public, never counted from data
    delta: float  # probability with which epsilon may fail, in [1e-10, 1e-2]
    sample_rate: float  # probability of each record, or of each person drawn whole, in one step; 1 for unit client
    clipping_norm: float  # bound C on what one unit adds, or on one record where records_per_person is given
    noise_multiplier: float  # standard deviation of all noise counted, over `sensitivity`; 0 for unit none
    target_epsilon: float | None = None  # what the noise was chosen for
    local_steps: int = 1  # noisy steps in a round; more than 1 only for unit record with trust none
    normalise: bool = True  # scale every record to nearly norm C in place of clipping to it
    adjacency: Adjacency = "add-or-remove-one"
    records_per_person: int | None = None
    correlation: tuple[int, ...] | None = None
    target_unclipped_quantile: float | None = None  # what the norm follows, from `clipping_norm` on

    def __post_init__(self) -> None:
        """Refuse a plan that cannot keep a promise, and bring numbers to one form."""
        for name, allowed in (("unit", Unit), ("trust", Trust), ("mechanism", Mechanism), ("adjacency", Adjacency)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(get_args(allowed))}")
        for name in ("rounds", "clients", "min_survivors", "public_records", "local_steps"):
            check_whole(name, getattr(self, name), 1)
        check_whole("max_colluders", self.max_colluders, 0)
        if self.records_per_person is not None:
            check_whole("records_per_person", self.records_per_person, 1)
            if self.unit != "person":
                raise ConfigError(
                    "records_per_person bounds what one person adds; set unit to 'person' or leave it out"
                )
        if not isinstance(self.normalise, bool):
            raise ConfigError(f"normalise is {self.normalise!r}; choose true or false")
        for name in ("delta", "sample_rate", "clipping_norm", "noise_multiplier"):
            object.__setattr__(self, name, _as_real(name, getattr(self, name)))
        if self.target_epsilon is not None:
            object.__setattr__(self, "target_epsilon", _as_real("target_epsilon", self.target_epsilon))
        _check_numbers(self)
        _check_cohort(self)
        _check_mechanism(self)
        if self.correlation is not None:
            _check_correlation(self, self.correlation)
        if (quantile := self.target_unclipped_quantile) is not None:
            fixed = self.normalise or self.correlation is not None or self.records_per_person is not None
            if self.mechanism != "skellam" or fixed or not 0.0 < _as_real("quantile", quantile) < 1.0:
                raise ConfigError(
                    f"a clipping norm that follows the quantile {quantile!r} needs a number between 0 and 1, trust "
                    "'secagg', independent noise, normalise=false and no records_per_person; leave it out otherwise"
                )

    @property
    def limit(self) -> float:
        """Most epsilon that the run may spend; infinity where nothing is protected."""
        return math.inf if self.target_epsilon is None else self.target_epsilon

    def same_promise(self, other: PrivacyPlan) -> bool:
        """Tell whether another plan, such as that of another stage, makes the same promise."""
        return all(getattr(self, name) == getattr(other, name) for name in _PROMISE)

    @property
    def noise_clients(self) -> int:
        """Honest clients that are certain to add noise: ``min_survivors - max_colluders``."""
        return self.min_survivors - self.max_colluders

    @property
    def event_rate(self) -> float:
        r"""Probability with which one unit enters one sum.

        It is q, and :math:`1 - (1 - q)^k` where each of a person's k records is drawn with probability q. One event of
        that rate and of sensitivity ``k C`` then covers a person: given which of its records were drawn, the sum
        shifts by a fixed vector of norm ``k C`` at most, and not at all with probability :math:`(1 - q)^k`. The law
        with the person is thus a mixture of the law without it, of weight :math:`(1 - q)^k`, and of laws shifted by
        ``k C`` at most. The hockey-stick divergence is jointly convex, in both directions, so the farthest such
        mixture is the one whose every shift is the worst: a mechanism of sensitivity ``k C`` that takes the person
        with probability :math:`1 - (1 - q)^k` (Balle, Barthe and Gaboardi, NeurIPS 2018).
        """
        return any_of(self.sample_rate, self.records_per_person or 1)

    @property
    def bands(self) -> int:
        """Rounds of which each record has one, and whose noise is correlated; 1 for independent noise."""
        return len(self.correlation or (1,))

    @property
    def cycles(self) -> int:
        """Most rounds that one record can be in: ``ceil(rounds / bands)``."""
        return -(-self.rounds // self.bands)

    @property
    def round_rate(self) -> float:
        """Probability with which a record enters a round of its own: ``bands`` times the sample rate."""
        return min(1.0, self.bands * self.sample_rate)

    @property
    def sensitivity(self) -> float:
        """Largest 2-norm of what one unit adds to a sum: C, or k C with k records per person."""
        return self.clipping_norm * (self.records_per_person or 1)

    @property
    def expected_batch(self) -> float:
        """Public divisor of a sum: units expected in it, ``event_rate * public_records``."""
        return self.event_rate * self.public_records

    def skellam_event(
        self, *, l1: float, l2: float, share_variance: float, beta: float,
        rounds: int = 1, dimension: int | None = None,
    ) -> SampledSkellam:  # fmt: skip
        """Describe rounds in which every client adds Skellam noise of ``share_variance``.

        Only the noise of ``noise_clients`` honest survivors is counted. All in integer units.

        ConfigError where the plan is not for Skellam noise, or the variance is below what the plan promises.

        Parameters
        ----------
        l1, l2 : float
            Norm bounds of one unit after rounding.
        share_variance : float
            Variance per coordinate that one client adds.
        beta : float
            Probability that the rounding of a round breaks the bounds.
        dimension : int, optional
            Length of the vector of integers, padding included; without it only RDP can price it.
        """
        if self.mechanism != "skellam":
            raise ConfigError(f"this plan uses mechanism {self.mechanism!r}, not 'skellam'")
        variance = share_variance * self.noise_clients
        if variance < (self.noise_multiplier * l2) ** 2 * (1.0 - 1e-9):
            raise ConfigError(
                f"a share of variance {share_variance:g} from {self.noise_clients} honest clients is below "
                f"noise_multiplier {self.noise_multiplier:g} at norm {l2:g}; size the encoding for this plan"
            )
        return SampledSkellam(self.event_rate, l1, l2, variance, rounds, beta, dimension)

    def gaussian_event(self, rounds: int = 1) -> SampledGaussian:
        """Describe rounds of ``local_steps`` steps with a client's own Gaussian noise."""
        if self.mechanism != "gaussian":
            raise ConfigError(f"this plan uses mechanism {self.mechanism!r}, not 'gaussian'")
        return SampledGaussian(self.sample_rate, self.noise_multiplier, rounds * self.local_steps)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, with its format."""
        fields = dataclasses.asdict(self)
        for name in _OPTIONAL:  # plans without them keep the hash they always had
            if fields[name] is None:
                del fields[name]
        return {"format": _FORMAT, **fields}

    @classmethod
    def from_json(cls, value: Any) -> PrivacyPlan:
        """Return the plan that `to_json` gave; ConfigError for anything else."""
        fields = dict(value) if isinstance(value, Mapping) else {}
        if (found := fields.pop("format", None)) != _FORMAT:
            raise ConfigError(f"a plan of format {found!r} cannot be read; {_FORMAT!r} is known")
        return dataclass_from_json(cls, fields, *_OPTIONAL)

    def hash(self) -> bytes:
        """Return the SHA-256 of the canonical JSON of the plan, 32 bytes."""
        return canonical_hash(self.to_json())

    def budget_text(self) -> str:
        """Say how much noise keeps all rounds within the budget."""
        return (
            f"noise multiplier {self.noise_multiplier:.3f} for epsilon {self.target_epsilon:g} "
            f"over {self.rounds} rounds" + f", banded: each record is in one of {self.bands}" * (self.bands > 1)
        )

    def promise(self, epsilon: float) -> str:
        """Say what the plan promises at the epsilon found: unit, adjacency, delta, against whom, what stays open."""
        return promise_text(
            unit=self.unit, trust=self.trust, epsilon=epsilon, delta=self.delta, colluders=self.max_colluders,
            records_per_person=self.records_per_person, bands=self.bands,
        )  # fmt: skip


def _as_real(name: str, value: object) -> float:
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
        raise ConfigError(f"target_epsilon is {plan.target_epsilon}; choose it above 0 (8 is usual)")
    if plan.unit in ("record", "person") and plan.delta * plan.public_records >= 1.0:
        raise ConfigError(
            f"delta {plan.delta:g} would allow one of {plan.public_records} {plan.unit}s to be published outright; "
            "choose it well below 1 / public_records"
        )


def _check_cohort(plan: PrivacyPlan) -> None:
    if plan.min_survivors > plan.clients:
        raise ConfigError(
            f"min_survivors is {plan.min_survivors} with {plan.clients} clients; lower it or invite more clients"
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
            f"unit {plan.unit!r} with trust {plan.trust!r} needs mechanism {wanted!r}, not {plan.mechanism!r}"
        )
    if plan.unit == "none":
        if plan.noise_multiplier != 0.0 or plan.target_epsilon is not None:
            raise ConfigError(
                "unit 'none' protects nothing: set noise_multiplier to 0 and leave out "
                "target_epsilon, or choose unit 'record'"
            )
        return
    if plan.noise_multiplier == 0.0:
        raise ConfigError("noise_multiplier is 0, which protects nothing; raise it, or say unit 'none'")
    if plan.unit == "client" and plan.trust == "none":
        raise ConfigError("unit 'client' needs trust 'secagg': its noise is shared in the sum")
    if plan.unit == "person" and plan.trust == "none":
        raise ConfigError(
            "unit 'person' needs trust 'secagg': local noise is made for single records; set "
            "trust to 'secagg' or unit to 'record'"
        )
    if plan.unit == "client" and plan.sample_rate != 1.0:
        raise ConfigError(
            "unit 'client' gains nothing from sampling, as the server knows who takes part; set sample_rate to 1"
        )
    if plan.local_steps > 1 and not (plan.unit == "record" and plan.trust == "none"):
        raise ConfigError(f"local_steps is {plan.local_steps}; a secure round releases one sum, set it to 1")


def _check_correlation(plan: PrivacyPlan, correlation: tuple[int, ...]) -> None:
    bands = len(correlation)
    if plan.unit != "record" or plan.mechanism != "skellam":
        raise ConfigError(
            f"banded noise is for single records under the secure sum, not for unit {plan.unit!r} with trust "
            f"{plan.trust!r}; set privacy.mechanism=independent"
        )
    if not 2 <= bands <= plan.rounds or bands * plan.sample_rate > 1.0 + 1e-12:
        raise ConfigError(
            f"{bands} bands do not fit {plan.rounds} rounds at sample_rate {plan.sample_rate:g}; choose 2 or more, "
            "at most the number of rounds and 1 / sample_rate"
        )
    if not 1 <= correlation[0] <= 1024 or any(abs(m) >= correlation[0] for m in correlation[1:]):
        raise ConfigError(f"the correlation {list(correlation)} needs a first number up to 1024 and lower ones after")
    if abs(response(correlation, plan.rounds)).max() > 1.0 + 1e-9:
        raise ConfigError(f"the correlation {list(correlation)} makes the noise grow from round to round")
