"""The agents of all sites of one machine, forked from one process that has imported their code.

Importing torch and a model library takes eight seconds of a core and 300 MB. Here that happens once
per machine and the memory is shared; separate sites each start their own agent. ``python -m
carefl_secure.deployment.superlink.agents FILE`` reads a JSON list of `Order` objects.

The forkserver of `multiprocessing` does not fit: it cannot be ended by a public call and would
outlive the run, imports the caller's main module into every child, ignores a module that cannot be
preloaded, and one that the caller started earlier, with another environment, would be reused.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

_log = logging.getLogger(__name__)


class Order(TypedDict):
    """One process: the file for its output, and its command line."""

    log: str
    words: list[str]


def fork_all(orders: Sequence[Order], program: Callable[[], None]) -> None:
    """Fork one process per order, run the program in each, and end with the first that ends.

    ``program`` reads its command line from ``sys.argv``. Its standard input is that of this
    process, so it ends when whoever started this process does.

    Guarantees
    ----------
    When one process ends, for whatever reason, all others are ended too: the whole group, of which
    this process must be the head. This process reads no key and no record.
    """
    gc.freeze()  # what is imported stays shared
    running: dict[int, str] = {}
    for order in orders:
        child = os.fork()
        if child == 0:
            with open(order["log"], "ab") as file:
                for number in (1, 2):
                    os.dup2(file.fileno(), number)
            sys.argv = [sys.argv[0], *order["words"]]
            program()
            return
        running[child] = order["log"]
    ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    _log.error("a process ended with %d; read %s for the reason", code, running[ended])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    sys.exit(1)


def main() -> None:
    """Import what agents need, then fork them."""
    orders = json.loads(Path(sys.argv[1]).read_text())
    agent = importlib.import_module("carefl_secure.deployment.site.agent")
    importlib.import_module("carefl_secure.runs.build")
    fork_all(orders, agent.main)


if __name__ == "__main__":
    main()
