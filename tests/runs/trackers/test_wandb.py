"""Figures of rounds in Weights & Biases: what its files hold is read back, and who is asked over a network."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.trackers import base as trackers
from carefl_secure.runs.train import train
from tests.support.tracking import Crashing, Stopped, Watching, agree, expected

KINDS = {"header", "run", "telemetry", "summary", "history", "exit", "final"}
WANDB = ("wandb",)


@pytest.fixture
def installed() -> Iterator[None]:
    """Skip where W&B is not installed; have it read the environment anew in each test."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'carefl-secure[wandb]'")
    wandb.teardown()
    yield
    with contextlib.suppress(OSError):  # a test may have killed its process
        wandb.teardown()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stand in for W&B's service and for a proxy; return the list of what anybody asked for."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_CONNECT = refuse

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, address)
    yield asked
    server.shutdown()
    server.server_close()


def records(folder: RunFolder) -> list[Any]:
    """Return all records of all files of a run: a LevelDB log of protocol buffers behind a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process ends, and so has written everything
    found = []
    for path in sorted(folder.path.glob("wandb/offline-run-*/*.wandb")):
        data, at, part = path.read_bytes(), 7, b""
        while at < len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                found.append(Record.FromString(part))
                part = b""
    return found


def in_wandb(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Return the figures by name; W&B's own begin with an underscore."""
    history: dict[str, list[tuple[int, float]]] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                (name,) = item.nested_key or (item.key,)
                if not name.startswith("_"):
                    history.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return history


@pytest.mark.usefixtures("service", "installed")
def test_offline_files_hold_figures_and_settings_alone_and_nobody_is_asked(rounds: Any, service: list[str]) -> None:
    reporter = Watching()
    folder, result = rounds(WANDB, reporter, evaluate=lambda adapter: {"mAP": 0.25})
    assert isinstance(result, FederationResult)
    kept = expected(folder)
    assert {"epsilon", "survivors", "gradient_norm", "mAP"} <= set(kept)
    assert agree(in_wandb(folder), kept, 1e-12)
    every = records(folder)
    assert {record.WhichOneof("record_type") for record in every} <= KINDS
    (run,) = [record.run for record in every if record.WhichOneof("record_type") == "run"]
    said = {field.name for field, _ in run.ListFields()}
    assert said <= {"run_id", "project", "config", "display_name", "start_time", "telemetry"}  # neither host nor user
    assert {item.key: item.value_json for item in run.config.update} == {
        "_wandb": "{}",
        "privacy.epsilon": '"8.0"',  # no path, neither ledgers nor data
    }
    text = "".join(map(str, every))
    assert "/" not in text and "\\\\" not in text
    assert not any(len(word) > 4 and word in text for word in (os.uname().nodename, getpass.getuser()))
    (files,) = folder.path.glob("wandb/offline-run-*")
    assert not [path for path in files.glob("files/**/*") if path.is_file()]  # these W&B would send along
    assert any("on this machine" in note for note in reporter.notes)
    assert service == []


@pytest.mark.usefixtures("service", "installed")
def test_the_service_is_asked_only_where_online_is_asked_for(
    rounds: Any, service: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    folder, error = rounds(WANDB, Watching())
    assert isinstance(error, RunError) and "W&B fails" in str(error)
    assert service  # so the other test would have seen it
    assert not folder.ledger.exists() and not folder.checkpoint.exists()


@pytest.mark.usefixtures("installed")
def test_a_resumed_run_keeps_its_number_and_sends_no_round_twice(rounds: Any) -> None:
    folder, error = rounds(WANDB, Crashing())
    assert isinstance(error, Stopped)
    assert [step for step, _ in in_wandb(folder)["epsilon"]] == [1]
    for _ in range(2):  # the second time nothing is left to do
        folder, result = rounds(WANDB, None, folder, resume=True)
        assert isinstance(result, FederationResult)
        assert agree(in_wandb(folder), expected(folder), 1e-12)
    runs = [record.run.run_id for record in records(folder) if record.WhichOneof("record_type") == "run"]
    assert len(runs) == 3 and len(set(runs)) == 1


@pytest.mark.usefixtures("installed")
def test_a_process_of_wandb_that_dies_is_named_once_and_costs_no_figure(rounds: Any) -> None:
    class Killing(Watching):
        def round(self, row: Any) -> None:
            super().round(row)
            if row["round"] == 2:
                for child in psutil.Process().children(recursive=True):
                    if "wandb" in child.name():
                        os.kill(child.pid, signal.SIGKILL)
                        child.wait(10)

    reporter = Killing()
    folder, result = rounds(WANDB, reporter)
    assert isinstance(result, FederationResult)
    (loud,) = [note for note in reporter.notes if "FAILED" in note]
    assert "wandb" in loud and str(folder.metrics) in loud
    assert [step for step, _ in expected(folder)["epsilon"]] == [1, 2, 3]


def test_a_missing_wandb_is_refused_by_the_name_of_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [], run_dir=tmp_path / "runs", track=["wandb"])
    assert config.run.trackers == WANDB
    real: Any = trackers.importlib.util.find_spec

    def leftover(name: str) -> Any:
        """Find what Python finds where only a folder of W&B's files lies."""
        return trackers.importlib.machinery.ModuleSpec(name, None, is_package=True) if name == "wandb" else real(name)

    for find in (lambda name: None if name == "wandb" else real(name), leftover):
        monkeypatch.setattr(trackers.importlib.util, "find_spec", find)
        with pytest.raises(ConfigError, match=r"asks for wandb.*carefl-secure\[wandb\]"):
            train(config, SilentReporter())
    assert not (tmp_path / "runs").exists()
