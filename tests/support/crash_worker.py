"""Runs federations, kills them at random instants, and checks what they leave behind.

    python _crash_worker.py FOLDER KILLS SEED [banded]

Every run is a forked child that is killed by SIGKILL and taken up again until it ends by itself.
After every kill the ledgers are recovered and held against a log that the children write as vectors
leave the clients. Prints one JSON object; any broken promise is an AssertionError.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # started as a script

import numpy as np
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.noise import SystemKeySource
from carefl_secure.privacy import Ledger, epsilon
from carefl_secure.privacy.ledger.entry import count_rounds, spends_due
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

CLIENTS, ROUNDS, DIMENSION, RECORDS = 3, 10, 40, 30
HEADER, SIGNATURE = 16, 64  # around the words of an upload


class Pull:
    """Half the squared distance to a point, clipped."""

    dimension, records = DIMENSION, RECORDS

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        away = adapter.astype(np.float64) - 1.0
        clipped: NDArray[np.float64] = away / max(1.0, float(np.linalg.norm(away)))
        return clipped * len(indices)


class Log:
    """Lines that survive a SIGKILL: each is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def lines(self, kind: str) -> list[list[str]]:
        return [line.split()[1:] for line in self.path.read_text().splitlines() if line[0] == kind]

    def record(self, node: int, message: Message) -> None:
        """Note every masked vector that left a client, and in which round."""
        fields = message.content.get("fields") if message.has_content() else None
        if not isinstance(fields, ConfigRecord):
            return
        upload = fields.get("upload")
        if isinstance(upload, bytes):
            words = upload[HEADER:-SIGNATURE]
            self.write("U", node, message.metadata.group_id, hashlib.sha256(words).hexdigest())


class Keys(SystemKeySource):
    """The operating system's keys; a hash of each goes to the log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def key(self, label: str) -> bytes:
        key = super().key(label)
        self._log.write("K", hashlib.sha256(key).hexdigest())
        return key


def make_plan() -> RunPlan:
    return plan_run(
        PlanRequest(
            unit="record",
            dimension=DIMENSION,
            clients=CLIENTS,
            rounds=ROUNDS,
            public_records=CLIENTS * RECORDS,
            sample_rate=0.3,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=8.0,
            correlation=(4, 3, 2) if "banded" in sys.argv else None,
        )
    )


def go(plan: RunPlan, folder: RunFolder, log: Log) -> NDArray[np.float32]:
    """Begin the run, or take it up where it was left."""
    return federate(
        plan,
        [Pull() for _ in range(CLIENTS)],
        np.zeros(DIMENSION, np.float32),
        optimizer=FedAdam(0.1),
        folder=folder,
        base_hash=bytes(32),
        key_source=lambda index: Keys(log),
        record=log.record,
        resume=folder.checkpoint.exists(),
    ).adapter


def start(plan: RunPlan, folder: RunFolder, log: Log) -> int:
    """Fork a child that runs to the end and exits 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            go(plan, folder, log)
            code = 0
        finally:
            os._exit(code)
    return child


class Books:
    """What the ledgers said last, to be held against what they say next."""

    def __init__(self, plan: RunPlan, folder: RunFolder, log: Log) -> None:
        self.plan, self.folder, self.log = plan, folder, log
        self.seen: dict[Path, tuple[str, int]] = {}
        self.torn = 0

    def check(self) -> None:
        released = self.log.lines("U")
        nodes = sorted({line[0] for line in released})
        of_client = {node: len({r for n, r, _ in released if n == node}) for node in nodes}
        rounds = len({line[1] for line in released})
        spends = self._recovered(Ledger(self.folder.ledger, {"run": self.folder.run_id}), rounds)
        assert spends <= ROUNDS, "the run went over its plan"
        paths = [self.folder.client_ledger(index) for index in range(CLIENTS)]
        ledgers = [Ledger(p, {"client": str(i)}) for i, p in enumerate(paths)]
        # nodes are numbered in the order of the clients
        first = min((int(node) for node in nodes), default=0)
        owed: Mapping[int, int] = {int(node) - first: count for node, count in of_client.items()}
        for index, ledger in enumerate(ledgers):
            self._recovered(ledger, owed.get(index, 0))

    def _recovered(self, ledger: Ledger, owed: int) -> int:
        """Recover and verify a ledger that must hold ``owed`` spends or more; return how many."""
        self.torn += ledger.recover() > 0
        head, before = self.seen.get(ledger.path, (None, 0))
        ledger.verify(head)
        events, entries, bands = ledger.events(), ledger.entries(), self.plan.privacy.bands
        rounds = count_rounds(entries, self.folder.run_id)
        assert rounds >= max(owed, before), f"{ledger.path}: {rounds} < {owed}, {before}"
        assert spends_due(entries, self.folder.run_id, bands) <= 0
        assert all(event == self.plan.event for event in events)
        delta = self.plan.privacy.delta
        assert self.plan.event is not None
        assert epsilon([self.plan.event] * -(-owed // bands), delta) <= ledger.epsilon(delta) <= 8.0
        self.seen[ledger.path] = (ledger.head(), rounds)
        return rounds


def finished(plan: RunPlan, folder: RunFolder, log: Log) -> None:
    """Check that a run that ended can be used, and that taking it up again does nothing."""
    adapter = go(plan, folder, log)
    assert adapter.shape == (DIMENSION,)
    assert np.isfinite(adapter).all()
    assert adapter.any()
    state = folder.read_checkpoint()
    assert np.array_equal(state["adapter"], adapter)
    rows = [int(row["round"]) for row in folder.read_metrics()]
    if plan.privacy.bands == 1:
        assert rows == list(range(1, int(str(state["round"])) + 1))
    assert rows == sorted(set(rows))  # under banded noise a lost round's number is not used again
    ledger = Ledger(folder.ledger)
    opened = sum(entry.kind == "release" for entry in ledger.entries())
    assert len(rows) <= opened <= count_rounds(ledger.entries(), folder.run_id) == ROUNDS


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    plan = make_plan()
    log = Log(root / "whole.log")
    began = time.monotonic()
    whole = RunFolder.create(root, "", "whole")
    assert os.waitstatus_to_exitcode(os.waitpid(start(plan, whole, log), 0)[1]) == 0
    length = time.monotonic() - began
    finished(plan, whole, log)
    logs, done, torn, runs = [log], 0, 0, 0
    while done < kills:
        folder = RunFolder.create(root, "", f"run{runs}")
        runs += 1
        log = Log(root / f"{folder.run_id}.log")
        logs.append(log)
        books = Books(plan, folder, log)
        while True:
            child = start(plan, folder, log)
            if done < kills:
                time.sleep(rng.uniform(0.0, 0.6 * length))
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, -signal.SIGKILL), f"a run ended with {code}"
            done += code != 0
            books.check()
            if code == 0:
                break
        finished(plan, folder, log)
        torn += books.torn
    vectors = [line[2] for each in logs for line in each.lines("U")]
    keys = [line[0] for each in logs for line in each.lines("K")]
    assert len(set(vectors)) == len(vectors), "a masked vector repeats"
    assert len(set(keys)) == len(keys), "a key repeats"
    found = {"kills": done, "runs": runs, "vectors": len(vectors), "keys": len(keys), "torn": torn}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
