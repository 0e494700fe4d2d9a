"""A whole deployment on this machine, with the bundles, agents, TLS and node keys of sites."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.deployment.flower.guard import Guard
from carefl_secure.deployment.flower.processes import Processes, free_port, interrupt_on_terminate
from carefl_secure.deployment.flower.superlink import Link, flower_environment, node_command, start_server
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.policy import allow_run
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import node_folder
from carefl_secure.deployment.provisioning.sites import REHEARSAL, Sites
from carefl_secure.deployment.superlink.parties import (
    _START,
    Deployed,
    ProposedRun,
    refuse_stages,
    refuse_unfit,
    refuse_workers,
)
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.privacy import Ledger
from carefl_secure.progress import Reporter

_AGENTS = "carefl_secure.deployment.superlink.agents"


class _Local(Deployed):
    """A deployment whose every process was started here; ``end`` stops and erases them."""

    launch: Callable[[], None]
    end: Callable[[], None]

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Start every process, then go on as between sites; `close` ends them in any case."""
        refuse_workers(workers)
        self.launch()
        return super().grid(workers, drop, record)

    def close(self) -> None:
        """Hang up, end every process, and erase the keys made for this run."""
        try:
            super().close()
            self._link.close()
        finally:
            self.end()


class Loopback:
    """Starts SuperLink, SuperNodes and agents on this machine for one run.

    Guarantees
    ----------
    Everything listens on the loopback only, behind TLS with an authority made for this run, and only nodes with
    registered keys are let in. No process that was started here outlives `Parties.close`, which also erases all
    private keys; where this process is killed, a guard does both.
    """

    def __init__(self, config: Config, reporter: Reporter) -> None:
        refuse_stages(config)
        self._config = config
        self._reporter = reporter

    def start(self, spec: RunSpec) -> Deployed:
        """Prepare everything and return the parties; on failure nothing is left behind."""
        refuse_unfit(spec, self._config)
        home = Path(tempfile.mkdtemp(prefix="carefl-"))
        processes = Processes(spec.folder.path / "logs")
        guard = Guard(home)
        restore = interrupt_on_terminate()

        def end() -> None:
            processes.stop()
            shutil.rmtree(home, ignore_errors=True)
            guard.release()
            restore()

        with ExitStack() as undo:
            undo.callback(end)
            deployed = self._prepare(home, processes, guard, spec)
            undo.pop_all()
        deployed.end = end
        atexit.register(end)  # keys go even if the run never gets as far as its rounds
        return deployed

    def _prepare(self, home: Path, processes: Processes, guard: Guard, spec: RunSpec) -> _Local:
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
        link = Link(f"127.0.0.1:{port}", bundles / "server" / "ca.crt", home / "flower")

        orders = []
        for i, (name, agent) in enumerate(agents.items()):
            words = [str(bundles / "sites" / name), str(agent), "--rehearsal", "--until-eof"]
            words += ["--keys", str(folder.keys.resolve())]
            if name in names:
                words += ["--ledger", str(paths[i].resolve())]
            log = (folder.path / "logs" / f"agent-{name}.log").resolve()
            orders.append({"log": str(log), "words": words})
        (home / "agents.json").write_text(json.dumps(orders))

        def launch() -> None:
            # First: their imports take longer than all that Flower does until it needs them.
            processes.start("agents", [sys.executable, "-m", _AGENTS, str(home / "agents.json")])
            self._reporter.note(f"starting a SuperLink and {len(agents)} SuperNodes on the loopback; {REHEARSAL}")
            start_server(processes, bundles / "server", "127.0.0.1", port, socket, lasting=False)
            guard.watch(processes.groups)
            link.wait(_START, processes.check)
            link.register([bundles / "server" / "nodes" / f"{name}.pub" for name in agents])
            for name, agent in agents.items():
                bundle = bundles / "sites" / name
                start = node_command(node_folder(bundle), f"127.0.0.1:{port}", agent)
                processes.start(f"node-{name}", start, flower_environment(bundle / "flower"))
            guard.watch(processes.groups)

        run = ProposedRun.of(spec, config, roster, read_identity(bundles / "submit" / "submit.key"))
        held = [Ledger(path, {"client": str(i)}) for i, path in enumerate(paths)]
        deployed = _Local(link, socket, run, self._reporter, home, ledgers=held, alive=processes.check)
        deployed.launch = launch
        return deployed
