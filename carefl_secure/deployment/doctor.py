"""Is this machine fit to take part? Environment, entropy, clock, ports, TLS, and the invariants."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packaging.requirements import Requirement

from carefl_secure.config import load_config
from carefl_secure.data.open_corpus import detect
from carefl_secure.deployment.flower.processes import free_port
from carefl_secure.deployment.flower.superlink import check_clock, probe
from carefl_secure.deployment.provisioning.certificates import Authority
from carefl_secure.deployment.provisioning.site_bundle import Half, SiteBundle, node_folder
from carefl_secure.errors import BudgetExceededError, CareflError
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import run_federation
from carefl_secure.noise import KeyStream, SkellamSampler, SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.plan_from_config import plan_with

_SIZE = 64
_EXPIRES_SOON = 3.0  # days
_SHOWN = ("torch", "transformers", "peft", "flwr", "cryptography", "numpy", "opacus")


@dataclass(frozen=True)
class Check:
    """One answer: what was looked at, whether it holds, and what was seen."""

    name: str
    ok: bool
    seen: str


class _Still:
    """A task whose every record has the same unit gradient."""

    dimension = _SIZE
    records = 20

    def __init__(self, bad: bool = False) -> None:
        self._bad = bad

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        total = np.zeros(_SIZE)
        total[0] = math.nan if self._bad else float(len(indices))
        return total


def _packages() -> str:
    """Hold every installed dependency against the range that this package declares."""
    needed = [Requirement(text) for text in importlib.metadata.requires("carefl-secure") or ()]
    found = {}
    for one in needed:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found[one.name] = importlib.metadata.version(one.name)
            if not one.specifier.contains(found[one.name], prereleases=True):
                raise ArithmeticError(f"{one.name} {found[one.name]} is not {one.specifier}")
    shown = ", ".join(f"{name} {found[name]}" for name in _SHOWN)
    return f"Python {platform.python_version()}, {shown}"


def _entropy() -> str:
    keys = [SystemKeySource().key("doctor") for _ in range(64)]
    if len(set(keys)) < 64 or len(keys[0]) < 32:
        raise ArithmeticError("the operating system repeats keys")
    ones = sum(int.from_bytes(key, "big").bit_count() for key in keys)
    total = 8 * sum(map(len, keys))
    # Eight deviations: one false alarm in 10^15.
    if abs(ones - total / 2) > 8 * math.sqrt(total) / 2:
        raise ArithmeticError(f"{ones} of {total} random bits are one")
    return f"{len(keys)} keys of {8 * len(keys[0])} bits, all different"


def _clock() -> str:
    if datetime.now(UTC).year < 2026:
        raise ArithmeticError("the clock is years behind; certificates and bundles will not hold")
    before, steady = time.time(), time.monotonic()
    time.sleep(0.05)
    apart = abs((time.time() - before) - (time.monotonic() - steady))
    if apart > 1.0:
        raise ArithmeticError(f"the clock jumped by {apart:.1f} seconds while it was watched")
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, steady"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 0.5:
        raise ArithmeticError(f"{free:.1f} GB free is too little for ledgers and checkpoints")
    return f"{free:.1f} GB free"


def _ports() -> str:
    port = free_port()
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", port))
        one.listen()
        two.connect(("127.0.0.1", port))
    return f"the loopback listens, for one on {port}"


def _handshake(trusted: Authority, used: Authority) -> str | None:
    """Return the TLS version of a loopback handshake; None where the client refused."""
    with tempfile.TemporaryDirectory() as folder:
        pem, key = (Path(folder) / name for name in ("s.pem", "s.key"))
        for path, content in zip((pem, key), used.server(["127.0.0.1"]), strict=True):
            path.write_bytes(content)
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served.load_cert_chain(pem, key)
    trust = ssl.create_default_context(cadata=trusted.certificate.decode())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            try:
                served.wrap_socket(link, server_side=True).close()
            except OSError:
                link.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                trust.wrap_socket(plain, server_hostname="127.0.0.1") as safe,
            ):
                return safe.version()
        except ssl.SSLError:
            return None
        finally:
            thread.join(10)


def _tls() -> str:
    until = datetime.now(UTC) + timedelta(hours=1)
    one, other = Authority("one", until), Authority("other", until)
    version = _handshake(one, one)
    if version is None:
        raise ArithmeticError("a certificate of the trusted authority was refused")
    if _handshake(one, other) is not None:
        raise ArithmeticError("a certificate of a foreign authority was accepted")
    return f"{version}; a foreign authority is refused"


def _noise() -> str:
    variance, count = 400.0, 20_000
    sampler = SkellamSampler(variance)
    draws = sampler.sample(KeyStream(SystemKeySource().key("doctor")), count)
    seen = float(np.var(draws))
    # The variance of a sample variance is near 2 v^2 / n; eight deviations.
    if abs(seen - variance) > 8 * variance * math.sqrt(2 / count):
        raise ArithmeticError(f"noise of variance {variance:g} came with {seen:.1f}")
    if np.array_equal(draws, sampler.sample(KeyStream(SystemKeySource().key("doctor")), count)):
        raise ArithmeticError("two draws of noise are equal")
    return f"variance {seen:.1f} of {variance:g}"


def _run(folder: Path, unit: str, bad: bool = False) -> tuple[NDArray[np.float32], Path]:
    words = [f"privacy.unit={unit}", "federation.clients=4", "federation.rounds=1"]
    words += [f"privacy.sample_rate={0.999999 if unit == 'none' else 0.5}", "simulation.dropout=0"]
    config = load_config(None, [*words, "privacy.clipping_norm=1", "privacy.delta=1e-4"])
    plan = plan_with(config, 80, _SIZE)
    run = RunFolder.create(folder, "")
    tasks = [_Still(bad and i == 0) for i in range(4)]
    spec = RunSpec(stage=Stage.only(plan), tasks=lambda: tasks, folder=run, base_hash=bytes(32))
    result = run_federation(spec, np.zeros(_SIZE, np.float32), FedAvg(1.0))
    return result.adapter, run.path


def _sum() -> str:
    with tempfile.TemporaryDirectory() as folder:
        adapter, _ = _run(Path(folder), "none")
    if abs(float(adapter[0]) + 1.0) > 0.05 or float(np.abs(adapter[1:]).max()) > 0.05:
        raise ArithmeticError("the secure sum of four clients is not the sum of their vectors")
    return "four clients, masks gone, mean exact to the grid"


def _account() -> str:
    with tempfile.TemporaryDirectory() as folder:
        _, path = _run(Path(folder), "record")
        ledger = Ledger(path / "ledger.jsonl")
        ledger.verify()
        spent = ledger.epsilon(1e-4)
        if not 0 < spent <= 8.0:
            raise ArithmeticError(f"one planned round of epsilon 8 costs {spent:g}")
        try:
            ledger.guard(ledger.events()[0], 8.0, 1e-4, {"unit": "record"})
        except BudgetExceededError:
            return f"a run planned for epsilon 8 spent {spent:.3f}; one round more is refused"
    raise ArithmeticError("a round over the budget was not refused")


def _finite() -> str:
    with tempfile.TemporaryDirectory() as folder:
        adapter, _ = _run(Path(folder), "record", bad=True)
    if not np.isfinite(adapter).all():
        raise ArithmeticError("NaN at one client was summed")
    return "a client whose gradients are NaN adds noise alone, and nothing shows which"


CHECKS: dict[str, Callable[[], str]] = {
    "packages": _packages,
    "entropy": _entropy,
    "clock": _clock,
    "disk": _disk,
    "ports": _ports,
    "TLS": _tls,
    "noise": _noise,
    "secure sum": _sum,
    "account and ledger": _account,
    "NaN is not summed": _finite,
}
"""What is looked at, in order; each returns what it saw or raises what is wrong."""


def _site_checks(path: Path) -> dict[str, Callable[[], str]]:
    """Return what is looked at in a site's folder, or in its SuperNode's."""
    agent, node = (path / "identity.key").exists(), (node_folder(path) / "node.key").exists()
    half: Half | None = None if agent and node else "agent" if agent else "supernode"
    found: list[SiteBundle] = []

    def folder() -> str:
        found.append(SiteBundle.open(path, half=half))
        return f"complete, for {found[0].role} {found[0].name}"

    def certificates() -> str:
        left = (found[0].expires - time.time()) / 86400
        if left < _EXPIRES_SOON:
            raise ArithmeticError(f"the bundle and its certificates expire in {left:.1f} days; ask for a new bundle")
        return f"they hold for {left:.0f} days"

    def records() -> str:
        if found[0].data is None:
            return "the run's own share"
        detect(Path(found[0].data))
        return f"{found[0].data} can be read"

    def policy() -> str:
        limits = found[0].read_policy()
        return f"epsilon {limits.max_epsilon_per_corpus:g} a corpus, {limits.max_epsilon_total:g} in all"

    def socket_rights() -> str:
        place = Path(os.environ.get("CAREFL_SOCKET", "/run/carefl/agent.sock"))
        if not place.exists():
            return f"no agent listens at {place}"
        mode = place.stat().st_mode & 0o777
        if mode & 0o007:
            raise ArithmeticError(f"{place} has mode {mode:o}; every account can reach the agent")
        if not os.access(place, os.R_OK | os.W_OK):
            raise ArithmeticError(f"{place} is not for this account; put it into the group of the socket")
        return f"{place}, mode {mode:o}"

    def server() -> str:
        here, ahead = probe(found[0].server, node_folder(path) / "ca.crt")
        if not here:
            raise ArithmeticError(f"a proxy answers at {found[0].server}, and no server behind it")
        check_clock(ahead)
        return f"{found[0].server} answers under the bundle's authority; the clocks differ by {abs(ahead):.0f} s"

    own: dict[str, Callable[[], str]] = {"policy": policy, "records": records} if agent else {}
    far: dict[str, Callable[[], str]] = {"server": server} if node else {}
    return {"site": folder, "certificates": certificates, **own, **far, "socket": socket_rights}


def examine(bundle: Path | None = None) -> list[Check]:
    """Run all checks, whatever the others find; ``bundle``, a site's folder or its SuperNode's, has checks as well."""
    done: list[Check] = []
    checks = CHECKS if bundle is None else {**CHECKS, **_site_checks(bundle)}
    for name, check in checks.items():
        try:
            done.append(Check(name, True, check()))
        except (ArithmeticError, CareflError, OSError, HTTPException, importlib.metadata.PackageNotFoundError) as e:
            done.append(Check(name, False, f"{type(e).__name__}: {e}"))
            if name == "site":
                break  # the rest reads the folder
    if sys.platform != "linux":
        done.append(Check("platform", False, f"{sys.platform}: tested on Linux only"))
    return done
