"""The append-only record of what one client has spent on one corpus, across all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carefl_secure.errors import BudgetExceededError, ConfigError, LedgerError
from carefl_secure.privacy.accounting.accountant import epsilon
from carefl_secure.privacy.accounting.composition import filtered_epsilon
from carefl_secure.privacy.accounting.events import Event
from carefl_secure.privacy.ledger import entry
from carefl_secure.privacy.ledger.file import LedgerFile

_FORMAT = "carefl.ledger/1"


class Ledger:
    """An append-only, hash-chained, crash-safe list of privacy spends in one file.

    Parameters
    ----------
    path : Path
        The file, made with mode 0600 by the first ``append``. Its folder must exist.
    identity : Mapping[str, str], optional
        What the ledger is about, such as the client and the corpus. Written when the file is made, and compared on
        every later use, so that a ledger is not mistaken for another.

    Guarantees
    ----------
    When ``append`` or ``spend`` returns, the entry is on disk, file and folder entry both, as far as the file system
    honours fsync. Two processes cannot interleave: every call holds an exclusive lock. Any edited, removed, added or
    reordered entry breaks the chain and is refused, except what a plain hash chain cannot see: a cut of whole entries
    at the end, and a chain computed anew from some entry on. Keep ``head()`` somewhere else and hand it to ``verify``
    against both. A deleted file forgets everything.
    """

    def __init__(self, path: Path, identity: Mapping[str, str] | None = None) -> None:
        self._file = LedgerFile(path)
        self._identity = dict(identity or {})

    @property
    def path(self) -> Path:
        """Where the ledger lies."""
        return self._file.path

    def append(self, kind: str, payload: Mapping[str, Any]) -> entry.Entry:
        """Write one entry and return when it is on disk.

        ``kind`` is one of ``KINDS``; ``payload`` holds JSON values with finite numbers, and for a
        spend a valid event under ``"event"``.

        ConfigError or PrivacyError where the kind is unknown, the payload is not JSON, or the event of a spend cannot
        be read; LedgerError where the ledger was changed, has a torn end, is locked by another process, or not
        writable.
        """
        clean = entry.clean_payload(kind, payload)
        with self._writing() as entries:
            return self._write(entries, kind, clean)

    def spend(
        self, event: Event, max_epsilon: float, delta: float, payload: Mapping[str, Any] | None = None
    ) -> entry.Entry:
        """Check the budget and write the spend under one lock: what a client calls before release.

        BudgetExceededError where the step would overspend, or all ``planned`` sums of its run are charged already;
        nothing is written; ConfigError or LedgerError as for ``append`` and ``guard``.

        Parameters
        ----------
        event : Event
            What is about to be released.
        max_epsilon, delta : float
            The limit over the whole ledger; as for ``guard``.
        payload : Mapping[str, Any], optional
            More to record: ``run`` (stages of one run as ``RUN/STAGE``), ``round``, ``planned`` (how many sums the
            run's plan has), ``unit`` and ``trust``. With ``bands``, the event is of one round of every record; a round
            for which nothing is due (`spends_due`) is noted as covered, at no cost.

        Guarantees
        ----------
        Processes that share the file cannot pass a check together: both checks and the entry are made under one lock.
        """
        clean = entry.clean_payload("spend", {**(payload or {}), "event": event.to_json()})
        with self._writing() as entries:
            if self._guard(entries, event, max_epsilon, delta, clean):
                return self._write(entries, "spend", clean)
            return self._write(entries, "note", {**(payload or {}), "covered": True})

    def guard(self, event: Event, max_epsilon: float, delta: float, payload: Mapping[str, Any] | None = None) -> None:
        """Refuse an event that would take the whole ledger above a limit; write nothing.

        Two processes that guard one after the other may both pass: use ``spend`` to be sure.

        BudgetExceededError where the ledger with this event would cost more than ``max_epsilon``, or the run's plan
        has no round left; ConfigError where ``max_epsilon`` is no number above 0, or ``delta`` out of range;
        LedgerError where the ledger was changed, has a torn end, or holds runs for another unit.

        Guarantees
        ----------
        The limit holds although runs are chosen by looking at earlier ones (``composition.filtered_epsilon``), if
        limit and delta stay the same, and the plan of one run, under one name, is fixed before its first round.
        """
        self._guard(self.entries(), event, max_epsilon, delta, payload or {})

    def filtered_epsilon(
        self, event: Event, max_epsilon: float, delta: float, payload: Mapping[str, Any] | None = None
    ) -> float:
        """Return what ``guard`` compares with the limit: the price of all with one event more."""
        first, later = entry.split_runs(self.entries(), (payload or {}).get("run"), event)
        return filtered_epsilon(first, later, max_epsilon, delta)

    def _guard(
        self, entries: Sequence[entry.Entry], event: Event, limit: float, delta: float,
        payload: Mapping[str, Any],
    ) -> bool:  # fmt: skip
        """Check a round; return whether the event is to be spent, or an earlier spend covers it."""
        if not limit > 0.0:
            raise ConfigError(f"max_epsilon is {limit}; it must be a number above 0")
        entry.check_unit(entries, payload.get("unit"), self.path)
        entry.check_planned(entries, payload)
        entry.check_number(entries, payload)
        if "bands" in payload and entry.spends_due(entries, payload["run"], payload["bands"], [payload["round"]]) <= 0:
            return False
        first, later = entry.split_runs(entries, payload.get("run"), event)
        after = filtered_epsilon(first, later, limit, delta)
        if after <= limit:
            return True
        several = ", counted so that later runs may depend on earlier ones" if later else ""
        raise BudgetExceededError(
            f"this step would bring the ledger to epsilon {after:.4g} at delta {delta:g}{several}, above the limit "
            f"{limit:g}; stop here, or agree on a larger limit with those whose records these are"
        )

    def entries(self) -> tuple[entry.Entry, ...]:
        """Return all entries, verified (else LedgerError); none where there is no file yet."""
        with self._file.reading() as data:
            return tuple(self._parse(data))

    def events(self) -> list[Event]:
        """Return the events of all spends, verified; PrivacyError where one cannot be read."""
        return entry.spent(self.entries())

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of everything ever spent, in nats; 0 for an empty ledger."""
        return epsilon(self.events(), delta)

    def head(self) -> str:
        """Return the hash of the last entry, to be kept elsewhere; 64 zeros for an empty ledger."""
        entries = self.entries()
        return entries[-1].hash if entries else entry.START

    def verify(self, head: str | None = None) -> None:
        """Check (LedgerError) the whole chain, and that it still holds ``head``, an earlier result of ``head()``."""
        entries = self.entries()
        if head is not None and head != entry.START and head not in {one.hash for one in entries}:
            raise LedgerError(
                f"{self.path} no longer holds the entry {head[:12]}... seen earlier, so it was cut "
                "or written anew; restore it from a backup"
            )

    def recover(self) -> int:
        """Cut off a last line that a crash left unfinished, note it, and return the bytes cut off.

        Nothing that ``append`` had confirmed is lost: a line is confirmed only when it is whole. A
        last line whose newline alone is missing or damaged is whole, and is kept. Never call this unasked.

        LedgerError where what remains is not a valid chain.
        """
        if not self.path.exists():
            return 0
        with self._file.writing(b"") as data:
            whole = data[: data.rfind(b"\n") + 1]
            entries = self._parse(whole)
            rest = data[len(whole) :]
            last = rest[: rest.rfind(b"}") + 1]  # a power cut may leave zeros where the newline was
            if rest and self._is_entry(last, entries):
                self._file.truncate(len(whole) + len(last))
                self._file.append(b"\n")
            elif rest and not entries:
                raise LedgerError(f"{self.path} lost its first entry; restore it from a backup")
            elif rest:
                self._file.truncate(len(whole))
                lost = hashlib.sha256(rest).hexdigest()
                self._write(entries, "note", {"recovered": True, "torn_bytes": len(rest), "torn_sha256": lost})
                return len(rest)
            return 0

    @contextmanager
    def _writing(self) -> Iterator[list[entry.Entry]]:
        first = {"format": _FORMAT, "identity": self._identity}
        with self._file.writing(entry.make_entry([], "open", first, entry.now()).line()) as data:
            entries = self._parse(data)
            if not data.endswith(b"\n"):
                self._file.append(b"\n")
            yield entries

    def _write(self, entries: list[entry.Entry], kind: str, payload: Mapping[str, Any]) -> entry.Entry:
        made = entry.make_entry(entries, kind, payload, entry.now())
        self._file.append(made.line())
        return made

    def _parse(self, data: bytes) -> list[entry.Entry]:
        lines = data.split(b"\n")
        entries: list[entry.Entry] = []
        for line in lines[:-1]:
            entries.append(entry.read_entry(line, entries, self.path))
        if lines[-1]:
            if not self._is_entry(lines[-1], entries):
                raise LedgerError(
                    f"{self.path} ends in an unfinished line, as a crash leaves it; cut it off "
                    "with `carefl-secure ledger recover` (nothing was released for a line that a crash tore; was the "
                    "file cut in another way, restore it from a backup)"
                )
            entries.append(entry.read_entry(lines[-1], entries, self.path))
        if entries:
            self._check_first(entries[0])
        return entries

    def _is_entry(self, line: bytes, before: Sequence[entry.Entry]) -> bool:
        """Whether a last line without its newline is the whole entry that follows."""
        try:
            entry.read_entry(line, before, self.path)
        except LedgerError:
            return False
        return True

    def _check_first(self, first: entry.Entry) -> None:
        if first.kind != "open" or first.payload.get("format") != _FORMAT:
            raise LedgerError(f"{self.path} is no ledger of format {_FORMAT}; choose another file")
        identity = first.payload.get("identity")
        if self._identity and identity != self._identity:
            raise LedgerError(
                f"{self.path} is the ledger of {identity}, not of {self._identity}; give every "
                "client and corpus its own file"
            )
