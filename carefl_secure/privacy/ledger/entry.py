"""One line of a ledger: its fields, its hash, and how it is read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carefl_secure.errors import ConfigError, LedgerError
from carefl_secure.privacy.accounting.events import Event, event_from_json
from carefl_secure.privacy.canonical_json import canonical_hash, canonical_json

KINDS = ("open", "spend", "release", "note")
"""A run begins; something is about to be released; it was released; anything else."""

START = "0" * 64
"""The hash before the first entry."""


@dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    ``index`` counts from 0; ``time`` is UTC, ISO 8601; ``kind`` one of ``KINDS``; a spend holds its
    event under ``payload["event"]``; ``previous`` is the hash of the entry before (64 zeros for the
    first); ``hash`` is SHA-256 over the canonical JSON of all the other fields.
    """

    index: int
    time: str
    kind: str
    payload: Mapping[str, Any]
    previous: str
    hash: str

    @property
    def unprotected(self) -> bool:
        """Whether it notes a round that was released without any noise."""
        return self.payload.get("unprotected") is True

    @property
    def charges_round(self) -> bool:
        """Whether it charges a round, or notes it as unprotected."""
        return self.kind == "spend" or self.unprotected

    def of_run(self, run: str) -> bool:
        """Tell whether it belongs to a run or to one of its stages, ``RUN/STAGE``."""
        name = str(self.payload.get("run"))
        return name == run or name.startswith(f"{run}/")

    def line(self) -> bytes:
        """Return the entry as it stands in the file."""
        return canonical_json(dataclasses.asdict(self)) + b"\n"


def clean_payload(kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a payload to plain JSON values, so that its hash survives the way through the file."""
    if kind not in KINDS:
        raise ConfigError(f"ledger entries are of kind {', '.join(KINDS)}, not {kind!r}")
    try:
        clean: dict[str, Any] = json.loads(json.dumps(dict(payload), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the payload of a ledger entry must be JSON with finite numbers: {error}") from error
    if kind == "spend":
        event_from_json(event_of(clean))
    return clean


def now() -> str:
    """Return the time of day for a new entry: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def make_entry(before: Sequence[Entry], kind: str, payload: Mapping[str, Any], time: str) -> Entry:
    """Make the entry that follows those before."""
    index, previous = len(before), before[-1].hash if before else START
    body = {"index": index, "time": time, "kind": kind, "payload": payload, "previous": previous}
    return Entry(index, time, kind, payload, previous, canonical_hash(body).hex())


def read_entry(line: bytes, before: Sequence[Entry], path: Path) -> Entry:
    """Read a line that must be, byte for byte, the entry that follows those before."""
    try:
        found = json.loads(line)
        entry = make_entry(before, found["kind"], found["payload"], found["time"])
        whole = entry.line()
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"{path} holds no entry in line {len(before) + 1}; restore it from a backup") from error
    if whole != line + b"\n" or entry.kind not in KINDS or not isinstance(entry.payload, dict):
        raise LedgerError(
            f"{path} was changed at entry {len(before)}: the chain of hashes breaks there; restore it from a backup"
        )
    return entry


def spent(entries: Iterable[Entry]) -> list[Event]:
    """Return the events of all spends among some entries, in order."""
    return [event_from_json(event_of(one.payload)) for one in entries if one.kind == "spend"]


def event_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the event of a spend, still as JSON; ConfigError where there is none."""
    event = payload.get("event")
    if not isinstance(event, Mapping):
        raise ConfigError("a spend needs its event as JSON under the key 'event'")
    return event
