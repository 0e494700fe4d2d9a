"""A SuperLink that runs: its operator controls it, and another account of its machine does not."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path

import pytest

from carefl_secure.deployment.flower.processes import Processes, free_port
from carefl_secure.deployment.flower.superlink import Link, control_key, start_server
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.flower_internals import ControlClient
from tests.support.sites import make_bundles


def test_only_the_operator_controls_a_superlink(tmp_path: Path) -> None:
    bundle = make_bundles(tmp_path) / "server"
    port, processes = free_port(), Processes(tmp_path / "logs")
    trust = ssl.create_default_context(cafile=str(bundle / "ca.crt"))

    def ask(path: str, key: str = "") -> int:
        link = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=30)
        link.request("POST", path, b"", {"x-carefl-control-key": key})
        status = link.getresponse().status
        link.close()
        return status

    link = Link(f"127.0.0.1:{port}", bundle)
    try:
        start_server(processes, bundle, "127.0.0.1", port, tmp_path / "run.sock", lasting=False)
        link.wait(120, processes.check)
        names = {path.stem for path in (bundle / "nodes").glob("*.pub")}
        for _ in range(2):
            assert link.register() == len(names) and set(link.names.values()) == names
        assert not any(link.online().values())
        for name in ("start-run", "list-runs", "register-node", "unregister-node", "../control/start-run"):
            assert ask(f"/v1/control/{name}") == ask(f"/v1/control/{name}", "0" * 64) == 403
        assert ask("/v1/control/list-runs", control_key(bundle).read_text()) != 403
        assert ask("/v1/fleet/pull-messages") != 403  # the nodes' interface has its own proof
        (tmp_path / "other").write_text("0" * 64)
        stranger = ControlClient(f"127.0.0.1:{port}", bundle / "ca.crt", tmp_path / "other")
        with pytest.raises(http.client.HTTPException, match="403 the control key"):
            stranger.nodes()
        number = link.submit()
        assert not link.finished(number, 0).startswith("finished")
        with pytest.raises(EngineError, match="refused"):
            link.finished("1", 0)
    finally:
        processes.stop()
