"""What a client keeps between the rounds of a run with banded noise: its records' groups and its own noise."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import PrivacyError, ProtocolError, RunError
from carefl_secure.federation.client.sealed_files import SealedFiles
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KEY_BYTES, KeySource, KeyStream
from carefl_secure.noise.skellam import correlate

Integers = NDArray[np.int64]
_LOG = logging.getLogger(__name__)
_GROUPS = struct.Struct(f"<{KEY_BYTES}sq")


class BandedState:
    r"""The groups of a client's records, and the noise that its next rounds take back.

    Record i is in group :math:`\lfloor b\,u_i \rfloor` of b, with :math:`u_i` uniform from a key that only this client
    holds; a round takes the group of its number modulo b. Of the last b - 1 rounds the client keeps the noise
    that it has reason to believe is in an opened sum. Lags count the rounds kept: after a missed round the next one
    takes back what that one would have. ``files`` keeps both, sealed; without it all ends with the process. ``signs``
    says whether survivors sign who they are, so that a client learns whether its upload counts; else it assumes so.

    Guarantees
    ----------
    A record is in rounds of one group only, as long as the client's records and their order stay the same; a client
    whose number of records changed contributes zeros, and one that lost its groups takes no further part in the run.
    The promise never rests on noise being taken back (``docs/accounting.md``): losing, restoring or damaging what is
    kept, and a server that lies about survivors, cost accuracy only; the log says where noise on disk cannot be used.
    Fresh noise is not kept and enters one round.
    """

    def __init__(self, plan: RunPlan, keys: KeySource, files: SealedFiles | None, signs: bool) -> None:
        self._correlation = plan.privacy.correlation or (1,)
        self._last, self._size = plan.privacy.rounds, plan.encoding.padded
        self._keys, self._files, self._signs = keys, files, signs
        self._key, self._records = b"", -1
        self._noise: dict[int, Integers] = {}
        self._pending: int | None = None
        if (content := self._read(_GROUPS.size, "groups", 0)) is not None:
            self._key, self._records = _GROUPS.unpack(content)

    def open(self, charged: int) -> None:
        """Draw the groups of a new run; ProtocolError where those of a run with charged rounds are lost."""
        if self._key:
            return
        if charged:
            raise ProtocolError(
                "the groups that this client's records were drawn into are lost, and rounds were charged for them; it "
                "takes no further part in this run: restore its folder, or begin another run"
            )
        self._key = self._keys.key("groups")
        self._write("groups", 0, _GROUPS.pack(self._key, self._records))

    def members(self, records: int, number: int) -> Integers:
        """Return which records are in the group of round ``number``, ascending.

        PrivacyError where the client holds another number of records than in the rounds before.
        """
        if self._records == -1:
            self._records = records
            self._write("groups", 0, _GROUPS.pack(self._key, records))
        if self._records != records:
            raise PrivacyError(
                f"this client held {self._records} records when the run began and holds {records} now, so they would "
                "change groups; restore the records, or begin another run"
            )
        bands = len(self._correlation)
        words = KeyStream(self._key).words(records, np.uint64) >> np.uint64(32)
        return np.flatnonzero((words * np.uint64(bands)) >> np.uint64(32) == number % bands).astype(np.int64)

    def noise(self, number: int, fresh: Integers) -> Integers:
        """Return the noise of round ``number``, made of fresh noise, and keep it."""
        if self._pending is not None:  # nobody signed for it
            del self._noise[self._pending]
        self._forget(number)
        for earlier in self._kept("noise").keys() - self._noise.keys():
            content = self._read(8 * self._size, "noise", earlier) if earlier < number else None
            if content is not None:
                self._noise[earlier] = np.frombuffer(content, "<i8").astype(np.int64)
        past = {lag: self._noise[earlier] for lag, earlier in enumerate(sorted(self._noise, reverse=True), 1)}
        drawn = self._noise[number] = correlate(fresh, past, self._correlation)
        self._pending = number if self._signs else None
        self._forget(number + 1)
        if number < self._last:
            try:
                self._write("noise", number, drawn.astype("<i8").tobytes(), "pending" if self._signs else "noise")
            except RunError as error:
                _LOG.warning("round %d: its noise was not kept, later rounds take less back: %s", number, error)
        return drawn

    def include(self) -> None:
        """Note that the last upload is in the sum that the survivors sign."""
        self._pending = None
        for file in self._kept("pending").values():
            file.replace(file.with_suffix(".noise"))

    def _forget(self, number: int) -> None:
        """Erase what is out of the band of round ``number``, and all after the last round."""
        first = number - len(self._correlation) + 1 if number <= self._last else number
        self._noise = {earlier: vector for earlier, vector in self._noise.items() if earlier >= first}
        late = [file for earlier, file in self._kept("noise").items() if earlier < first]
        for file in [*self._kept("pending").values(), *late]:
            file.unlink(missing_ok=True)

    def _kept(self, suffix: str) -> dict[int, Path]:
        return {} if self._files is None else self._files.find(suffix)

    def _read(self, size: int, kind: str, number: int) -> bytes | None:
        """Open a file of so many bytes; None, and a line in the log, where there is none that can be used."""
        if self._files is None or (file := self._files.find(kind).get(number)) is None:
            return None
        try:
            content = self._files.read(file, kind, number)
        except ProtocolError as error:
            _LOG.warning("round %d: kept %s cannot be used: %s", number, kind, error)
            return None
        return content if len(content) == size else None  # sealed for this plan, so of another version

    def _write(self, kind: str, number: int, content: bytes, suffix: str = "") -> None:
        if self._files is not None:
            self._files.write(kind, number, content, suffix)
