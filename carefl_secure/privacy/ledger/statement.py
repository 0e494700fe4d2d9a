"""Reading ledgers for people: where they lie, what they hold, what it comes to."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carefl_secure.errors import ConfigError, LedgerError
from carefl_secure.privacy.accounting.accountant import accountant_name, epsilon
from carefl_secure.privacy.accounting.events import Event, SampledSkellam, event_from_json, merged
from carefl_secure.privacy.ledger.entry import START, Entry, event_of, spent
from carefl_secure.privacy.ledger.ledger import Ledger
from carefl_secure.privacy.plan import PrivacyPlan
from carefl_secure.rounding import plain, round_up
from carefl_secure.strict_json import load_json

_DELTA = 1e-5
_LEDGER = "ledger.jsonl"


def find_ledgers(path: Path) -> list[Path]:
    """Return the ledgers at a path, never none: the server's first, then the clients' by number.

    ``path`` is a ledger, a run folder (``ledger.jsonl`` and ``clients/*/ledger.jsonl``), or a
    folder of ledgers named ``*.jsonl``.
    """
    if path.is_file():
        return [path]
    found = [path / _LEDGER] if (path / _LEDGER).is_file() else []
    found += sorted(path.glob(f"clients/*/{_LEDGER}"), key=lambda file: _number(file.parent.name))
    if not found:
        found = sorted(
            (file for file in path.glob("*.jsonl") if file.name != "metrics.jsonl"),
            key=lambda file: _number(file.stem),
        )
    if not found:
        raise LedgerError(f"{path} is no ledger and holds none; give a ledger file or a run folder")
    return found


def _number(name: str) -> tuple[float, str]:
    return (float(name) if name.isdecimal() else math.inf, name)


def delta_for(path: Path) -> float:
    """Return the delta of a ledger's or folder's run, 1e-5 without a plan; LedgerError for an unreadable one."""
    for folder in (path, path.parent, path.parent.parent.parent):
        plan = folder / "plan.json"
        if plan.is_file():
            try:
                return PrivacyPlan.from_json(load_json(plan.read_bytes())["privacy"]).delta
            except (ConfigError, KeyError, OSError, TypeError, ValueError) as error:
                raise LedgerError(f"{plan} states no delta that can be read; give one with --delta") from error
    return _DELTA


@dataclass(frozen=True)
class Line:
    """Equal spends of one run in a row."""

    first: int  # the places in the ledger of the first and the last
    last: int
    time: str  # of the first
    run: str  # may be empty
    event: Event  # with the count of all
    epsilon: float  # what these alone cost


@dataclass(frozen=True)
class Statement:
    """What one ledger holds."""

    path: Path
    identity: Mapping[str, str]
    entries: int
    head: str  # hash of the last entry
    lines: tuple[Line, ...]
    unprotected: int  # rounds that were noted as released without any noise
    recovered: int  # how often a torn end was cut off
    delta: float
    epsilon: float  # what all spends come to; infinity where a round was unprotected
    accountant: str

    def remarks(self) -> list[str]:
        """Return the totals and what else a person should know, one sentence each."""
        if self.unprotected:
            return [
                f"{self.unprotected} rounds were released WITHOUT PRIVACY; no epsilon holds",
                f"{self.entries} entries, head {self.head}",
            ]
        spends = sum(line.event.count for line in self.lines)
        found = [f"epsilon {round_up(self.epsilon)} at delta {self.delta:g} for {spends} spends"]
        if self.lines:
            found[0] += f", by {self.accountant}"
        if self.recovered:
            found.append(f"a torn end was cut off {self.recovered} times")
        return [*found, f"{self.entries} entries, head {self.head}"]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; an infinite epsilon is null."""
        whole = plain(self)
        spends = [
            {**one, "event": line.event.to_json()} for one, line in zip(whole.pop("lines"), self.lines, strict=True)
        ]
        return {**whole, "spends": spends, "unprotected_rounds": whole.pop("unprotected")}


def event_words(event: Event) -> str:
    """Describe an event in words: kind of noise, noise over norm bound, and sampling rate."""
    if isinstance(event, SampledSkellam):
        kind, noise = "Skellam", math.sqrt(event.variance) / event.l2
    else:
        kind, noise = "Gaussian", event.noise_multiplier
    return f"{kind}, noise multiplier {noise:.4g}, sample rate {event.sample_rate:g}"


def statement(path: Path, delta: float) -> Statement:
    """Read and price one ledger; LedgerError where it is missing, changed or torn, PrivacyError without a price."""
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; give an existing file")
    entries = Ledger(path).entries()
    lines: list[Line] = []
    unprotected = recovered = 0
    for entry in entries:
        unprotected += entry.unprotected
        recovered += entry.payload.get("recovered") is True
        if entry.kind != "spend":
            continue
        event = event_from_json(event_of(entry.payload))
        run = str(entry.payload.get("run", ""))
        if lines and (lines[-1].run, lines[-1].event.times(1)) == (run, event.times(1)):
            whole = event.times(lines[-1].event.count + event.count)
            lines[-1] = dataclasses.replace(lines[-1], last=entry.index, event=whole)
        else:
            lines.append(Line(entry.index, entry.index, entry.time, run, event, 0.0))
    events = [line.event for line in lines]
    return Statement(
        path=path,
        identity=dict(entries[0].payload.get("identity", {})) if entries else {},
        entries=len(entries),
        head=entries[-1].hash if entries else START,
        lines=tuple(dataclasses.replace(line, epsilon=epsilon([line.event], delta)) for line in lines),
        unprotected=unprotected,
        recovered=recovered,
        delta=delta,
        epsilon=math.inf if unprotected else epsilon(events, delta),
        accountant=accountant_name(events, delta),
    )


@dataclass(frozen=True)
class RunSpending:
    """What one run has spent, by the ledger that holds most."""

    charged: int  # rounds that some ledger paid for
    opened: int  # rounds that the server's ledger records as released
    epsilon: float  # infinite where a round had no noise


_priced = functools.lru_cache(maxsize=256)(epsilon)


def price(entries: Sequence[Entry], delta: float) -> float:
    """Return the epsilon of some entries' spends; infinite where a round of theirs had no noise."""
    return math.inf if any(one.unprotected for one in entries) else _priced(merged(spent(entries)), delta)


def run_spending(folder: Path, delta: float) -> RunSpending:
    """Price what every ledger in a run folder holds of the run that the server's names; LedgerError if damaged."""
    charged = opened = 0
    largest = 0.0
    run = ""
    for file in find_ledgers(folder):
        entries = list(Ledger(file).entries())
        if not run:  # the server's ledger comes first, and holds nothing of other runs
            identity = entries[0].payload.get("identity", {}) if entries else {}
            run = str(identity.get("run", folder.resolve().name))
        else:
            entries = [one for one in entries if one.of_run(run)]
        charged = max(charged, sum(one.charges_round for one in entries))
        opened = max(opened, sum(one.kind == "release" for one in entries))
        largest = max(largest, price(entries, delta))
    return RunSpending(charged, opened, largest)
