"""The page that follows a run: over HTTP, for this machine alone, during a run and afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.deployment.metrics import run_figures
from carefl_secure.errors import EngineError
from carefl_secure.report.watch import snapshot, watching
from carefl_secure.rounding import round_up
from carefl_secure.run_folder import RunFolder
from tests.report.render.test_page import CHROMIUM, FLAGS, read

Answer = tuple[int, dict[str, str], str]


@contextlib.contextmanager
def served(run: Path) -> Iterator[int]:
    """Serve a run on a free port."""
    with watching(run, 0, lambda: run_figures(run)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.request(method, path, headers=headers)
    reply = link.getresponse()
    found = reply.status, dict(reply.getheaders()), reply.read().decode()
    link.close()
    return found


def state(port: int) -> dict[str, Any]:
    status, headers, text = ask(port, "/state.json")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = json.loads(text)
    return found


def test_it_shows_what_the_ledgers_and_the_rounds_say(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with served(run) as port:
        found = state(port)
    spent = run_figures(run)
    assert found["epsilon"] == round_up(spent["epsilon"])
    assert found["error"] is None and found["state"]["rounds_finished"] == spent["rounds_finished"] == 4
    assert found["share"] == pytest.approx(min(1.0, spent["epsilon"] / 8.0))
    assert [row["round"] for row in found["rounds"]] == [4, 3, 2, 1]
    assert all("(" in row["signal / noise"] and " of 6" in row["survivors"] for row in found["rounds"])
    assert len(found["charts"]) == 2 and all(svg.startswith("<svg") for svg in found["charts"])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_it_follows_a_run_that_goes_on(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    rows = RunFolder.open(run).read_metrics()
    folder, whole = RunFolder.open(run), (run / "metrics.jsonl").read_bytes()
    folder.keep_metrics(1)
    with served(run) as port:
        assert [row["round"] for row in state(port)["rounds"]] == [1]
        (run / "metrics.jsonl").write_bytes(whole)
        assert len(state(port)["rounds"]) == len(rows)
        logs = run / "logs"
        logs.mkdir(exist_ok=True)
        line = json.dumps({"time": 0.0, "event": "round", "round": 4, "survivors": 6})
        sent = json.dumps(
            {"time": 0.0, "event": "traffic", "round": 4, "bytes_up_down": {"a": [900, 5], "b": [700, 6]}}
        )
        with (logs / "server.jsonl").open("a") as file:
            file.write(sent + "\n" + line + '\n{"time": 1.0, "ev')  # the last line is being written
        last, before = state(port)["events"][:2]
        assert last == "00:00:00 UTC  round  round 4, survivors 6"
        assert before == "00:00:00 UTC  traffic  round 4, bytes up 1,600, bytes down 11"


def test_a_ledger_that_was_changed_is_named_and_the_server_goes_on(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    ledger, whole = run / "ledger.jsonl", (run / "ledger.jsonl").read_bytes()
    with served(run) as port:
        ledger.write_bytes(whole.replace(b'"round":1', b'"round":7'))
        found = state(port)
        assert list(found) == ["error"] and "ledger" in found["error"]
        ledger.write_bytes(whole)
        assert state(port)["error"] is None


def test_an_unprotected_run_is_shown(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("open")
    state = snapshot(run, lambda: run_figures(run))
    assert state["error"] is None and {row["epsilon"] for row in state["rounds"]} == {"–"}
    json.dumps(state, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.json", '{"privacy": []}'),
        ("plan.json", '{"privacy": {"target_epsilon": "x"}}'),
        ("metrics.jsonl", '{"round": 1, "survivors": "x"}\n'),
        ("metrics.jsonl", '{"round": 1, "noise_norm": 1.0}\n'),
        ("logs/server.jsonl", '{"time": "x"}\n'),
    ],
)
def test_a_damaged_run_is_named_and_no_trace_is_shown(toy: Path, name: str, text: str) -> None:
    (toy / name).parent.mkdir(exist_ok=True)
    (toy / name).write_text(text)
    error = snapshot(toy, lambda: run_figures(toy))["error"]
    assert name.rpartition("/")[2] in error


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "{}\n", "new")
    with served(folder.path) as port:
        found = state(port)
    assert (found["epsilon"], found["share"], found["charts"], found["rounds"]) == (None, None, [], [])
    assert found["state"]["state"] == "not begun"


def test_only_this_machine_is_answered(copy_run: Callable[[str], Path]) -> None:
    with served(copy_run("toy")) as port:
        for path in ("/", "/state.json", "/watch.js"):
            assert ask(port, path)[0] == 200
            assert ask(port, path, Host=f"localhost:{port}")[0] == 200
            for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
                status, _, text = ask(port, path, Host=host)
                assert status == 403 and "epsilon" not in text, host
        for path in ("/config.yaml", "/../ledger.jsonl", "/state.json/", "/?x"):
            assert ask(port, path)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, "/state.json", method)[0] == 501


def test_the_page_loads_its_own_script_alone(copy_run: Callable[[str], Path]) -> None:
    with served(copy_run("toy")) as port:
        _, headers, page = ask(port, "/")
        assert ask(port, "/watch.js")[1]["Content-Type"].startswith("text/javascript")
    assert read(page).loads == ["data:,", "/watch.js"]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe-eval" not in policy
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_a_port_that_is_taken(copy_run: Callable[[str], Path]) -> None:
    run = copy_run("toy")
    with served(run) as port, pytest.raises(EngineError, match=f"port {port}.*--port"):
        watching(run, port, dict)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(copy_run: Callable[[str], Path], tmp_path: Path, width: int) -> None:
    run = copy_run("toy")
    shot = tmp_path / "watch.png"
    flags = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    with served(run) as port:
        address = f"http://127.0.0.1:{port}/"
        done = subprocess.run([str(CHROMIUM), *FLAGS, *flags, address], capture_output=True, text=True, timeout=120)
        seen = [flag for flag in FLAGS if flag != "--dump-dom"]
        subprocess.run([str(CHROMIUM), *seen, *flags, f"--screenshot={shot}", address], timeout=120, check=True)
    assert f'id="epsilon">{round_up(run_figures(run)["epsilon"])}</dd>' in done.stdout
    assert done.stdout.count("<svg") == 2 and done.stdout.count("<tr>") == 4
    assert "CONSOLE" not in done.stderr  # no error, and nothing that its own rule refused
    assert shot.stat().st_size > 5000
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
