"""What a deployment refuses before anything is started, and how long a round waits."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from carefl_secure.config import load_config
from carefl_secure.deployment.flower.superlink import ServerAddress
from carefl_secure.deployment.site.services import run_node, run_server
from carefl_secure.deployment.superlink.local import Loopback, _Local
from carefl_secure.deployment.superlink.parties import Deployed
from carefl_secure.deployment.superlink.remote import Remote, _Submitted
from carefl_secure.errors import ConfigError, EngineError, RunError
from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server import strategy
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.transport.local_grid import LocalGrid
from carefl_secure.noise import SystemKeySource
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import run_options
from tests.support import sites as _sites
from tests.support.running import federate


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    made: Path = _sites.make_bundles(tmp_path)
    return made


def quiet(_: str) -> None:
    raise AssertionError("something was started")


def test_two_servers_do_not_run_from_one_kit(bundles: Path) -> None:
    with (bundles / "server" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="another server runs from"):
            run_server(bundles / "server", "127.0.0.1", quiet)
    assert not (bundles / "server" / "address").exists()


def test_a_second_run_waits_for_the_end_of_the_first(bundles: Path, tmp_path: Path) -> None:
    ServerAddress("127.0.0.1:1", tmp_path / "run.sock").write(bundles / "server")
    config = _sites.settings("federation.public_records=120", "data.labels=basic")
    engine = Remote(config, SilentReporter(), bundles / "server", bundles / "submit")
    folder = RunFolder.create(tmp_path, "")
    plan = _sites.known_plan("none")
    with (bundles / "server" / "submit.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="another run is under way"):
            federate(
                plan,
                [],
                np.zeros(plan.encoding.dimension, np.float32),
                optimizer=FedAvg(1.0),
                folder=folder,
                base_hash=bytes(32),
                engine=engine,
            )
    assert not folder.ledger.exists()


@pytest.mark.parametrize(
    ("bundle", "start"),
    [
        ("server", lambda path: run_server(path, "127.0.0.1", quiet)),
        ("sites/s0", lambda path: run_node(path, None, quiet)),
    ],
)
def test_an_expired_kit_starts_nothing(bundles: Path, bundle: str, start: Callable[[Path], None]) -> None:
    about = bundles / bundle / "bundle.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "expires": time.time() - 1}))
    with pytest.raises(RunError, match="expired"):
        start(bundles / bundle)


def test_the_configured_time_is_what_every_message_has(
    tasks_toy: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float | None] = []
    real = LocalGrid.send_and_receive

    def spy(self: LocalGrid, messages: Any, *, timeout: float | None = None) -> Any:
        given.append(timeout)
        return real(self, messages, timeout=timeout)

    monkeypatch.setattr(LocalGrid, "send_and_receive", spy)
    plan = _sites.known_plan("none")
    config = load_config(None, ["performance.timeout_s=7"])
    options = run_options(config, lambda adapter: {}, SilentReporter())
    assert options["performance"].timeout == 7.0
    federate(
        plan,
        tasks_toy(4),
        np.zeros(plan.encoding.dimension, np.float32),
        optimizer=FedAvg(1.0),
        folder=RunFolder.create(tmp_path, ""),
        base_hash=bytes(32),
        timeout=options["performance"].timeout,
    )
    assert given and set(given) == {7.0}


def test_a_node_that_does_not_come_is_waited_for_once(
    tasks_toy: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(grid: Any, wanted: int, patience: float) -> list[int]:
        waits.append(patience)
        return sorted(grid.get_node_ids())[1:]

    monkeypatch.setattr(strategy, "wait_for_nodes", wait)
    plan = _sites.known_plan("none")
    result = federate(
        plan,
        tasks_toy(4),
        np.zeros(plan.encoding.dimension, np.float32),
        optimizer=FedAvg(1.0),
        folder=RunFolder.create(tmp_path, ""),
        base_hash=bytes(32),
        key_prefetch=False,
        timeout=5.0,
    )
    assert waits == [5.0] + [0.0] * (plan.privacy.rounds - 1)
    assert [row["survivors"] for row in result.rows] == [3] * plan.privacy.rounds


REFUSED: dict[str, dict[str, Any]] = {
    "federation.aggregation": {"aggregation": AggregationConfig(protocol="committee")},
    "privacy.max_epsilon": {"max_epsilon": 3.0},
    "the source of keys": {"key_source": lambda index: SystemKeySource()},
    "stages": {},
}


def unwanted() -> Any:
    raise AssertionError("the parent of remote clients made their tasks")


def specification(plan: Any, root: Path, **changes: Any) -> RunSpec:
    stage = Stage.only(plan)
    return RunSpec(
        **{"stage": stage, "tasks": unwanted, "folder": RunFolder.create(root, ""), "base_hash": bytes(32), **changes}
    )


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["remote", "loopback"])
def test_what_agents_would_ignore_is_refused(bundles: Path, tmp_path: Path, kind: str, name: str) -> None:
    words = ["federation.public_records=120", "data.labels=basic"]
    config = _sites.settings(*words)
    engine: Any = Loopback(config, SilentReporter())
    if kind == "remote":
        ServerAddress("127.0.0.1:1", tmp_path / "run.sock").write(bundles / "server")
        engine = Remote(config, SilentReporter(), bundles / "server", bundles / "submit")
    plan = _sites.known_plan("none")
    changes = dict(REFUSED[name])
    if name == "stages":
        changes["stage"] = dataclasses.replace(Stage.only(plan), name="2-compound")
    with pytest.raises(ConfigError, match=name):
        engine.start(specification(plan, tmp_path, **changes))


def test_sites_keep_their_own_ledgers(bundles: Path, tmp_path: Path) -> None:
    ServerAddress("127.0.0.1:1", tmp_path / "run.sock").write(bundles / "server")
    config = _sites.settings("federation.public_records=120", "data.labels=basic")
    engine = Remote(config, SilentReporter(), bundles / "server", bundles / "submit")
    spec = specification(_sites.known_plan("none"), tmp_path, ledgers=tmp_path)
    with pytest.raises(ConfigError, match=r"privacy\.ledgers"):
        engine.start(spec)


def test_workers_and_simulated_dropout_are_refused_where_they_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    run: Any = SimpleNamespace(cohort=None)
    words = (nothing, tmp_path / "s", run, SilentReporter())
    for kind in (Deployed, _Local, _Submitted):
        with pytest.raises(ConfigError, match=r"performance\.workers=2"):
            kind(*words).grid(2, None, None)
    with pytest.raises(ConfigError, match="among sites"):
        _Submitted(*words).grid(1, lambda node, message: False, None)


def test_a_local_deployment_makes_no_tasks_itself(tmp_path: Path) -> None:
    config = _sites.settings("federation.public_records=120", "data.labels=basic")
    engine = Loopback(config, SilentReporter())
    parties = engine.start(specification(_sites.known_plan("none"), tmp_path))
    parties.close()
