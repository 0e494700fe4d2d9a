"""The append-only book of what one client has spent on one corpus, across all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carefl_secure.errors import BudgetExceededError, ConfigError, LedgerError
from carefl_secure.privacy.accounting.accountant import epsilon
from carefl_secure.privacy.accounting.events import Event, event_from_json
from carefl_secure.privacy.ledger.entry import (
    START,
    Entry,
    clean_payload,
    event_of,
    make_entry,
    now,
    read_entry,
)
from carefl_secure.privacy.ledger.file import LedgerFile

__all__ = ["Entry", "Ledger"]

_FORMAT = "carefl.ledger/1"


class Ledger:
    """An append-only, hash-chained, crash-safe list of privacy spends in one file.

    Parameters
    ----------
    path : Path
        The file, made with mode 0600 by the first ``append``. Its folder must exist.
    identity : mapping of str to str, optional
        What the ledger is about, such as the client and the corpus. Written when the file is made,
        and compared on every later use, so that a ledger is not mistaken for another.

    Guarantees
    ----------
    When ``append`` or ``spend`` returns, the entry is on disk, file and folder entry both, as far
    as the file system keeps the word it gives to fsync. Two processes cannot interleave: every
    call holds an exclusive lock. Any edited, removed, added or reordered entry breaks the chain
    and is refused, except what a plain hash chain cannot see: a cut of whole entries at the end,
    and a chain computed anew from some entry on. Keep ``head()`` somewhere else and hand it to
    ``verify`` against both. A deleted file forgets everything.
    """

    def __init__(self, path: Path, identity: Mapping[str, str] | None = None) -> None:
        self._file = LedgerFile(path)
        self._identity = dict(identity or {})

    @property
    def path(self) -> Path:
        """Where the ledger lies."""
        return self._file.path

    def append(self, kind: str, payload: Mapping[str, Any]) -> Entry:
        """Write one entry and return when it is on disk.

        Parameters
        ----------
        kind : str
            One of ``KINDS``.
        payload : mapping
            JSON values, finite numbers only. A spend needs a valid event under ``"event"``.

        Returns
        -------
        Entry
            The entry as written.

        Raises
        ------
        ConfigError
            The kind is unknown or the payload is not JSON.
        PrivacyError
            The event of a spend cannot be read.
        LedgerError
            The ledger was changed, has a torn end, is held by another process, or cannot be
            written.
        """
        clean = clean_payload(kind, payload)
        with self._writing() as entries:
            return self._write(entries, kind, clean)

    def spend(
        self,
        event: Event,
        max_epsilon: float,
        delta: float,
        payload: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Check the budget and write the spend under one lock: what a client calls before release.

        Parameters
        ----------
        event : Event
            What is about to be released.
        max_epsilon, delta : float
            The budget over the whole ledger.
        payload : mapping, optional
            More to remember, such as run and round.

        Returns
        -------
        Entry
            The entry as written.

        Raises
        ------
        BudgetExceededError
            The step would overspend; nothing is written.
        ConfigError, LedgerError
            As for ``append`` and ``guard``.
        """
        clean = clean_payload("spend", {**(payload or {}), "event": event.to_json()})
        with self._writing() as entries:
            _guard(_events(entries), event, max_epsilon, delta)
            return self._write(entries, "spend", clean)

    def guard(self, event: Event, max_epsilon: float, delta: float) -> None:
        """Refuse an event that would take the whole ledger above a budget; write nothing.

        Two processes that guard one after the other may both pass: use ``spend`` to be sure.

        Parameters
        ----------
        event : Event
            What is about to be released.
        max_epsilon, delta : float
            The budget over the whole ledger.

        Raises
        ------
        BudgetExceededError
            The ledger with this event would cost more than ``max_epsilon``.
        ConfigError
            ``max_epsilon`` is no number above 0, or ``delta`` out of range.
        LedgerError
            The ledger was changed or has a torn end.
        """
        _guard(self.events(), event, max_epsilon, delta)

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, verified; none where the file does not exist yet.

        Raises
        ------
        LedgerError
            The ledger was changed or has a torn end.
        """
        with self._file.reading() as data:
            return tuple(self._parse(data))

    def events(self) -> list[Event]:
        """Return the events of all spends, verified.

        Raises
        ------
        LedgerError, PrivacyError
            The ledger was changed or has a torn end; an event cannot be read.
        """
        return _events(self.entries())

    def epsilon(self, delta: float) -> float:
        """Price everything ever spent.

        Parameters
        ----------
        delta : float
            As for ``accounting.epsilon``.

        Returns
        -------
        float
            Epsilon in nats; 0 for an empty ledger.
        """
        return epsilon(self.events(), delta)

    def head(self) -> str:
        """Return the hash of the last entry, to be kept elsewhere; 64 zeros for an empty ledger."""
        entries = self.entries()
        return entries[-1].hash if entries else START

    def verify(self, head: str | None = None) -> None:
        """Check the whole chain, and that it continues a state seen before.

        Parameters
        ----------
        head : str, optional
            A hash that ``head()`` gave earlier. It must still stand in the chain.

        Raises
        ------
        LedgerError
            The ledger was changed, cut or has a torn end.
        """
        entries = self.entries()
        if head is not None and head != START and head not in {entry.hash for entry in entries}:
            raise LedgerError(
                f"{self.path} no longer holds the entry {head[:12]}... seen earlier, so it was cut "
                "or written anew; restore it from a backup"
            )

    def recover(self) -> int:
        """Cut off a last line that a crash left unfinished, and note that it was done.

        Nothing that ``append`` had confirmed is lost: a line is confirmed only when it is whole.

        Returns
        -------
        int
            Bytes cut off; 0 where the end was whole.

        Raises
        ------
        LedgerError
            What remains is not a valid chain.
        """
        if not self.path.exists():
            return 0
        with self._file.writing() as data:
            whole = data[: data.rfind(b"\n") + 1]
            torn = len(data) - len(whole)
            entries = self._parse(whole)
            if torn:
                self._file.truncate(len(whole))
                lost = hashlib.sha256(data[len(whole) :]).hexdigest()
                note = {"recovered": True, "torn_bytes": torn, "torn_sha256": lost}
                self._write(entries, "note", note)
            return torn

    @contextmanager
    def _writing(self) -> Iterator[list[Entry]]:
        with self._file.writing() as data:
            yield self._parse(data)

    def _write(self, entries: list[Entry], kind: str, payload: Mapping[str, Any]) -> Entry:
        """Append to the locked file; the first entry ever says what the ledger is about."""
        if not entries:
            first = {"format": _FORMAT, "identity": self._identity}
            entries.append(make_entry(entries, "open", first, now()))
            self._file.append(entries[0].line())
        entry = make_entry(entries, kind, payload, now())
        self._file.append(entry.line())
        return entry

    def _parse(self, data: bytes) -> list[Entry]:
        if data and not data.endswith(b"\n"):
            raise LedgerError(
                f"{self.path} ends in an unfinished line, as a crash leaves it; call recover() to "
                "cut it off (nothing was released for it)"
            )
        entries: list[Entry] = []
        for line in data.split(b"\n")[:-1]:
            entries.append(read_entry(line, entries, self.path))
        if entries:
            self._check_first(entries[0])
        return entries

    def _check_first(self, entry: Entry) -> None:
        if entry.kind != "open" or entry.payload.get("format") != _FORMAT:
            raise LedgerError(f"{self.path} is no ledger of format {_FORMAT}; choose another file")
        identity = entry.payload.get("identity")
        if self._identity and identity != self._identity:
            raise LedgerError(
                f"{self.path} is the ledger of {identity}, not of {self._identity}; give every "
                "client and corpus its own file"
            )


def _events(entries: Sequence[Entry]) -> list[Event]:
    return [event_from_json(event_of(e.payload)) for e in entries if e.kind == "spend"]


def _guard(history: Sequence[Event], event: Event, max_epsilon: float, delta: float) -> None:
    if not max_epsilon > 0.0:
        raise ConfigError(f"max_epsilon is {max_epsilon}; it must be a number above 0")
    after = epsilon([*history, event], delta)
    if not after <= max_epsilon:
        raise BudgetExceededError(
            f"this step would bring the ledger to epsilon {after:.4g} at delta {delta:g}, above "
            f"the limit {max_epsilon:g}; stop here, or agree on a larger limit with those whose "
            "records these are"
        )
