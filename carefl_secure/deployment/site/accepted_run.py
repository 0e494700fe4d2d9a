"""The accepted run, its last round and run numbers, on disk; no secret of a round, so a restarted agent sits out."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from carefl_secure.errors import LedgerError, PolicyError, ProtocolError, RunError
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.run_folder import write_atomically
from carefl_secure.strict_json import load_json

_PARTS = ("proposal", "submitter", "signature")
_NONE = -1


def round_of(content: RecordDict) -> int | None:
    """Return the number of the round that a message names; None where it names none."""
    record = content.get("fields")
    number = record.get("round") if isinstance(record, ConfigRecord) else None
    return number if type(number) is int else None


class Accepted:
    """The last admitted proposal, the last round begun under it, and every submitter's last number.

    ``path`` is a file of the bundle; a lock file stands next to it. Raises `RunError` when it is damaged.

    Guarantees
    ----------
    A proposal is admitted once: its number must be above every earlier one of its submitter. Only the very bytes that
    were admitted last may come again, before the first round begins; that changes nothing. `begun` returns once the
    number of the round is on disk, and refuses a round that was begun before under the same proposal, by whichever
    agent of the bundle. This assumes that nobody removes the file or puts back an older copy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}
        self._proposal: dict[str, str] | None = None
        self.last = _NONE
        """The last round that was begun; -1 before the first."""
        self._read()

    @property
    def proposal(self) -> RecordDict | None:
        """The admitted proposal, with its signature; None without one."""
        if self._proposal is None:
            return None
        return pack(**{name: bytes.fromhex(self._proposal[name]) for name in _PARTS})

    def admit(self, content: RecordDict, number: int) -> None:
        """Put a signed proposal with its run number in the place of the one before.

        Raises `PolicyError`, clause ``replay``, when the number is not above every earlier one of
        this submitter; `LedgerError` when it cannot be written.
        """
        fields = Fields(content, *_PARTS)
        parts = {name: fields.octets(name).hex() for name in _PARTS}
        with self._locked():
            before = self._numbers.get(parts["submitter"], 0)
            if parts == self._proposal and self.last == _NONE:
                return
            if number <= before:
                raise PolicyError(
                    f"run number {number} is not above {before}, the last one of this submitter: "
                    "the proposal is replayed, or was overtaken by a later one",
                    "replay",
                )
            self._numbers[parts["submitter"]] = number
            self._proposal = parts
            self._write(_NONE)

    def check(self, number: int) -> None:
        """Refuse a round that was begun before, with a `ProtocolError`."""
        if number <= self.last:
            raise ProtocolError(f"round {number} comes after round {self.last}; a round is never repeated")

    def begun(self, number: int) -> None:
        """Record that a round begins, before its first reply leaves or its charge is written.

        Does nothing when this agent recorded it before. Raises `LedgerError` when it cannot be
        written, `ProtocolError` when another agent of the bundle has begun it.
        """
        if number > self.last:
            with self._locked():
                self.check(number)
                self._write(number)

    def forget(self) -> None:
        """Agree to nothing any more; the numbers stay."""
        with self._locked():
            self._proposal = None
            self._write(_NONE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file, and know what stands in it."""
        try:
            with self._path.with_suffix(".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._read()
                yield
        except OSError as error:
            raise LedgerError(f"nothing is sent, because nothing can be noted: {error}") from error

    def _write(self, last: int) -> None:
        kept = {**(self._proposal or {}), "round": last, "numbers": self._numbers}
        try:
            write_atomically(self._path, json.dumps(kept).encode(), private=True)
        except RunError as error:
            raise LedgerError(f"nothing is sent, because nothing can be noted: {error}") from error
        self.last = last

    def _read(self) -> None:
        if not self._path.exists():
            self._numbers, self._proposal, self.last = {}, None, _NONE
            return
        try:
            raw = load_json(self._path.read_text())
            self._numbers = {str(name): int(number) for name, number in raw["numbers"].items()}
            self.last = int(raw["round"])
            self._proposal = {name: str(raw[name]) for name in _PARTS} if _PARTS[0] in raw else None
            for value in (self._proposal or {}).values():
                bytes.fromhex(value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self._path} is damaged; restore it from a backup. Without it a proposal that "
                "was signed before could be put forward again until it expires"
            ) from error
