"""What the logs of server and sites hold: steps, counts, numbers, and nothing made from data."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.provisioning.sites import Roster, Sites
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.proposal import Proposal, cohort_of, propose
from carefl_secure.errors import BudgetExceededError, CareflError, CohortError, RunError
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server import event_log as journal
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.local_grid import FIRST_NODE, Drop, LocalGrid, Record
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs import plan_from_config
from tests.support.federation import known_plan
from tests.support.running import federate

CLIENTS, DIMENSION, ROUNDS = 5, 60, 2
VICTIM = FIRST_NODE + 3


class Private:
    """A corpus: how many records and which gradients is for nobody to know."""

    dimension = DIMENSION

    def __init__(self, seed: int, records: int, length: float) -> None:
        drawn = np.random.default_rng(seed).normal(size=(records, DIMENSION))
        self.gradients = length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        self.records = records

    def clipped_sum(self, adapter: Any, indices: Any, number: int = 1) -> Any:
        return self.gradients[indices].sum(axis=0)


def corpus(which: int) -> list[Private]:
    return [
        Private(100 * which + client, 30 + 7 * which * (client % 2), (1.0, 0.01)[which]) for client in range(CLIENTS)
    ]


def settings() -> Config:
    words = [f"federation.clients={CLIENTS}", "simulation.dropout=0"]
    return load_config(None, [*words, f"federation.public_records={30 * CLIENTS}"])


class AtSites:
    """An engine whose clients are agents with bundles; a function call stands for the relay."""

    def __init__(self, home: Path, tasks: Sequence[Private], patch: pytest.MonkeyPatch) -> None:
        sites = Sites("t", "127.0.0.1", 1, {f"s{i}": None for i in range(CLIENTS)}, days=1)
        rehearse(sites, home)
        self.home = home
        for path in (home / "sites").iterdir():
            policy = yaml.safe_load((path / "policy.yaml").read_text())
            policy["max_epsilon_total"] = 100.0
            (path / "policy.yaml").write_text(yaml.safe_dump(policy))
        patch.setattr(
            agents, "Work", lambda config, plan, index, *_: SimpleNamespace(base_hash=bytes(32), task=tasks[index])
        )
        patch.setattr(plan_from_config, "plan_with", lambda *_, **__: known_plan(CLIENTS, DIMENSION, rounds=ROUNDS))
        self.agents = [Agent(SiteBundle.open(home / "sites" / f"s{i}")) for i in range(CLIENTS)]
        self.ledgers: list[Any] = []

    def start(self, spec: RunSpec) -> AtSites:
        config, roster = settings(), Roster.read(self.home / "server" / "roster.json")
        run = spec.folder.run_id
        self.proposal = Proposal.of(run, config, spec.plan, bytes(32))
        self.cohort = cohort_of(config, run, roster, bytes(32))
        return self

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> LocalGrid:
        app = ClientApp()

        def pass_on(message: Message, context: Context) -> Message:
            agent = self.agents[int(context.node_config["partition-id"])]
            meta = message.metadata
            head = {"action": meta.message_type, "group": meta.group_id}
            answer, contents = agent.answer(head, message.content)
            if "code" in answer:
                return Message(Error(answer["code"], answer["reason"]), reply_to=message)
            return Message(contents[0], reply_to=message)

        for action in relay.ACTIONS:
            kind, _, name = action.partition(".")
            (app.train if kind == "train" else app.query)(name)(pass_on)
        grid = LocalGrid(app, CLIENTS, drop=lost, record=record)
        key = read_identity(self.home / "submit" / "submit.key")
        propose(grid, self.proposal, key, CLIENTS, 1.0)
        return grid

    def finish(self) -> None:
        pass

    def close(self) -> None:
        for agent in self.agents:
            agent.close()


def lost(node: int, message: Message) -> bool:
    """One client vanishes with its vector in round 1, on either corpus."""
    meta = message.metadata
    return node == VICTIM and meta.group_id == "1" and meta.message_type == "train.masked"


def run(root: Path, tasks: Sequence[Any], **options: Any) -> tuple[RunFolder, Any]:
    folder = options.pop("folder", None) or RunFolder.create(root, "", "a-run")
    try:
        result: Any = federate(
            known_plan(CLIENTS, DIMENSION, rounds=ROUNDS),
            tasks,
            np.zeros(DIMENSION, np.float32),
            optimizer=FedAvg(1.0),
            folder=folder,
            base_hash=bytes(32),
            **options,
        )
    except CareflError as error:
        result = error
    return folder, result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(*homes: Path) -> dict[str, Any]:
    """Return every log file below some folders, without the time of day."""
    found: dict[str, Any] = {}
    for home in homes:
        for path in sorted(home.rglob("*")):
            if path.suffix == ".log" or path.name in ("agent.jsonl", "server.jsonl"):
                text = path.read_text()
                text = re.sub(r'"time": [\d.]+', '"time": 0', text)
                found[str(path.relative_to(home))] = text.splitlines()
    return found


def spoken(records: Sequence[logging.LogRecord], text: str) -> list[str]:
    """Return what Python's loggers and the two streams said, without durations."""
    said = [f"{r.name} {r.levelname} {r.getMessage()}" for r in records] + text.splitlines()
    return [re.sub(r"in [\d.]+ ?s", "in TIME", line) for line in said]


@pytest.fixture
def two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Callable[[bool], list[tuple[RunFolder, Any, dict[str, Any], list[str]]]]]:
    """Return a maker of two runs that differ in the private corpora and in nothing else."""

    def make(sites: bool) -> list[tuple[RunFolder, Any, dict[str, Any], list[str]]]:
        found = []
        for which in range(2):
            home, root = tmp_path / f"bundles{which}", tmp_path / f"runs{which}"
            tasks = corpus(which)
            engine = {"engine": AtSites(home, tasks, monkeypatch)} if sites else {"dropout": 0.2}
            caplog.clear()
            capfd.readouterr()
            with caplog.at_level(logging.DEBUG):
                folder, result = run(root, tasks, reporter=SilentReporter(), **engine)
            streams = capfd.readouterr()
            said = spoken(caplog.records, streams.out + streams.err)
            found.append((folder, result, logged(folder.path, home), said))
        return found

    yield make


@pytest.mark.parametrize("sites", [False, True])
def test_logs_of_two_private_corpora_are_equal_up_to_the_time_of_day(two: Any, sites: bool) -> None:
    (folder, one, log, said), (_, other, log_too, said_too) = two(sites)
    assert isinstance(one, FederationResult) and isinstance(other, FederationResult)
    assert [r["survivors"] for r in one.rows] == [CLIENTS - 1, CLIENTS if sites else CLIENTS - 1]
    # The corpora do differ, and what is released does too.
    assert [r["gradient_norm"] for r in one.rows] != [r["gradient_norm"] for r in other.rows]
    assert log == log_too
    assert said == said_too
    wanted = {"logs/server.jsonl"}
    wanted |= {f"sites/s{i}/agent.jsonl" for i in range(CLIENTS)} if sites else set()
    assert set(log) == wanted
    # No figure of the rounds has found its way in, however it is written.
    text = json.dumps(log) + json.dumps(said)
    for row in one.rows:
        for name in ("gradient_norm", "seconds"):
            assert f"{row[name]:.4g}" not in text
    assert folder.name == "a-run"


def test_a_value_made_from_data_would_be_seen(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = journal.EventLog.opened

    def careless(self: journal.EventLog, number: int, survivors: int) -> None:
        honest(self, number, survivors)
        rows = lines(self._path.parents[1] / "metrics.jsonl")
        self._write("careless", {"norm": rows[-1]["gradient_norm"]})

    monkeypatch.setattr(journal.EventLog, "opened", careless)
    (_, _, log, _), (_, _, log_too, _) = two(False)
    assert log != log_too


def test_the_server_log_tells_every_step_and_who_was_silent(tmp_path: Path) -> None:
    gone: set[int] = set()
    folder, result = run(tmp_path, corpus(0), dropout=0.2, seed=3, record=lambda n, m: gone.add(n))
    assert isinstance(result, FederationResult)
    assert len(gone) == CLIENTS  # a hook of the caller's own still sees everything
    log = lines(folder.path / "logs" / "server.jsonl")
    begin, end = log[0], log[-1]
    assert begin == {
        "time": begin["time"],
        "event": "begin",
        "run": "a-run",
        "parties": CLIENTS,
        "first": 1,
        "last": ROUNDS,
    }
    assert (end["event"], end["error"], end["code"]) == ("end", None, None)
    assert [(e["round"], e["survivors"]) for e in log if e["event"] == "round"] == [(1, 4), (2, 4)]
    asked: dict[tuple[int, str], list[int]] = {}
    for line in log:
        if line["event"] == "phase":
            assert line["refused"] == {}
            counts = asked.setdefault((line["round"], line["step"]), [0, 0])
            counts[0] += line["asked"]
            counts[1] += line["answered"]
    assert asked[1, "train.masked"] == asked[2, "train.masked"] == [CLIENTS, CLIENTS - 1]
    assert asked[2, "query.unmask"] == [CLIENTS - 1, CLIENTS - 1]
    assert [line["time"] for line in log] == sorted(line["time"] for line in log)


def test_a_refusal_is_a_node_and_a_number_and_its_text_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "3.14159 on the ledger"
    charge = RoundBudget.charge

    def refuse(self: RoundBudget, number: int) -> None:
        if self._ledger.path.parent.name == "2":
            raise BudgetExceededError(f"the limit was {secret}")
        charge(self, number)

    monkeypatch.setattr(RoundBudget, "charge", refuse)
    folder, result = run(tmp_path, corpus(0))
    assert isinstance(result, FederationResult)  # the others are enough, so it only drops out
    assert [row["survivors"] for row in result.rows] == [CLIENTS - 1] * ROUNDS
    path = folder.path / "logs" / "server.jsonl"
    log = lines(path)
    refused = [line["refused"] for line in log if line["event"] == "phase" and line["refused"]]
    code = BudgetExceededError.exit_code
    assert refused == [{str(FIRST_NODE + 2): 1000 + code}] * len(refused) and refused
    assert "3.14159" not in path.read_text()
    assert secret in (folder.client(2) / "refusals.log").read_text()  # where only that client reads


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path: Path) -> None:
    def cut(node: int, message: Message) -> None:
        meta = message.metadata
        if (meta.group_id, meta.message_type) == ("2", "query.sign"):
            raise CohortError("cut")

    folder, error = run(tmp_path, corpus(0), record=cut)
    assert isinstance(error, CohortError)
    folder, result = run(tmp_path, corpus(0), folder=folder, resume=True)
    assert isinstance(result, FederationResult)
    log = lines(folder.path / "logs" / "server.jsonl")
    frames = [(e["event"], e.get("first"), e.get("error")) for e in log if e["event"] in ("begin", "end")]
    # The round that was cut is paid for, so none is left.
    assert frames == [("begin", 1, None), ("end", None, "CohortError"), ("begin", 2, None), ("end", None, None)]


def test_a_log_that_cannot_be_written_stops_the_run_before_anything_is_asked(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "", "a-run")
    (folder.path / "logs").write_text("a file where a folder should be")
    _, error = run(tmp_path, corpus(0), folder=folder)
    assert isinstance(error, RunError)
    assert "server.jsonl" in str(error)
    assert not folder.ledger.exists()
