"""A real deployment on the loopback, with toys for work, whose every process can be killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.flower.processes import Processes, free_port
from carefl_secure.deployment.flower.superlink import Link, flower_environment, node_command, start_server
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import node_folder
from carefl_secure.deployment.provisioning.sites import Roster, Sites
from carefl_secure.deployment.superlink.parties import Deployed, ProposedRun
from carefl_secure.errors import CareflError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

CLIENTS = 4
_AGENT = Path(__file__).with_name("toy_agent.py")


class Deployment:
    """SuperLink, SuperNodes with TLS and node keys, and agents: each a process of its own.

    Parameters
    ----------
    logs : Path
    plan : RunPlan
    helpers : int, optional
    """

    def __init__(self, logs: Path, plan: RunPlan, helpers: int = 0) -> None:
        self.plan, self.logs = plan, logs
        self.home = Path(tempfile.mkdtemp(prefix="carefl-"))  # a socket's path must be short
        self.bundles = self.home / "bundles"
        self.port = free_port()
        self.ports: dict[str, int] = {}  # by site, where one reaches the server by another port
        names = {f"s{i}": None for i in range(CLIENTS)}
        extra = tuple(f"h{i}" for i in range(helpers))
        self.names = [*names, *extra]
        rehearse(Sites("faults", "127.0.0.1", self.port, names, extra, days=1), self.bundles)
        for name in self.names:
            self.allow(name, max_epsilon_total=1e4, max_epsilon_per_corpus=1e4)
        (self.home / "plan").write_bytes(pickle.dumps(plan))
        self.socket = self.home / "server.sock"
        self.processes = Processes(logs)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.link = Link(f"127.0.0.1:{self.port}", self.bundles / "server")

    def allow(self, name: str, **changes: Any) -> None:
        path = self.bundles / "sites" / name / "policy.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    # --- processes -----------------------------------------------------------------------------

    def start(self) -> None:
        for name in self.names:
            self.start_agent(name)
        self.start_superlink()
        for name in self.names:
            self.start_node(name)
        end = time.monotonic() + 120
        while len(self.online()) < len(self.names):
            assert time.monotonic() < end, "the nodes did not come"
            time.sleep(0.5)

    def start_superlink(self) -> None:
        start_server(self.processes, self.bundles / "server", "127.0.0.1", self.port, self.socket)
        self.running["superlink"] = self.processes._running[-1][1]
        self.link.wait(120)
        self.link.register()

    def start_agent(self, name: str) -> None:
        bundle, socket = self.bundles / "sites" / name, self.home / f"{name}.sock"
        command = [sys.executable, str(_AGENT), str(self.home / "plan"), str(bundle), str(socket)]
        agent = self.processes.start(f"agent-{name}", [*command, "--until-eof"])
        self.running[f"agent-{name}"] = agent

    def start_node(self, name: str, bundle: Path | None = None) -> subprocess.Popen[bytes]:
        bundle = bundle or self.bundles / "sites" / name
        server = f"127.0.0.1:{self.ports.get(name, self.port)}"
        command = node_command(node_folder(bundle), server, self.home / f"{name}.sock")
        env = flower_environment(bundle / "flower")
        self.running[f"node-{name}"] = self.processes.start(f"node-{name}", command, env)
        return self.running[f"node-{name}"]

    def start_node_again(self, name: str) -> None:
        """Start a killed SuperNode until it is let in.

        Its SuperLink keeps the place of the one that was killed for up to a minute, and a new one
        that asks in this time is turned away and ends.
        """
        log, word = self.logs / f"node-{name}.log", "SuperNode ID:"
        before, end = log.read_text().count(word), time.monotonic() + 240
        process = self.start_node(name)
        while log.read_text().count(word) == before:
            assert time.monotonic() < end, f"node {name} was not let in"
            if process.poll() is not None:
                self.signal(f"node-{name}", signal.SIGKILL)  # and what it had started
                time.sleep(2.0)
                process = self.start_node(name)
            time.sleep(0.2)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process and to all of its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running[name].pid, number)
        if number == signal.SIGKILL:
            self.running[name].wait(30)

    def online(self) -> list[str]:
        """Return the names of the sites that the SuperLink lists as online."""
        return [name for name, here in self.link.online().items() if here]

    def stop(self) -> None:
        for process in self.running.values():  # one that is stopped does not hear a polite signal
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
        self.processes.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- runs ----------------------------------------------------------------------------------

    def engine(self, config: Config) -> Any:
        def start(spec: RunSpec) -> Deployed:
            key = read_identity(self.bundles / "submit" / "submit.key")
            self.socket.unlink(missing_ok=True)  # of a submitter that was killed
            roster = Roster.read(self.bundles / "server" / "roster.json")
            return Deployed(
                self.link, self.socket, ProposedRun.of(spec, config, roster, key), SilentReporter(), patience=120
            )

        return SimpleNamespace(start=start)

    def run(
        self,
        folder: RunFolder,
        *words: str,
        resume: bool = False,
        timeout: float = 120.0,
        record: Callable[[int, Any], None] | None = None,
    ) -> FederationResult | CareflError:
        """Run all rounds over the deployment; return what they ended with."""
        config = settings(*words)
        federation = config.federation
        dimension = self.plan.encoding.dimension
        try:
            return federate(
                self.plan,
                [],
                np.zeros(dimension, np.float32),
                optimizer=FedAdam(0.1),
                folder=folder,
                base_hash=bytes(32),
                engine=self.engine(config),
                resume=resume,
                timeout=timeout,
                record=record,
                aggregation=federation.aggregation,
                committee_members=federation.committee_members,
                committee_dropout_tolerance=federation.committee_dropout_tolerance,
                key_prefetch=federation.key_prefetch,
            )
        except CareflError as error:
            return error

    def run_elsewhere(self, folder: RunFolder, *words: str, **options: Any) -> int:
        """Run in a process of its own; return its exit status, negative where it was killed."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                result = self.run(folder, *words, **options)
                code = result.exit_code if isinstance(result, CareflError) else 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def spends(self, name: str, run: str) -> list[int]:
        """Return the rounds of a run that a site has paid for."""
        rounds: list[int] = []
        for path in (self.bundles / "sites" / name / "ledgers").glob("*.jsonl"):
            rounds += [
                int(entry.payload["round"])
                for entry in Ledger(path).entries()
                if entry.kind == "spend" and entry.payload.get("run") == run
            ]
        return rounds


def settings(*words: str) -> Config:
    return load_config(None, ["simulation.dropout=0", f"federation.clients={CLIENTS}", *words])


class At:
    """Does something when the first message of an action goes out in a round, once.

    Parameters
    ----------
    deeds : sequence of (round, action, callable)
    """

    def __init__(self, deeds: Sequence[tuple[int, str, Callable[[], None]]]) -> None:
        self._deeds = {(str(number), action): deed for number, action, deed in deeds}
        self.done: list[tuple[str, str]] = []

    def __call__(self, node: int, message: Any) -> None:
        meta = message.metadata
        deed = self._deeds.pop((meta.group_id, meta.message_type), None)
        if deed is not None:
            self.done.append((meta.group_id, meta.message_type))
            deed()

    @property
    def left(self) -> int:
        return len(self._deeds)
