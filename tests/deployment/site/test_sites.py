"""Sites, server and submitter in processes of their own, through the commands that people type."""

from __future__ import annotations

import functools
import http.client
import json
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carefl_secure.deployment.provisioning.party_keys import make_keys
from carefl_secure.privacy import Ledger
from tests.support import operators as _operators


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_operators.Deployment]:
    """A deployment that runs while the tests below ask things of it, one after the other."""
    made = _operators.Deployment(tmp_path_factory.mktemp("sites"))
    try:
        made.start_all()
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_three_sites_train_and_only_they_hold_ledgers(sites: _operators.Deployment) -> None:
    done = sites.submit("first", check=True)
    summary = json.loads(done.stdout)
    run = sites.root / "runs" / "first"
    assert Path(summary["folder"]) == run
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert not (run / "clients").exists() and not list(run.rglob("*.key"))
    stated = json.loads(sites.call("status", "runs/first", "--json").stdout)
    assert stated["state"] == "finished" and stated["survivors"] == 3
    assert stated["rounds_paid"] == stated["rounds_planned"] == 1
    assert stated["rounds_paid_but_not_opened"] == 0
    known = json.loads((sites.root / "bundles" / "submit" / "charged.json").read_text())["rounds"]
    assert [len(known[name]) for name in sites.names] == [1, 1, 1]
    for name in sites.names:
        assert list(known[name].values()) == [1]
        (ledger,) = (sites.bundle(name) / "ledgers").glob("*.jsonl")
        Ledger(ledger).verify()
        assert len(Ledger(ledger).events()) == 1
        # All of a site's records are its clients', so the plan names all 108 and not a share.
        log = _log(sites.bundle(name))
        assert {one["code"] for one in log} == {0}
        assert log[0]["action"] == "query.propose"
    # Neither the server's bundle nor the run folder holds anything of a site's records.
    for folder in (sites.root / "bundles" / "server", run):
        assert not [p for p in folder.rglob("*") if p.suffix in (".png", ".jsonl") and "ledg" in
                    p.name and p != run / "ledger.jsonl"]  # fmt: skip


@pytest.mark.slow
def test_a_site_refuses_and_the_submitter_learns_the_clause(sites: _operators.Deployment) -> None:
    stranger = sites.root / "bundles" / "stranger"
    make_keys(stranger, "stranger", "submitter")
    for name in sites.names:  # the first run has spent what their policies allowed
        sites.allow(name, max_epsilon_per_corpus=30.0, max_epsilon_total=60.0)
    bundle = sites.bundle("south")
    policy = (bundle / "policy.yaml").read_text()
    # policy.yaml is read anew for each proposal, so nothing is restarted here.
    cases: list[tuple[dict[str, object], str, str]] = [
        ({"submitters": []}, "bundles/submit", "does not allow this submitter"),
        ({"max_epsilon_per_corpus": 4.0}, "bundles/submit", "more epsilon than the site's policy"),
        ({"max_delta": 1.0e-5}, "bundles/submit", "a larger delta than the site's policy"),
        ({"min_clients": 4}, "bundles/submit", "asks for more clients"),
        ({"allowed_plans": ["00" * 32]}, "bundles/submit", "does not allow this plan"),
        ({"allowed_base_models": ["00" * 32]}, "bundles/submit", "does not allow this base model"),
        ({"allowed_aggregation": ["committee"]}, "bundles/submit", "this aggregation protocol"),
    ]
    held = {name: _spent(sites, name) for name in sites.names}
    for number, (changes, key, said) in enumerate(cases):
        sites.allow("south", **changes)
        done = sites.submit(f"refused-{number}", key=key)
        (bundle / "policy.yaml").write_text(policy)
        assert done.returncode == 24, (changes, done.stdout, done.stderr)
        assert said in done.stderr, (changes, done.stderr)
        last = (bundle / "refusals.log").read_text().splitlines()[-1]
        assert "PolicyError" in last, (changes, last)
    done = sites.submit("strange", key="bundles/stranger")
    assert done.returncode == 40 and "no submitter in the roster" in done.stderr
    stated = json.loads(sites.call("status", "runs/refused-0", "--json").stdout)
    assert stated["state"] == "not begun" and stated["rounds_paid"] == 0
    assert {name: _spent(sites, name) for name in sites.names} == held


def _log(bundle: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (bundle / "agent.jsonl").read_text().splitlines()]


def _spent(sites: _operators.Deployment, name: str) -> int:
    return sum(len(Ledger(p).events()) for p in (sites.bundle(name) / "ledgers").glob("*.jsonl"))


@pytest.mark.slow
def test_flwr_run_on_the_server_of_a_deployment_is_refused(sites: _operators.Deployment) -> None:
    from carefl_secure.deployment.flower.superlink import ServerAddress, flower_environment

    bundle, home = sites.root / "bundles" / "server", sites.root / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "it"\n\n[superlink.it]\n'
        f'address = "{ServerAddress.read(bundle).address}"\nroot-certificates = "{bundle}/ca.crt"\n'
    )
    flwr = str(Path(_operators.sys.executable).with_name("flwr"))
    done = subprocess.run(
        [flwr, "run", str(_operators.ROOT), "it"],
        env=flower_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "403" in done.stdout + done.stderr


def _ask(sites: _operators.Deployment, path: str, method: str = "POST") -> int:
    trust = ssl.create_default_context(cafile=str(sites.root / "bundles/sites/north/ca.crt"))
    link = http.client.HTTPSConnection("localhost", sites.front, context=trust, timeout=30)
    link.putrequest(method, path, skip_accept_encoding=True)
    link.putheader("Content-Length", "0")
    link.endheaders()
    status = link.getresponse().status
    link.close()
    return status


@pytest.mark.slow
def test_the_proxy_lets_the_nodes_through_and_nobody_else(sites: _operators.Deployment) -> None:
    if _operators.NGINX is None:
        # Without nginx the file can only be read; the sites then reach the SuperLink itself.
        text = (_operators.ROOT / "configs/deploy/nginx.conf").read_text()
        assert text.count("{") == text.count("}") and text.count("proxy_pass") == 1
        return
    # The sites' three nodes are behind it, so the nodes' interface passes; unsigned it is refused
    # by the SuperLink itself, and not with the proxy's 403.
    assert _ask(sites, "/v1/fleet/pull-messages") not in (403, 404, 502)
    for path in (
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/pull-messages",
        "/health",
        "/docs",
        "/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet//../../v1/control/start-run",
        "/v1/fleet/",
        "/V1/CONTROL/start-run",
    ):
        assert _ask(sites, path) == 403, path
    # What is left after two layers of escapes reaches no control route.
    assert _ask(sites, "/v1/fleet/%252e%252e%252fcontrol%252fstart-run") == 403
    assert _ask(sites, "/v1/control/../fleet/pull-messages", "GET") in (403, 405)
    env = {"FLWR_HOME": str(sites.root / "outside")}
    (sites.root / "outside").mkdir()
    (sites.root / "outside" / "config.toml").write_text(
        '[superlink]\ndefault = "out"\n\n[superlink.out]\n'
        f'address = "localhost:{sites.front}"\n'
        f'root-certificates = "{sites.root}/bundles/sites/north/ca.crt"\n'
    )
    from carefl_secure.deployment.flower.superlink import flower_environment

    flwr = Path(_operators.sys.executable).with_name("flwr")
    done = subprocess.run(
        [str(flwr), "list", "out", "--format", "json"],
        env=flower_environment(Path(env["FLWR_HOME"])),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert '"success": true' not in done.stdout and '"runs"' not in done.stdout


@pytest.mark.slow
def test_a_second_server_is_refused(sites: _operators.Deployment) -> None:
    done = sites.call("server", "start", "bundles/server", check=False)
    assert done.returncode == 41 and "another server" in done.stderr


@pytest.mark.slow
def test_a_site_comes_back_and_an_interrupted_run_goes_on(sites: _operators.Deployment) -> None:
    assert sites.stop_one("north", signal.SIGTERM) == 130
    assert not [line for line in _operators.left_behind(sites.root) if "sites/north" in line]
    sites.start("north", "node", "start", "bundles/sites/north")
    held = {name: _spent(sites, name) for name in sites.names}
    both = ("--server", "bundles/server", "--key", "bundles/submit")
    words = ("privacy.epsilon=4", "federation.rounds=2", "run.name=cut")
    sets = [word for one in words for word in ("--set", one)]
    sites.start("submitter", "submit", "run.yaml", *both, *sets)
    run = sites.root / "runs" / "cut"
    sites.wait(run / "metrics.jsonl")
    assert sites.stop_one("submitter") == 130
    begun = json.loads(sites.call("status", "runs/cut", "--json").stdout)
    assert begun["state"] == "begun" and begun["rounds_finished"] == 1
    sites.call("submit", "--resume", "runs/cut", *both)
    stated = json.loads(sites.call("status", "runs/cut", "--json").stdout)
    assert stated["state"] == "finished" and stated["rounds_paid"] <= 2
    assert stated["rounds_finished"] + stated["rounds_paid_but_not_opened"] == stated["rounds_paid"]
    for name in sites.names:
        assert held[name] < _spent(sites, name) <= held[name] + 2


@pytest.mark.slow
def test_ctrl_c_everywhere_leaves_no_process_and_no_socket(sites: _operators.Deployment) -> None:
    codes = sites.stop()
    codes.pop("nginx", None)
    assert set(codes.values()) == {130}, codes
    assert not sites.remains()
    assert not (sites.root / "west.sock").exists()
    bundle = sites.root / "bundles" / "server"
    assert not (bundle / "address").exists() and not (bundle / "run.sock").exists()
    done = sites.submit("late")
    assert done.returncode == 41 and "server start" in done.stderr


@pytest.mark.slow
def test_committee_members_are_sites_of_their_own(tmp_path: Path) -> None:
    made = _operators.Deployment(tmp_path, helpers=("keeper-a", "keeper-b"))
    for name in made.sites:
        made.allow(name, min_committee_members=2)
    try:
        made.start_all()
        words = ("federation.aggregation=committee", "federation.committee_members=2")
        done = made.submit("together", *words, check=True)
        assert json.loads(done.stdout)["rounds"][0]["survivors"] == 3
        for name in made.names:
            assert _spent(made, name) == 1
        for name in ("keeper-a", "keeper-b"):
            assert not (made.bundle(name) / "ledgers").exists()
            log = _log(made.bundle(name))
            assert any("committee" in str(one["action"]) for one in log)
    finally:
        codes = made.stop()
    codes.pop("nginx", None)
    assert set(codes.values()) == {130}, codes
    assert not made.remains()


@pytest.mark.slow
def test_flwr_run_without_a_deployment_is_the_demonstration(tmp_path: Path) -> None:
    from carefl_secure.deployment.flower.superlink import flower_environment

    home, port = tmp_path / "home", _operators.free_port()
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "mine"\n\n[superlink.mine]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = flower_environment(home)
    programs = Path(_operators.sys.executable).parent
    words = ["--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    with (tmp_path / "superlink.out").open("wb") as log:
        server = subprocess.Popen(
            [programs / "flower-superlink", *words, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    flwr = functools.partial(subprocess.run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        asked = f'rounds=1 run-dir="{tmp_path / "runs"}"'
        done = flwr(
            [
                *(programs / "flwr", "run", _operators.ROOT, "mine", "--run-config", asked),
                *("--federation-config", "num-supernodes=2", "--format", "json"),
            ]
        )
        number = json.loads(done.stdout[done.stdout.index("{") :])["run-id"]
        status = ""
        while not status.startswith("finished"):
            assert time.monotonic() < deadline + 300, (tmp_path / "superlink.out").read_text()
            time.sleep(2)
            listed = flwr([programs / "flwr", "list", "mine", "--run-id", str(number), "--format", "json"]).stdout
            status = json.loads(listed[listed.index("{") :])["runs"][0]["status"]
        assert status == "finished:completed", (tmp_path / "superlink.out").read_text()
        (run,) = (tmp_path / "runs").iterdir()
        assert (run / "adapter" / "adapter_model.safetensors").is_file()
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        finally:
            server.kill()
    end = time.monotonic() + 30
    while _operators.left_behind(tmp_path) and time.monotonic() < end:
        time.sleep(0.5)
    assert not _operators.left_behind(tmp_path)


def _answers(port: int) -> bool:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        link.request("GET", "/health")
        return link.getresponse().status == 200
    except OSError:
        return False
    finally:
        link.close()
