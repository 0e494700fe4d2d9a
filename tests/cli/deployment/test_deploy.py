"""The commands of a deployment: provision, status, doctor, and what they refuse."""

from __future__ import annotations

import fcntl
import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import carefl_secure
from carefl_secure.cli.app import app
from carefl_secure.cli.deployment import status as status_command
from carefl_secure.config import Config, load_config
from carefl_secure.deployment import doctor
from carefl_secure.deployment.flower import app as flower_app
from carefl_secure.deployment.flower.relay import SERVER_SOCKET
from carefl_secure.deployment.flower.superlink import ServerAddress, flower_environment
from carefl_secure.deployment.metrics import metrics_server
from carefl_secure.deployment.provisioning.site_bundle import HALVES, SiteBundle
from carefl_secure.deployment.superlink.local import Loopback
from carefl_secure.deployment.superlink.remote import Remote
from carefl_secure.errors import ConfigError, EngineError, RunError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs import train as runs_train
from carefl_secure.runs.corpora import load_own
from carefl_secure.runs.staged_corpora import load_corpora

ROOT = Path(__file__).resolve().parents[3]
runner = CliRunner()
SITES = "name: t\nclients: {a: /x, b: /x, c: /x}\ndays: 2\n"
REHEARSE = ("provision", "--rehearsal")


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    (tmp_path / "sites.yaml").write_text(SITES)
    result = runner.invoke(
        app, ["provision", str(tmp_path / "sites.yaml"), "--rehearsal", "--out", str(tmp_path / "bundles")]
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "bundles"


def test_provision_writes_a_kit_for_each_and_refuses_to_write_over_them(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    words = ["provision", str(tmp_path / "sites.yaml"), "--rehearsal", "--out", str(tmp_path / "bundles")]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    for name in "abc":
        home = tmp_path / "bundles" / "sites" / name
        assert json.loads((home / "bundle.json").read_text())["data"] == "/x"
        assert (home / "start.sh").stat().st_mode & 0o111
    assert runner.invoke(app, words).exit_code == 40


def test_an_expired_or_missing_kit_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    out = tmp_path / "bundles"
    runner.invoke(app, [*REHEARSE, str(tmp_path / "sites.yaml"), "--out", str(out)])
    bundle = out / "sites" / "a"
    about = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**about, "expires": 1.0}))
    for path in (bundle, tmp_path):
        result = runner.invoke(app, ["node", "start", str(path)])
        assert result.exit_code == 40
        assert not (path / "logs").exists()
    assert runner.invoke(app, ["server", "start", str(tmp_path)]).exit_code == 40


def test_a_second_server_from_one_kit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(SITES)
    out = tmp_path / "bundles"
    runner.invoke(app, [*REHEARSE, str(tmp_path / "sites.yaml"), "--out", str(out)])
    with (out / "server" / "lock").open("ab") as held:  # the system frees it when its owner dies
        fcntl.flock(held, fcntl.LOCK_EX)
        result = runner.invoke(app, ["server", "start", str(out / "server")])
    assert result.exit_code == 41 and "another server" in result.stderr
    assert not (out / "server" / "logs").exists()


def test_local_nodes_go_with_the_superlink_only() -> None:
    assert runner.invoke(app, ["train", "--local-nodes", "3"]).exit_code == 2
    assert runner.invoke(app, ["train", "--engine", "mars"]).exit_code == 2


@pytest.mark.parametrize(("words", "clients"), [(["--local-nodes", "3"], 3), (["--local-nodes", "5"], 5), ([], 8)])
def test_local_nodes_are_the_clients_of_a_default_run(
    monkeypatch: pytest.MonkeyPatch, words: list[str], clients: int
) -> None:
    """The documented command is accepted as it stands; no dropout that it cannot have is asked."""

    def run(config: Config, reporter: Any, resume: object, engine: Any, confirm: object) -> None:
        assert config.federation.clients == clients
        assert isinstance(engine(config, reporter), Loopback)
        raise EngineError("reached")

    monkeypatch.setattr(runs_train, "train", run)
    result = runner.invoke(app, ["train", "--quiet", "--engine", "superlink", *words])
    assert result.exit_code == 41 and "reached" in result.stderr, result.output


def test_other_local_nodes_than_clients_are_refused() -> None:
    words = ["train", "--quiet", "--engine", "superlink", "--local-nodes", "3", "--clients", "4"]
    result = runner.invoke(app, words)
    assert result.exit_code == 2 and "--local-nodes" in result.stderr


def test_status_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert runner.invoke(app, ["status", str(tmp_path)]).exit_code == 40
    (tmp_path / "config.yaml").write_text("")
    result = runner.invoke(app, ["status", str(tmp_path), "--json"])
    found = json.loads(result.stdout)
    assert found["state"] == "not begun" and found["rounds_paid"] == 0


def test_status_tells_of_rounds_that_were_paid_and_never_opened(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "", "some")
    ledger = Ledger(folder.ledger, {"run": "some"})
    for number in (1, 2):
        ledger.append("note", {"run": "some", "round": number, "unprotected": True})
    ledger.append("release", {"run": "some", "round": 1, "survivors": 3})
    folder.append_metrics({"round": 1, "epsilon": 1.5, "survivors": 3, "seconds": 2.0})
    found = json.loads(runner.invoke(app, ["status", str(folder.path), "--json"]).stdout)
    assert found["state"] == "begun" and found["epsilon"] is None and found["survivors"] == 3
    assert found["rounds_paid"] == 2 and found["rounds_paid_but_not_opened"] == 1
    assert found["rounds_finished"] == 1 and found["seconds_per_round"] == 2.0
    plain = runner.invoke(app, ["status", str(folder.path)]).stdout
    assert "rounds paid but not opened  1" in plain
    folder.adapter.mkdir(exist_ok=True)
    for name, state in (
        ("README.md", "begun"),  # a report of an interrupted run writes one
        ("adapter_config.json", "begun"),
        ("adapter_model.safetensors", "finished"),
    ):
        (folder.adapter / name).touch()
        found = json.loads(runner.invoke(app, ["status", str(folder.path), "--json"]).stdout)
        assert found["state"] == state


def some_run(root: Path, name: str = "some") -> RunFolder:
    folder = RunFolder.create(root, "", name)
    Ledger(folder.ledger, {"run": name}).append("note", {"run": name, "round": 1, "unprotected": True})
    folder.append_metrics({"round": 1, "epsilon": 1.5, "survivors": 3, "seconds": 2.0})
    (folder.path / "logs").mkdir(exist_ok=True)
    phases = [{"round": 1, "refused": {"north": 5}}, {"round": 2, "refused": {"west": 5}}, {"round": 2, "refused": {}}]
    lines = [json.dumps({"event": "phase", **one}) for one in phases]
    (folder.path / "logs" / "server.jsonl").write_text("\n".join(lines) + '\n{"event": "pha')  # being written
    return folder


def test_status_names_who_was_away_and_watches_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = some_run(tmp_path)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            folder.adapter.mkdir(exist_ok=True)
            (folder.adapter / "adapter_model.safetensors").touch()

    monkeypatch.setattr(status_command, "time", SimpleNamespace(sleep=nap))
    result = runner.invoke(app, ["status", str(folder.path), "--watch", "3"])
    assert result.exit_code == 0 and naps == [3.0, 3.0], result.output
    assert result.stdout.count("refused                     west") == 3
    assert result.stdout.count("state                       finished") == 1


def test_a_run_is_served_to_prometheus(tmp_path: Path) -> None:
    folder = some_run(tmp_path, "a-run")
    with metrics_server(folder.path, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = reply.read().decode().splitlines()
        with urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
            assert reply.read() == b"ok\n"
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert values['carefl_state{run="a-run"}'] == "1" and values['carefl_survivors{run="a-run"}'] == "3"
        assert values['carefl_rounds_paid_but_not_opened{run="a-run"}'] == "1"
        assert "carefl_epsilon" not in " ".join(lines)  # a run without noise has none
        for line in lines:  # Prometheus's text format
            assert re.fullmatch(r'# TYPE carefl_[a-z_]+ gauge|carefl_[a-z_]+\{run="a-run"\} -?[0-9.e+-]+', line), line
        folder.ledger.write_text("damaged\n")
        for path, code in (("/metrics", 503), ("/health", 503), ("/", 404), ("/../config.yaml", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(address + path, timeout=10)
            assert caught.value.code == code
        with pytest.raises(EngineError, match="choose another port"):
            metrics_server(folder.path, "127.0.0.1", server.server_port)
        server.shutdown()
    for words in (["--serve", "9464"], ["--serve", "127.0.0.1:9464", "--json"]):
        assert runner.invoke(app, ["status", str(folder.path), *words]).exit_code == 2


@pytest.mark.parametrize(("clients", "said"), [(3, "every site is needed in every round"), (5, "1 may be away")])
def test_provision_says_how_many_sites_may_be_away(tmp_path: Path, clients: int, said: str) -> None:
    lines = "".join(f"  s{i}: null\n" for i in range(clients))
    (tmp_path / "sites.yaml").write_text(f"clients:\n{lines}")
    result = runner.invoke(app, [*REHEARSE, str(tmp_path / "sites.yaml"), "--out", str(tmp_path / "bundles")])
    assert result.exit_code == 0 and said in result.stdout, result.output


def test_doctor_tells_of_every_check_and_fails_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)] == list(doctor.CHECKS)

    def broken() -> str:
        raise ArithmeticError("the sum is wrong")

    monkeypatch.setattr(doctor, "CHECKS", {"packages": lambda: "fine", "sum": broken})
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 41
    assert "FAIL  sum: ArithmeticError: the sum is wrong" in result.stdout


def test_the_check_of_noise_sees_noise_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.SkellamSampler
    monkeypatch.setattr(doctor, "SkellamSampler", lambda variance: real(variance * 0.8))
    with pytest.raises(ArithmeticError, match="came with"):
        doctor.CHECKS["noise"]()


# --- what an operator gets wrong ----------------------------------------------------------------


def test_a_site_whose_folder_is_not_there_is_told_so_before_anything_starts(bundles: Path) -> None:
    result = runner.invoke(app, ["node", "start", str(bundles / "sites" / "a")])
    assert result.exit_code == 10 and "/x is not a folder" in result.stderr
    assert not (bundles / "sites" / "a" / "logs").exists()


def test_a_policy_with_a_slip_names_the_word(bundles: Path) -> None:
    path = bundles / "sites" / "a" / "policy.yaml"
    text = path.read_text()
    for wrong, said in (
        (text.replace("min_clients", "min_client"), "is missing; min_client is unknown"),
        (text + "max_seconds: 3\n", "max_seconds is unknown"),
        (text.replace("1e-4", "1e-x"), "max_delta: must be a valid number"),
    ):
        path.write_text(wrong)
        result = runner.invoke(app, ["node", "start", str(bundles / "sites" / "a")])
        assert result.exit_code == 2 and said in result.stderr, result.stderr


def test_the_halves_of_a_site_need_a_socket_and_only_their_own_files(bundles: Path) -> None:
    site = bundles / "sites" / "a"
    result = runner.invoke(app, ["node", "start", str(site), "--only", "agent"])
    assert result.exit_code == 2 and "--socket" in result.stderr
    long = "/tmp/" + "x" * 100
    words = ["node", "start", str(site), "--only", "supernode", "--socket", long]
    result = runner.invoke(app, words)
    assert result.exit_code == 2 and "too long" in result.stderr
    SiteBundle.open(site, half="supernode")
    for name in HALVES["agent"]:
        (site / name).unlink()
    SiteBundle.open(site, half="supernode")
    for part in ("agent", None):
        with pytest.raises(RunError, match=r"lacks identity\.key"):
            SiteBundle.open(site, half=part)  # type: ignore[arg-type]


def test_submit_says_what_it_lacks(bundles: Path, tmp_path: Path) -> None:
    both = ["--server", str(bundles / "server"), "--key", str(bundles / "submit")]
    run = tmp_path / "run.yaml"
    sound = {
        "data": {"labels": "emotic"},
        "federation": {"clients": 3, "public_records": 9000},
        "run": {"dir": str(tmp_path / "runs")},
    }
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"federation": {"clients": 3}}, 2, "federation.public_records"),
        ({"federation": {"clients": 4, "public_records": 9000}}, 2, "set federation.clients"),
        ({"data": {}}, 2, "declare the labels"),
        ({"unsafe_deterministic_noise": True}, 2, "one machine only"),
        ({}, 41, "server start"),
    ]
    for changes, code, said in cases:
        run.write_text(yaml.safe_dump({**sound, **changes}))
        result = runner.invoke(app, ["submit", str(run), *both])
        assert result.exit_code == code and said in result.stderr, (changes, result.stderr)
    assert runner.invoke(app, ["submit", *both]).exit_code == 2
    assert runner.invoke(app, ["submit", *both, "--resume", str(tmp_path)]).exit_code == 40
    assert not (tmp_path / "runs").exists()
    other = tmp_path / "other"
    runner.invoke(app, [*REHEARSE, str(tmp_path / "sites.yaml"), "--out", str(other)])
    words = ["submit", str(run), "--server", str(bundles / "server"), "--key", str(other / "submit")]
    result = runner.invoke(app, words)
    assert result.exit_code == 40 and "is no submitter in the roster" in result.stderr


def test_a_second_run_on_one_server_is_refused(bundles: Path, plan_toy: Callable[..., RunPlan]) -> None:
    ServerAddress("127.0.0.1:1", bundles / "run.sock").write(bundles / "server")
    words = ["federation.clients=3", "simulation.dropout=0", "federation.public_records=9000"]
    config = load_config(None, [*words, "data.labels=emotic", "data.at_sites=true"])
    remote = Remote(config, SilentReporter(), bundles / "server", bundles / "submit")
    stage, folder = Stage.only(plan_toy(3)), RunFolder(bundles / "r")
    spec = RunSpec(stage=stage, tasks=list, folder=folder, base_hash=bytes(32))
    with (bundles / "server" / "submit.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EngineError, match="another run is under way"):
            remote.start(spec)


def test_a_run_of_sites_is_not_gone_on_with_on_one_machine(tmp_path: Path) -> None:
    result = runner.invoke(app, ["train", "--set", "data.at_sites=true"])
    assert result.exit_code == 2 and "carefl-secure submit" in result.stderr


# --- what a site and the server hold -------------------------------------------------------------


def test_a_site_trains_on_all_of_its_records_and_the_server_on_none(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for label in ("calm", "cross"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / label / f"{number}.png")
    words = [f"data.source={folder}", "data.words=[cross,calm]", "data.at_sites=true"]
    config = load_config(None, words)
    near = load_corpora(config, SilentReporter())
    assert not near.private.records and not near.shares
    assert len(near.public.records) + len(near.test.records) == 40
    held = load_own(config, SilentReporter())
    assert len(held.private.records) == 40 and [len(share) for share in held.shares] == [40]
    assert held.private.space == near.test.space
    assert held.private.space.labels == ("cross", "calm")  # as declared, not as found
    with pytest.raises(ConfigError, match="declares no labels"):
        load_own(load_config(None, [f"data.source={folder}"]), SilentReporter())
    # What carries a label that was not declared is left out, and nobody else learns of it.
    some = load_own(load_config(None, [words[0], "data.words=[cross,glad]"]), SilentReporter())
    assert len(some.private.records) == 20


@pytest.mark.parametrize(
    "words",
    [
        ["data.words=[a,b]"],
        ["data.source=/x", "data.words=[a,b]", "data.labels=basic"],
        ["data.source=/x", "data.words=[a]"],
        ["data.source=/x", "data.words=[a,a]"],
        ["data.multi=true"],
    ],
)
def test_declared_words_that_contradict_the_rest_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        load_config(None, words)


# --- what flwr run starts ------------------------------------------------------------------------


def test_flwr_run_refuses_between_sites_and_else_runs_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SERVER_SOCKET, "/nowhere")
    with pytest.raises(RuntimeError, match="carefl-secure submit"):
        flower_app.main(None, SimpleNamespace(run_config={}))  # type: ignore[arg-type]
    monkeypatch.delenv(SERVER_SOCKET)
    words = flower_app.command({"epsilon": 8.0, "run-dir": "runs"})
    assert words[-5:] == ["train", "--epsilon", "8.0", "--run-dir", "runs"] and words[1] == "-P"
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level(logging.INFO, "flwr"), pytest.raises(RuntimeError, match="exit code 2"):
        flower_app.main(
            None,  # type: ignore[arg-type]
            SimpleNamespace(run_config={"epsilon": -1.0}),  # type: ignore[arg-type]
        )
    assert "privacy.epsilon" in caplog.text
    # The first line says what this is, before the run writes anything.
    assert caplog.records[0].getMessage() == flower_app.WRAPPER
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8").partition("## flwr run")[2]
    for text in (flower_app.WRAPPER, page.partition("\n## ")[0]):
        assert "wrapper" in text and "Flower's nodes take no part" in text and "--engine ray" in text


def test_the_project_is_a_flower_app(tmp_path: Path) -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # Flower takes no version that is made while building.
    assert about["project"]["version"] == carefl_secure.__version__
    for name, word in about["tool"]["flwr"]["app"]["components"].items():
        module, _, attribute = word.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert type(found).__name__.lower() == name
    known = {option for one in get_command(app).commands["train"].params for option in one.opts}  # type: ignore[attr-defined]
    assert {f"--{key}" for key in about["tool"]["flwr"]["app"]["config"]} <= known
    done = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", ROOT],
        cwd=tmp_path,
        env=flower_environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = tmp_path.glob("*.fab")
    assert bundle.stat().st_size < 10_000_000
    # Flower packs some kinds of file only: the app must be importable from what it packed.
    shutil.unpack_archive(bundle, tmp_path / "app", "zip")
    code = "import carefl_secure.deployment.flower.app as app; print(app.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "app")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr
