"""What a site writes down for its own people: reasons and notes, and one line per answer."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from carefl_secure.deployment.flower.processes import open_log
from carefl_secure.progress import SilentReporter

_LOG = logging.getLogger(__name__)


class SiteLog(SilentReporter):
    """The files ``refusals.log`` and ``agent.jsonl`` of a bundle.

    ``run`` is the name of the run in progress. A file of more than 10 MB becomes ``NAME.1``. A line that cannot be
    written, on a full disk for one, goes to standard error instead, and never changes what is answered.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self.run = ""

    def reason(self, error: BaseException) -> None:
        """Keep why something was refused or failed; it may describe records."""
        self._keep(f"{type(error).__name__}: {error}")

    def note(self, text: str) -> None:
        """Keep a sentence about the records, such as how many were left out and why."""
        self._keep(f"note: {text}")

    def answered(self, action: str, group: str, code: int) -> None:
        """Keep one answer; nothing in the line is computed from a record."""
        line = {"time": round(time.time(), 3), "run": self.run, "action": action}
        self._append("agent.jsonl", json.dumps({**line, "round": group, "code": code}))

    def _keep(self, text: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._append("refusals.log", f"{now} {self.run!r}: {text}" if self.run else f"{now} {text}")

    def _append(self, name: str, line: str) -> None:
        try:
            with open_log(self._bundle / name) as file:
                file.write(f"{line}\n".encode())
        except OSError as error:
            _LOG.error("%s cannot be written (%s): %s", self._bundle / name, error.strerror, line)
