"""The server's own log of a run: which step was asked of how many, and who did not answer."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from flwr.app import Message

from carefl_secure.errors import CareflError, ProtocolError, RunError
from carefl_secure.federation.transport.local_grid import Record
from carefl_secure.progress import SILENT, Reporter
from carefl_secure.secagg import SenderError


def _task(step: tuple[str, str]) -> str:
    return f"round {step[0]}, {step[1].rpartition('.')[2]}"


class EventLog:
    """Lines of JSON, added to a file; use it as a context around the rounds.

    ``begin`` and ``end`` frame each start of a run, ``end`` with the class and exit code of the error that stopped it.
    A ``phase`` counts, for a step of a round, messages sent, good replies, and who refused with which number; the
    lines of interleaved steps add up. A ``round`` was opened over so many clients; its sum may be ``rejected``, so
    many times too long, and a client, by its place in the roster, ``excluded`` after it. ``traffic`` has the bytes of
    a round by site. A ``fault`` names the node
    that refused, whose message failed a check, or that accuses another client's.

    Guarantees
    ----------
    Nothing in it is computed from a record, a vector or a text that came over the wire: names of steps, checks and
    sites, numbers of rounds, nodes and clients, counts of messages and bytes, exit codes, the length of an opened sum,
    and times.
    """

    def __init__(self, path: Path, reporter: Reporter = SILENT, parties: int = 0) -> None:
        self._path, self._reporter, self._parties = path, reporter, parties  # each step is a task of the reporter
        self._step: tuple[str, str] | None = None
        self._asked = self._answered = 0
        self._refused: dict[str, int] = {}
        self.names: Mapping[int, str] = {}  # the sites', by their nodes

    def begin(self, run: str, parties: int, first: int, last: int) -> None:
        """Say what is about to run: its name, its parties, and its rounds from first to last."""
        self._write("begin", {"run": run, "parties": parties, "first": first, "last": last})

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._end_step()
        code = error.exit_code if isinstance(error, CareflError) else None
        self._write("end", {"error": None if kind is None else kind.__name__, "code": code})

    def watching(self, record: Record | None) -> Record:
        """Return a hook for a grid that counts messages and then calls ``record``."""

        def watch(node: int, message: Message) -> None:
            self._count(node, message)
            if record is not None:
                record(node, message)

        return watch

    def opened(self, number: int, survivors: int) -> None:
        """Say that a round was opened."""
        self._end_step()
        self._write("round", {"round": number, "survivors": survivors})

    def traffic(self, number: int, counts: Mapping[int, tuple[int, int]]) -> None:
        """Say how many bytes came from each site in a round, and how many went to it."""
        found = {str(self.names.get(node, node)): counts[node] for node in sorted(counts)}
        self._write("traffic", {"round": number, "bytes_up_down": found})

    def fault(self, number: int, step: str, node: int, error: CareflError, excluded: bool) -> None:
        """Say who sent a bad message, or accuses another, and whether its node is excluded."""
        name = type(error).__name__
        check = str(error).partition(":")[0] if isinstance(error, ProtocolError) else ""
        fields = {"round": number, "step": step, "node": self.names.get(node, node), "error": name, "check": check}
        if isinstance(error, SenderError):
            fields["accused"] = error.sender
        self._write("fault", {**fields, "excluded": excluded})

    def judged(self, number: int, excess: float, excluded: Collection[int]) -> None:
        """Say that the sum of a round was rejected, if ``excess`` is not 0, and who is excluded."""
        if excess:
            self._write("rejected", {"round": number, "excess": round(excess, 3)})
        for index in sorted(excluded):
            self._write("excluded", {"round": number, "client": index})

    def _count(self, node: int, message: Message) -> None:
        meta = message.metadata
        step = meta.group_id, meta.message_type
        if step != self._step:
            self._end_step()
            self._step = step
            self._reporter.start(_task(step), self._parties)
        if node == meta.dst_node_id:
            self._asked += 1
            return
        self._reporter.advance(_task(step))
        if message.has_error():
            self._refused[self.names.get(node, str(node))] = message.error.code
        else:
            self._answered += 1

    def _end_step(self) -> None:
        if self._step is None:
            return
        number, action = self._step
        self._reporter.finish(_task(self._step))
        line = {"round": int(number or 0), "step": action, "asked": self._asked}
        self._write("phase", {**line, "answered": self._answered, "refused": self._refused})
        self._step, self._asked, self._answered, self._refused = None, 0, 0, {}

    def _write(self, event: str, fields: Mapping[str, object]) -> None:
        line = {"time": round(time.time(), 3), "event": event, **fields}
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write the log {self._path}: {error.strerror}; free some space or check "
                "the permissions, then resume the run"
            ) from error
