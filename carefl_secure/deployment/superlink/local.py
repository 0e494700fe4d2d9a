"""A whole deployment on this machine, with the bundles, agents, TLS and node keys of sites.

Importing torch and a model library takes eight seconds of a core and 300 MB. For the agents of all sites this happens
once, in one process that they are forked from, so the memory is shared; separate sites each start their own agent. As
``python -m carefl_secure.deployment.superlink.local FOLDER`` this module is that process. It reads a JSON list of
`Order` objects, one line of standard input.

The forkserver of `multiprocessing` does not fit: it cannot be ended by a public call and would outlive the run,
imports the caller's main module into every child, ignores a module that cannot be preloaded, and one that the caller
started earlier, with another environment, would be reused.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.deployment.flower.processes import Processes, free_port, interrupt_on_terminate
from carefl_secure.deployment.flower.superlink import Link, flower_environment, node_command, start_server
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.policy import allow_run
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import node_folder
from carefl_secure.deployment.provisioning.sites import REHEARSAL, Sites
from carefl_secure.deployment.superlink import parties
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.privacy import Ledger
from carefl_secure.progress import Reporter

_log = logging.getLogger(__name__)
_PATIENCE = 10.0
_BASE, _EACH = 0.8, 0.55  # GB; 20 nodes with their agents took 11.8


class Order(TypedDict):
    """One process: the file for its output, and its command line."""

    log: str
    words: list[str]


def fork_all(orders: Sequence[Order], program: Callable[[], None]) -> None:
    """Fork one process per order, run the program in each, and end with the first that ends.

    ``program`` reads its command line from ``sys.argv``. Its standard input is that of this process, so it ends when
    whoever started this process does. Returns here, in the process of the call, once all have been told to end.

    Guarantees
    ----------
    When one process ends, for whatever reason, all others are ended too: the whole group, of which this process must
    be the head. This process reads no key and no record.
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
            sys.exit(0)
        running[child] = order["log"]
    ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    _log.error("a process ended with %d; read %s for the reason", code, running[ended])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)


class _Local(parties.Deployed):
    """A deployment whose every process was started here; ``end`` stops and erases them."""

    launch: Callable[[], None]
    end: Callable[[], None]

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Start every process, then go on as between sites; `close` ends them in any case."""
        parties.refuse_workers(workers)
        self.launch()
        return super().grid(workers, drop, record)

    def close(self) -> None:
        """Hang up, end every process, and erase the keys made for this run."""
        try:
            super().close()
        finally:
            self.end()


class Loopback:
    """Starts SuperLink, SuperNodes and agents on this machine for one run.

    Guarantees
    ----------
    Everything listens on the loopback only, behind TLS with an authority made for this run, and only nodes with
    registered keys are let in. No process that was started here outlives `Parties.close`, which also erases all
    private keys. Where this process is killed, its children end with their standard input, and the one that the agents
    are forked from erases the keys.
    """

    def __init__(self, config: Config, reporter: Reporter) -> None:
        parties.refuse_stages(config)
        self._config = config
        self._reporter = reporter

    def start(self, spec: RunSpec) -> parties.Deployed:
        """Prepare everything and return the parties; on failure nothing is left behind."""
        parties.refuse_unfit(spec, self._config)
        home = Path(tempfile.mkdtemp(prefix="carefl-"))
        processes = Processes(spec.folder.path / "logs")
        restore = interrupt_on_terminate()

        def end() -> None:
            processes.stop()
            shutil.rmtree(home, ignore_errors=True)
            restore()

        with ExitStack() as undo:
            undo.callback(end)
            deployed = self._prepare(home, processes, spec)
            undo.pop_all()
        deployed.end = end
        atexit.register(end)  # keys go even if the run never gets as far as its rounds
        return deployed

    def _prepare(self, home: Path, processes: Processes, spec: RunSpec) -> _Local:
        # First: its imports take longer than all that Flower does until it needs the agents.
        forking = processes.start("agents", [sys.executable, "-m", __name__, str(home)])
        folder, ledgers = spec.folder, spec.ledgers
        config, port = self._config, free_port()
        bundles = home / "bundles"
        names = [f"site{i}" for i in range(config.federation.clients)]
        helpers = tuple(f"helper{i}" for i in range(spec.aggregation.helpers))
        sites = Sites("loopback", "127.0.0.1", port, dict.fromkeys(names, None), helpers, days=1)
        roster = rehearse(sites, bundles)
        paths = [folder.client_ledger(i) if ledgers is None else ledgers / f"{i}.jsonl" for i in range(len(names))]
        agents = {name: home / f"{i}.sock" for i, name in enumerate([*names, *sites.helpers])}
        for name in agents:
            path, limit = bundles / "sites" / name / "policy.yaml", config.privacy.max_epsilon
            allow_run(path, spec.plan, spec.aggregation, limit)
        socket = home / "server.sock"
        link = Link(f"127.0.0.1:{port}", bundles / "server")

        orders: list[Order] = []
        for i, (name, agent) in enumerate(agents.items()):
            words = [str(bundles / "sites" / name), str(agent), "--rehearsal", "--until-eof"]
            words += ["--keys", str(folder.keys.resolve())]
            if name in names:
                words += ["--ledger", str(paths[i].resolve())]
            orders.append({"log": str((folder.path / "logs" / f"agent-{name}.log").resolve()), "words": words})

        def launch() -> None:
            assert forking.stdin is not None
            forking.stdin.write(json.dumps(orders).encode() + b"\n")
            forking.stdin.flush()
            need, has = _BASE + len(agents) * _EACH, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
            self._reporter.note(
                f"starting a SuperLink and {len(agents)} SuperNodes on the loopback, in about {need:.1f} GB of memory "
                f"with the embedded model (this machine has {has:.1f} GB); {REHEARSAL}"
            )
            start_server(processes, bundles / "server", "127.0.0.1", port, socket, lasting=False)
            link.wait(parties._START, processes.check)
            link.register()
            for name, agent in agents.items():
                bundle = bundles / "sites" / name
                start = node_command(node_folder(bundle), f"127.0.0.1:{port}", agent)
                processes.start(f"node-{name}", start, flower_environment(bundle / "flower"))

        run = parties.ProposedRun.of(spec, config, roster, read_identity(bundles / "submit" / "submit.key"))
        held = [Ledger(path, {"client": str(i)}) for i, path in enumerate(paths)]
        deployed = _Local(link, socket, run, self._reporter, ledgers=held, alive=processes.check)
        deployed.launch = launch
        return deployed


def main() -> None:
    """Import what agents need, then fork them; erase the folder where whoever started this is gone."""
    agent = importlib.import_module("carefl_secure.deployment.site.agent")
    importlib.import_module("carefl_secure.runs.build")
    with os.fdopen(os.dup(0), "rb", 0) as line:  # unbuffered: the rest is the agents'
        orders = line.readline()
    if orders:
        fork_all(json.loads(orders), agent.main)
    end = time.monotonic() + _PATIENCE  # Flower's processes may write for a moment yet
    while Path(sys.argv[1]).exists() and time.monotonic() < end:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        time.sleep(0.1)
    sys.exit(1)


if __name__ == "__main__":
    main()
