"""What was released, in numbers; the price is computed elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

from carefl_secure.errors import ConfigError, PrivacyError


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ConfigError(text)


@dataclass(frozen=True)
class _Sampled:
    """What both kinds of events share."""

    kind: ClassVar[str]
    positive: ClassVar[tuple[str, ...]]

    sample_rate: float  # probability with which every record enters one sum, in (0, 1]

    def __post_init__(self) -> None:
        """Refuse values that describe no mechanism."""
        rate = self.sample_rate
        _require(0.0 < rate <= 1.0, f"sample_rate is {rate}; choose it above 0 and at most 1")
        check_whole("count", self.count, 1)  # type: ignore[attr-defined]
        for name in self.positive:
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0.0, f"{name} is {value}; it must be a finite number above 0")

    def times(self, count: int) -> Self:
        """Return the same event with another count."""
        return dataclasses.replace(self, count=count)  # type: ignore[call-arg]

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain JSON values, its kind among them."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class SampledSkellam(_Sampled):
    """``count`` sums of Poisson-sampled records, each hidden by Skellam noise of integer vectors.

    Without its ``dimension`` noise cannot be priced by privacy loss distributions.
    """

    kind: ClassVar[str] = "sampled_skellam"
    positive: ClassVar[tuple[str, ...]] = ("l1", "l2", "variance")

    l1: float  # bounds on the 1-norm and the 2-norm of what one record changes, in integer units; l1 >= l2
    l2: float
    variance: float  # per coordinate, of the noise that the accounted adversary cannot remove
    count: int = 1
    beta: float = 0.0  # probability, for each sum, that the two bounds do not hold (rounding), in [0, 1)
    dimension: int | None = None  # how many integers the released vector has; left out of the JSON where unknown

    def __post_init__(self) -> None:
        """Refuse values that describe no mechanism."""
        super().__post_init__()
        _require(
            self.l1 >= self.l2 * (1.0 - 1e-12),
            f"l1 is {self.l1} and l2 is {self.l2}; the 1-norm is never below the 2-norm",
        )
        _require(0.0 <= self.beta < 1.0, f"beta is {self.beta}; choose it in [0, 1)")
        if self.dimension is not None:
            check_whole("dimension", self.dimension, 1)

    @property
    def failure(self) -> float:
        """Probability, over all ``count`` sums, that a norm bound fails somewhere (union bound)."""
        return self.count * self.beta

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain JSON values, its kind among them."""
        fields = super().to_json()
        if self.dimension is None:
            del fields["dimension"]  # as events were written before there was one
        return fields


@dataclass(frozen=True)
class SampledGaussian(_Sampled):
    """``count`` sums of records sampled at ``sample_rate`` (Poisson), each hidden by Gaussian noise."""

    kind: ClassVar[str] = "sampled_gaussian"
    positive: ClassVar[tuple[str, ...]] = ("noise_multiplier",)

    noise_multiplier: float  # standard deviation of the noise over the 2-norm bound of one record
    count: int = 1

    failure: ClassVar[float] = 0.0  # probability that a norm bound fails: none, as real vectors are not rounded


Event: TypeAlias = SampledSkellam | SampledGaussian

_KINDS: dict[str, type[SampledSkellam] | type[SampledGaussian]] = {
    kind.kind: kind for kind in (SampledSkellam, SampledGaussian)
}


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Add up the counts of equal events, in order of first appearance."""
    counts: dict[Event, int] = {}
    for event in events:
        one = event.times(1)
        counts[one] = counts.get(one, 0) + event.count
    return tuple(event.times(count) for event, count in counts.items())


def event_from_json(data: Mapping[str, Any]) -> Event:
    """Read an event that ``to_json`` wrote: ``kind`` and exactly its fields, less ``dimension``.

    PrivacyError where the kind is unknown, a field is missing, unknown, or no number. An event that cannot be priced
    must not be taken for one that costs nothing. ConfigError where a value is out of range.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PrivacyError(
            f"event kind {kind!r} is unknown; known are {sorted(_KINDS)}. "
            "Read this history with the version that wrote it"
        )
    maker = _KINDS[kind]
    names = {field.name for field in dataclasses.fields(maker)}
    if set(fields) | ({"dimension"} & names) != names:
        raise PrivacyError(f"event {kind!r} must have the fields {sorted(names)}, found {sorted(fields)}")
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PrivacyError(f"event {kind!r}: {name} is {value!r}, not a number")
    return maker(**fields)
