"""The run that a site agreed to, on disk, so that an agent which was killed can take part again.

No secret of a round is ever written: a restarted agent sits out the round that it was in.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from carefl_secure.errors import LedgerError, ProtocolError, RunError
from carefl_secure.federation.transport.messages import Fields, pack
from carefl_secure.run_folder import write_atomically

__all__ = ["Accepted", "round_of", "rounds_in"]

_PARTS = ("proposal", "submitter", "signature")


def round_of(content: RecordDict) -> int | None:
    """Return the number of the round that a message is the first of; None where it is of none."""
    return _round(content.get("fields"))


def rounds_in(content: RecordDict) -> list[int]:
    """Return the number of every round that a message names, also that which rides on it."""
    return [n for n in map(_round, content.values()) if n is not None]


def _round(record: object) -> int | None:
    number = record.get("round") if isinstance(record, ConfigRecord) else None
    return number if type(number) is int else None


class Accepted:
    """A signed proposal that passed every check, and the last round begun under it.

    ``path`` is a file of the bundle.

    Guarantees
    ----------
    `begun` returns once the number is on disk, so a reply that is sent after it belongs to a round
    that no later agent of this bundle begins again, unless the submitter proposes the run anew.
    This assumes that nobody puts back an older copy of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._proposal: dict[str, str] | None = None
        self.last = -1
        """The last round that was begun; -1 before the first."""
        if path.exists():
            self._read()

    @property
    def proposal(self) -> RecordDict | None:
        """The accepted proposal, with its signature; None without one."""
        if self._proposal is None:
            return None
        return pack(**{name: bytes.fromhex(self._proposal[name]) for name in _PARTS})

    def keep(self, content: RecordDict) -> None:
        """Remember a proposal that was just accepted; `LedgerError` when it cannot be written."""
        fields = Fields(content, *_PARTS)
        self._proposal = {name: fields.octets(name).hex() for name in _PARTS}
        self._write(-1)

    def check(self, number: int) -> None:
        """Refuse a round that was begun before, with a `ProtocolError`."""
        if number <= self.last:
            raise ProtocolError(
                f"round {number} comes after round {self.last}; a round is never repeated"
            )

    def begun(self, number: int) -> None:
        """Record that a round was begun, before the first reply of the round leaves.

        Raises `LedgerError` when it cannot be written.
        """
        if number > self.last:
            self._write(number)

    def forget(self) -> None:
        """Agree to nothing any more."""
        self._path.unlink(missing_ok=True)
        self._proposal, self.last = None, -1

    def _write(self, number: int) -> None:
        text = json.dumps({**(self._proposal or {}), "round": number}).encode()
        try:
            write_atomically(self._path, text)
            self._path.chmod(0o600)
        except (RunError, OSError) as error:
            raise LedgerError(f"the round cannot be noted, so nothing is sent: {error}") from error
        self.last = number

    def _read(self) -> None:
        try:
            raw = json.loads(self._path.read_text())
            self._proposal = {name: str(raw[name]) for name in _PARTS}
            self.last = int(raw["round"])
            for value in self._proposal.values():
                bytes.fromhex(value)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self._path} is damaged; remove it and have the run proposed anew"
            ) from error
