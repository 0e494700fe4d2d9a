"""Faults against a real deployment: SuperLink, SuperNodes with TLS and node keys, and agents.

One deployment serves all of them, in order; each leaves it whole. What every fault led to is a row
of a table, and the last test counts the rows.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import node_folder
from carefl_secure.deployment.provisioning.sites import Sites
from carefl_secure.errors import CohortError, EngineError
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support import deployment as _deployment
from tests.support.federation import toy_plan

At, CLIENTS = _deployment.At, _deployment.CLIENTS

pytestmark = pytest.mark.slow

PHASES = ("query.advertise", "query.share", "train.masked", "query.sign", "query.unmask")
ROUNDS = len(PHASES)
VICTIMS = ("s1", "s3", "s0", "s2", "s1")
FLOOR = 3
PLAIN = "federation.key_prefetch=false"


@dataclass(frozen=True)
class Row:
    """What one fault led to."""

    fault: str
    phase: str
    ended: str
    released: tuple[int, ...]
    seconds: float | None = None
    """The round in which it happened; for a run that ended there, none."""


TABLE: list[Row] = []


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    plan = toy_plan(CLIENTS, rounds=ROUNDS)
    one = _deployment.Deployment(tmp_path_factory.mktemp("logs"), plan)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "", f"run-{time.monotonic_ns()}")


def released(folder: RunFolder) -> tuple[int, ...]:
    entries = Ledger(folder.ledger).entries() if folder.ledger.exists() else ()
    return tuple(int(e.payload["survivors"]) for e in entries if e.kind == "release")


def note(
    fault: str, phase: str, deployment: Any, folder: RunFolder, ended: str, number: int | None = None
) -> tuple[int, ...]:
    """Check what holds whatever happened, and add a row, with the time of the round in which it happened."""
    sums = released(folder)
    assert all(survivors >= FLOOR for survivors in sums)
    server = Ledger(folder.ledger, {"run": folder.name})
    paid = 0
    if folder.ledger.exists():
        server.verify()
        paid = len(server.events())
    assert len(sums) <= paid <= ROUNDS
    # Whoever is in a sum that was opened has paid for it; nobody pays more than the plan's rounds.
    spends = [deployment.spends(name, folder.run_id) for name in deployment.names]
    assert sum(map(len, spends)) >= sum(sums)
    assert all(len(one) <= ROUNDS for one in spends)
    state = folder.read_checkpoint()
    assert [row["round"] for row in folder.read_metrics()] == list(range(1, int(str(state["round"])) + 1))
    assert len(sums) - 1 <= int(str(state["round"])) <= len(sums)
    rows = {row["round"]: row for row in folder.read_metrics()}
    TABLE.append(
        Row(fault, phase, ended, sums, None)
        if number is None
        else Row(fault, phase, ended, (sums[number - 1],), float(rows[number]["seconds"]))
    )
    return sums


def listening(socket: Path) -> None:
    """Wait until an agent answers there."""
    end = time.monotonic() + 120
    while True:
        try:
            Client(str(socket), "AF_UNIX").close()
            return
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < end
            time.sleep(0.05)


def schedule() -> list[tuple[int, str, str]]:
    """Return one fault per round, each in another phase."""
    return [(n, *one) for n, one in enumerate(zip(PHASES, VICTIMS, strict=True), 1)]


def killed_agent(deployment: Any, name: str) -> Callable[[], None]:
    def deed() -> None:
        deployment.signal(f"agent-{name}", signal.SIGKILL)
        deployment.start_agent(name)
        listening(deployment.home / f"{name}.sock")

    return deed


def test_the_server_killed_at_every_phase_goes_on(deployment: Any, folder: RunFolder) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for attempt, phase in enumerate(PHASES):
        status = deployment.run_elsewhere(folder, PLAIN, resume=attempt > 0, record=At([(1, phase, die)]))
        assert status == -signal.SIGKILL
        assert note("server killed", phase, deployment, folder, "SIGKILL") == ()
    assert deployment.run_elsewhere(folder, PLAIN, resume=True) == 0
    # Three of the five had paid before they died; those rounds are not run again.
    lost = 3
    assert released(folder) == (CLIENTS,) * (ROUNDS - lost)
    assert len(Ledger(folder.ledger).events()) == ROUNDS
    rows = folder.read_metrics()
    assert [row["round"] for row in rows] == list(range(1, ROUNDS - lost + 1))
    note("server killed five times, resumed", "all", deployment, folder, "run finished")
    for number in range(1, ROUNDS - lost + 1):
        note("none", "", deployment, folder, "run finished", number)


def test_supernodes_killed_at_every_phase_are_done_without_until_they_are_back(
    deployment: Any, folder: RunFolder
) -> None:
    back: list[threading.Thread] = []

    def all_back() -> None:
        for thread in back:
            thread.join()

    def deed(name: str) -> Callable[[], None]:
        def kill() -> None:
            all_back()  # one site at a time, or the floor does not hold
            deployment.signal(f"node-{name}", signal.SIGKILL)
            back.append(threading.Thread(target=deployment.start_node_again, args=(name,)))
            back[-1].start()

        return kill

    kills = [(n, phase, deed(name)) for n, phase, name in schedule()]
    at = At([*kills, *((n, PHASES[0], all_back) for n in range(2, ROUNDS + 1))])
    result = deployment.run(folder, PLAIN, record=at)
    all_back()
    assert isinstance(result, FederationResult), result
    assert not at.left
    assert len(deployment.online()) == CLIENTS
    # A vector that arrived is in the sum; of the others, who is back in time.
    sums = released(folder)
    assert len(sums) == ROUNDS and sums[-2:] == (CLIENTS, CLIENTS), sums
    for number, phase in enumerate(PHASES, 1):
        note("SuperNode killed, started again", phase, deployment, folder, "run finished", number)


def test_a_node_past_its_deadline_or_gone_for_good_is_done_without(deployment: Any, folder: RunFolder) -> None:
    at = At(
        [
            (1, "train.masked", lambda: deployment.signal("agent-s2", signal.SIGSTOP)),
            (1, "query.sign", lambda: deployment.signal("agent-s2", signal.SIGCONT)),
            (3, "query.share", lambda: deployment.signal("node-s3", signal.SIGKILL)),
        ]
    )
    result = deployment.run(folder, PLAIN, record=at, timeout=40.0)
    assert isinstance(result, FederationResult), result
    assert not at.left
    sums = released(folder)
    assert sums == (3, 4, 3, 3, 3), sums
    note("agent slow past its deadline", "train.masked", deployment, folder, "run finished", 1)
    note("SuperNode killed for good", "query.share", deployment, folder, "run finished", 3)
    deployment.start_node_again("s3")


def test_a_superlink_killed_in_a_round_is_an_error_and_the_run_is_resumed(deployment: Any, folder: RunFolder) -> None:
    def kill() -> None:
        deployment.signal("superlink", signal.SIGKILL)

    result = deployment.run(folder, PLAIN, record=At([(2, "train.masked", kill)]))
    assert isinstance(result, EngineError), result
    assert note("SuperLink killed", "train.masked", deployment, folder, "EngineError") == (4,)
    deployment.start_superlink()
    for name in deployment.names:
        if deployment.running[f"node-{name}"].poll() is not None:
            deployment.start_node_again(name)
    end = time.monotonic() + 180
    while len(deployment.online()) < CLIENTS:
        assert time.monotonic() < end, "the nodes did not come back"
        time.sleep(0.5)
    again = deployment.run(folder, PLAIN, resume=True)
    assert isinstance(again, FederationResult), again
    assert released(folder) == (CLIENTS,) * (ROUNDS - 1)
    note("SuperLink killed, resumed", "train.masked", deployment, folder, "run finished")


def test_who_is_not_of_this_deployment_is_not_let_in(deployment: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    rehearse(Sites("other", "127.0.0.1", deployment.port, {"x": None}, days=1), foreign)
    stranger = tmp_path / "stranger"  # trusts this deployment, but its node key is not registered
    shutil.copytree(foreign / "sites" / "x", stranger)
    shutil.copy(deployment.bundles / "sites" / "s0" / "ca.crt", node_folder(stranger) / "ca.crt")
    before = deployment.online()
    for name, bundle in (("foreign", foreign / "sites" / "x"), ("stranger", stranger)):
        process = deployment.start_node(name, bundle)
        end = time.monotonic() + 60
        log = deployment.logs / f"node-{name}.log"
        while process.poll() is None and "rror" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        deployment.signal(f"node-{name}", signal.SIGKILL)
        assert "SuperNode ID:" not in log.read_text()  # which one that is let in writes
    assert sorted(deployment.online()) == sorted(before)
    for fault in ("node of another authority", "unregistered node key"):
        TABLE.append(Row(fault, "join", "not let in", ()))


def test_agents_killed_at_every_phase_are_back_in_the_next_round(deployment: Any, folder: RunFolder) -> None:
    at = At([(n, phase, killed_agent(deployment, name)) for n, phase, name in schedule()])
    result = deployment.run(folder, PLAIN, record=at)
    assert isinstance(result, FederationResult), result
    assert not at.left
    # Whose keys were not yet made takes part at once; a vector that has arrived is in the sum.
    assert released(folder) == (4, 3, 3, 4, 4), released(folder)
    for number, phase in enumerate(PHASES, 1):
        note("agent killed, started again", phase, deployment, folder, "run finished", number)


def test_below_min_survivors_the_run_ends_and_nothing_is_opened(deployment: Any, folder: RunFolder) -> None:
    def two() -> None:
        for name in ("s0", "s1"):
            killed_agent(deployment, name)()

    result = deployment.run(folder, PLAIN, record=At([(1, "train.masked", two)]))
    assert isinstance(result, CohortError), result
    assert released(folder) == ()
    note("two of four agents killed", "train.masked", deployment, folder, "CohortError")
    again = deployment.run(folder, PLAIN, resume=True)
    assert isinstance(again, FederationResult), again
    assert released(folder) == (CLIENTS,) * (ROUNDS - 1)


def test_keys_made_ahead_are_lost_with_their_agent_and_it_comes_back(deployment: Any, folder: RunFolder) -> None:
    at = At([(2, phase, killed_agent(deployment, "s1")) for phase in PHASES[2:3]])
    result = deployment.run(folder, "federation.key_prefetch=true", record=at)
    assert isinstance(result, FederationResult), result
    assert not at.left
    assert released(folder)[1] == CLIENTS - 1 and released(folder)[-1] == CLIENTS
    note("agent killed, keys made ahead", PHASES[2], deployment, folder, "run finished", 2)


def test_every_fault_was_counted(record_testsuite_property: Callable[[str, object], None]) -> None:
    lines = ["| fault | at | the run | sites in the sums | seconds of the round |", "| --- | --- | --- | --- | --- |"]
    for row in TABLE:
        opened = ", ".join(map(str, row.released)) or "none opened"
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(f"| {row.fault} | {row.phase} | {row.ended} | {opened} | {seconds} |")
    record_testsuite_property("faults", "\n".join(lines))
    print("\n".join(lines))
    counts: dict[str, set[str]] = {}
    for row in TABLE:
        counts.setdefault(row.fault, set()).add(row.phase)
    for fault in ("agent killed, started again", "SuperNode killed, started again", "server killed"):
        assert counts[fault] == set(PHASES)
    assert len(counts) == 13, counts
    assert not [row for row in TABLE if min(row.released, default=FLOOR) < FLOOR]
