"""What a network, a disk or a clock can do to a round; nothing is released below the floor."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from carefl_secure.errors import CareflError, CohortError, LedgerError
from carefl_secure.federation import in_process as simulation
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from tests.support.federation import toy_plan
from tests.support.running import federate

CLIENTS, ROUNDS, VICTIM = 6, 2, FIRST_NODE + 3
ACTIONS = ("query.advertise", "query.share", "train.masked", "query.sign", "query.unmask")


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    return toy_plan(CLIENTS, unit="none", rounds=ROUNDS, sample_rate=0.999999)


def damaged(content: RecordDict, how: Callable[[bytes], bytes]) -> RecordDict:
    """Change every byte string in a reply."""

    def change(value: Any) -> Any:
        if isinstance(value, bytes):
            return how(value)
        return [change(one) for one in value] if isinstance(value, list) else value

    return RecordDict(
        {name: ConfigRecord({key: change(value) for key, value in record.items()}) for name, record in content.items()}  # type: ignore[union-attr]
    )


def flip(value: bytes) -> bytes:
    middle = len(value) // 2
    return value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]


class Faulty(LocalGrid):
    """Does something to the victim's replies in one phase of round 1."""

    action, fault = "", ""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message, reply in ((m, r) for m in messages for r in super_send(self, m)):
            meta = message.metadata
            if meta.message_type != self.action or meta.group_id != "1":
                replies.append(reply)
                continue
            if self.fault == "reordered":
                replies.insert(0, reply)
            elif meta.dst_node_id != VICTIM:
                replies.append(reply)
            elif self.fault == "duplicated":
                replies += [reply, reply]
            elif self.fault != "lost":
                how = {"truncated": lambda b: b[:-1], "corrupted": flip}[self.fault]
                replies.append(Message(damaged(reply.content, how), reply_to=message))
        return replies


def super_send(grid: LocalGrid, message: Message) -> Iterable[Message]:
    return LocalGrid.send_and_receive(grid, [message])


def run(
    plan: RunPlan, tasks: list[Any], root: Path, **options: Any
) -> tuple[RunFolder, FederationResult | CareflError]:
    folder = RunFolder.create(root, "")
    try:
        return folder, federate(
            plan, tasks, np.zeros(60, np.float32), optimizer=FedAvg(1.0), folder=folder, base_hash=bytes(32), **options
        )
    except CareflError as error:
        return folder, error


def released(folder: RunFolder) -> list[int]:
    entries = Ledger(folder.ledger).entries() if folder.ledger.exists() else ()
    return [int(e.payload["survivors"]) for e in entries if e.kind == "release"]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fault", ["lost", "duplicated", "reordered", "truncated", "corrupted"])
def test_a_message_may_come_to_harm_at_any_phase(
    plan: RunPlan, tasks_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, fault: str
) -> None:
    tasks = tasks_toy(CLIENTS, 60, 30)
    _, whole = run(plan, tasks, tmp_path / "whole")
    assert isinstance(whole, FederationResult)

    class Grid(Faulty):
        pass

    Grid.action, Grid.fault = action, fault
    monkeypatch.setattr(simulation, "LocalGrid", Grid)
    folder, result = run(plan, tasks, tmp_path / "faulty")
    needed = plan.privacy.min_survivors
    assert all(survivors >= needed for survivors in released(folder))
    if isinstance(result, CareflError):
        # Refused: then nothing of the round was opened, and the checkpoint is that of before.
        assert fault not in ("lost", "reordered"), result
        assert released(folder) == []
        assert folder.read_checkpoint()["round"] == 0
        return
    # What a client sealed does not open: that round is lost, and its sender excluded.
    lost = fault == "corrupted" and action in ("query.share", "query.unmask")
    assert len(released(folder)) == ROUNDS - lost
    # Whoever is left is summed exactly, up to the rounding of the grid.
    step = 1e-3
    if released(folder)[0] == CLIENTS and not lost:
        assert float(np.abs(result.adapter - whole.adapter).max()) < step
    assert fault in ("lost", "reordered", "duplicated") or released(folder)[0] <= CLIENTS


@pytest.mark.parametrize("action", ACTIONS)
def test_too_many_killed_at_any_phase_release_nothing(
    plan: RunPlan, tasks_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    gone = CLIENTS - plan.privacy.min_survivors + 1

    def lose(self: LocalGrid, node: int, message: Message) -> bool:
        return node < FIRST_NODE + gone and message.metadata.message_type == action

    monkeypatch.setattr(LocalGrid, "_lost", lose)
    folder, result = run(plan, tasks_toy(CLIENTS, 60, 30), tmp_path)
    assert isinstance(result, CohortError)
    assert released(folder) == []


def test_a_full_disk_under_the_ledger_sends_nothing(
    plan: RunPlan, tasks_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_toy(CLIENTS, 60, 30)
    real = os.fsync

    def full(handle: int) -> None:
        if "ledger" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    folder, result = run(plan, tasks, tmp_path)
    assert isinstance(result, LedgerError)
    assert all(not task.calls for task in tasks)  # no record was read
    monkeypatch.undo()
    assert folder.read_checkpoint()["round"] == 0


def test_a_jumping_clock_changes_neither_rounds_nor_ledgers(
    plan: RunPlan, tasks_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = time.time, [0]

    def jump() -> float:
        calls[0] += 1
        return real() + (-1e6 if calls[0] % 2 else 1e6)

    monkeypatch.setattr(time, "time", jump)
    folder, result = run(plan, tasks_toy(CLIENTS, 60, 30), tmp_path)
    assert isinstance(result, FederationResult)
    assert released(folder) == [CLIENTS] * ROUNDS
    Ledger(folder.ledger).verify()
