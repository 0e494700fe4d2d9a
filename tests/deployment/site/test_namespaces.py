"""docs/deployment.md from top to bottom: every party in a network namespace and an account of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from carefl_secure.privacy import Ledger
from tests.support import operators, pages
from tests.support.machines import Machines, missing

LACKS = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKS), reason=LACKS)]
# What the page shows and this test does not run: a rehearsal on one machine, and the demonstration of ``flwr run``.
ELSEWHERE = {"train"}


class Site:
    """A site: an agent without a network, and a SuperNode with one, in two accounts that share a group."""

    def __init__(self, page: Page, name: str, number: int) -> None:
        self.page, self.name = page, name
        group = 63000 + number
        self.agent, self.node = (61000 + number, group), (62000 + number, group)
        page.machines.machine(f"{name}a", 0)
        page.machines.machine(f"{name}n", 10 + number)
        self.home = page.machines.home(f"{name}-agent", *self.agent)
        self.meet = page.machines.root / f"{name}-meet"
        self.meet.mkdir()
        os.chown(self.meet, *self.agent)
        self.meet.chmod(0o750)
        operators.image_folder(self.home / "images", 36, number)
        page.machines.give(self.home, *self.agent)
        self.folder, self.away = self.home / name, page.machines.home(f"{name}-node", *self.node) / "supernode"

    def own(self, *words: str, check: bool = True) -> str:
        return self.page.run(f"{self.name}a", self.agent, self.home, *words, check=check)

    def hand_out(self, *words: str) -> None:
        self.own("site", *words)
        shutil.copy(self.folder / f"{self.name}.pub.json", self.page.keys)

    def join(self, bundles: str, *words: str, check: bool = True) -> str:
        """Join from a bundle that was sent here, and give the SuperNode its folder."""
        sent = self.home / bundles
        if not sent.exists():
            shutil.copytree(self.page.home / bundles / "sites" / self.name, sent)
            self.page.machines.give(sent, *self.agent)
        if self.away.exists():  # brought back for the time of the join
            shutil.move(self.away, self.folder / "supernode")
            self.page.machines.give(self.folder, *self.agent)
        images = ("--data", str(self.home / "images"))
        return self.own("site", "join", self.name, bundles, *images, *words, check=check)

    def split(self) -> None:
        shutil.move(self.folder / "supernode", self.away)
        self.page.machines.give(self.away, *self.node)

    def start(self) -> None:
        socket = f"CAREFL_SOCKET={self.meet / 'agent.sock'}"
        for half, account, home in (("a", self.agent, self.folder), ("n", self.node, self.away)):
            name = self.name + half
            self.page.machines.start(name, name, account, home, "env", socket, str(home / "start.sh"))
            self.page.executed.add("node start")

    @property
    def ledger(self) -> Path:
        (found,) = (self.folder / "ledgers").glob("*.jsonl")
        return found


class Page:
    """What an operator holds while following the page."""

    def __init__(self) -> None:
        self.machines = Machines()
        self.account = (60999, 60999)
        self.address = self.machines.machine("server", 1)
        self.home = self.machines.home("server", *self.account)
        self.keys = self.home / "keys"
        self.keys.mkdir()
        self.executed: set[str] = set()
        self.proxied = operators.NGINX is not None

    def run(self, machine: str, account: tuple[int, int], home: Path, *words: str, check: bool = True) -> str:
        self.executed.add(" ".join(pages.path_of(words)))
        done = self.machines.call(machine, account, home, "carefl-secure", *words, check=check)
        return done.stdout + done.stderr + f"\nexit {done.returncode}"

    def serve(self, *words: str, check: bool = True) -> str:
        return self.run("server", self.account, self.home, *words, check=check)

    def provision(self, names: list[str], out: str) -> str:
        sites = {
            "name": "emotions",
            "server": self.address,
            "port": 9092,
            "days": 90,
            "clients": dict.fromkeys(names, "/srv/images"),
            "submitters": ["submitter"],
        }
        (self.home / "sites.yaml").write_text(yaml.safe_dump(sites))
        self.machines.give(self.home, *self.account)
        said = self.serve("provision", "sites.yaml", "--keys", "keys", "--out", out)
        (found,) = re.findall(r"roster's fingerprint: ([0-9a-f-]{71})", said)
        return str(found)

    def start_server(self, bundles: str) -> None:
        port = "9093" if self.proxied else "9092"
        host = () if self.proxied else ("--host", "0.0.0.0")
        words = ("server", "start", f"{bundles}/server", "--port", port, *host)
        self.machines.start("server", "server", self.account, self.home, "carefl-secure", *words)
        self.executed.add("server start")
        self.machines.wait(self.home / bundles / "server" / "address")
        if self.proxied:
            text = (operators.ROOT / "configs/deploy/nginx.conf").read_text()
            text = text.replace("/etc/carefl/", f"{self.home / bundles}/server/")
            (self.home / "nginx.conf").write_text(text.replace("/tmp/carefl-nginx", f"{self.home}/nginx"))
            words = ("nginx", "-c", str(self.home / "nginx.conf"), "-g", "daemon off;")
            self.machines.start("proxy", "server", self.account, self.home, *words)

    def submit(self, name: str, bundles: str, check: bool = True) -> str:
        words = ("--server", f"{bundles}/server", "--key", "submitter", "--set", f"run.name={name}", "--yes")
        return self.serve("submit", "run.yaml", *words, check=check)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    made = Page()
    try:
        yield made
    finally:
        made.machines.close()


def test_the_page_from_top_to_bottom(page: Page) -> None:
    machines = page.machines
    a, b, c = sites = [Site(page, one, number) for number, one in enumerate("abc", 1)]
    for site in sites:
        site.hand_out("init", site.name)
    page.serve("submitter", "init", "submitter")
    shutil.copy(page.home / "submitter" / "submitter.pub.json", page.keys)
    fingerprint = page.provision([site.name for site in sites], "bundles")

    # A site confirms what it has compared, and nothing before.
    for site in sites:
        said = site.join("bundles", check=False)
        assert "exit 2" in said and fingerprint in said
        assert fingerprint in site.join("bundles", "--fingerprint", fingerprint)
        site.own("doctor")
        site.split()
        policy = yaml.safe_load((site.folder / "policy.yaml").read_text())
        (site.folder / "policy.yaml").write_text(yaml.safe_dump({**policy, "max_epsilon_per_corpus": 30.0,
                                                                 "max_epsilon_total": 60.0}))  # fmt: skip

    # What runs delivered code reads nothing of the other half, and the agent reaches nobody.
    for secret in ("identity.key", "policy.yaml"):
        done = machines.call("an", a.node, a.away, "cat", str(a.folder / secret), check=False)
        assert done.returncode != 0 and "ermission denied" in done.stderr
    probe = f"import socket; socket.create_connection(('{page.address}', 9092), 3)"
    done = machines.call("aa", a.agent, a.home, "python", "-c", probe, check=False)
    assert "Network is unreachable" in done.stderr

    operators.image_folder(page.home / "public", 60, 9)
    run = {
        "data": {"source": str(page.home / "public"), "words": list(operators.WORDS)},
        "privacy": {"epsilon": 8, "delta": 1.0e-4, "sample_rate": 0.5},
        "federation": {"clients": 3, "rounds": 2, "public_records": 108},
        "evaluation": {"baselines": False},
        "run": {"dir": "runs"},
    }
    (page.home / "run.yaml").write_text(yaml.safe_dump(run))
    machines.give(page.home, *page.account)
    page.start_server("bundles")
    for site in sites:
        site.start()
    assert "exit 0" in page.submit("first", "bundles")
    stated = json.loads(page.serve("status", "runs/first", "--json").rpartition("\nexit")[0])
    assert stated["state"] == "finished" and stated["rounds_paid"] == 2, stated
    for site in sites:
        site.own("ledger", "verify", f"{site.name}/ledgers")

    # Another app, from a site's machine and from another account of the server's.
    curious(page, "an", a.node, a.away, f"{page.address}:9092")
    curious(page, "server", (60998, 60998), machines.home("stranger", 60998, 60998), "127.0.0.1:9093")

    # A ledger from a backup forgets what was spent.
    kept = a.ledger.read_bytes()
    assert "exit 0" in page.submit("second", "bundles")
    newest = a.ledger.read_bytes()
    a.ledger.write_bytes(kept)
    said = page.submit("third", "bundles", check=False)
    assert "exit 25" in said, said
    assert "rollback: this site took part in 2 rounds of run" in (a.folder / "refusals.log").read_text()
    a.ledger.write_bytes(newest)

    # Clocks that Flower would refuse are named.
    for ahead, words in ((240, "s ahead of the server's"), (-600, "s behind the server's")):
        shifted = page.machines.root / f"clock{ahead}"
        shifted.mkdir()
        text = f"import time\nnow = time.time\ntime.time = lambda: now() + {ahead}\n"
        (shifted / "sitecustomize.py").write_text(text)
        done = machines.call("bn", b.node, b.away, "carefl-secure", "doctor", "--bundle", str(b.away), check=False,
                             more=str(shifted))  # fmt: skip
        assert words in done.stdout, done.stdout + done.stderr

    codes = machines.stop()
    codes.pop("proxy", None)
    assert set(codes.values()) == {130}, codes
    end = time.monotonic() + 30
    while machines.left() and time.monotonic() < end:
        time.sleep(0.5)
    assert not machines.left()

    # One site leaves, one changes its keys, and a new one joins; the others keep ledgers and policies.
    d = Site(page, "d", 4)
    (page.keys / "a.pub.json").unlink()
    rotate(b)
    d.hand_out("init", d.name)
    again = page.provision(["b", "c", "d"], "bundles2")
    assert again != fingerprint
    spent = {site.name: len(Ledger(site.ledger).events()) for site in (b, c)}
    for site in (b, c, d):
        said = site.join("bundles2", check=False)
        assert "exit 24" in said or site is d, said
        if site is c:
            assert "client a is gone" in said and "client b has another key" in said and "client d is new" in said
        site.join("bundles2", "--fingerprint", again)
        site.split()
    page.start_server("bundles2")
    for site in (b, c, d):
        site.start()
    assert "exit 0" in page.submit("later", "bundles2")
    for site in (b, c):
        assert len(Ledger(site.ledger).events()) == spent[site.name] + 2
    assert len(Ledger(d.ledger).events()) == 2
    machines.stop()

    commands = pages.commands(operators.ROOT / "docs" / "deployment.md")
    shown = {command.leaf for command in commands if not command.inline}
    assert shown - {"make"} <= page.executed | ELSEWHERE, shown - page.executed


def rotate(site: Site) -> None:
    """Bring the SuperNode's folder back, and change the keys of both halves."""
    shutil.move(site.away, site.folder / "supernode")
    site.page.machines.give(site.folder, *site.agent)
    site.hand_out("rotate", site.name)


def curious(page: Page, machine: str, account: tuple[int, int], home: Path, address: str) -> None:
    """Send Flower's own command with another app; whoever it is has no control key."""
    folder = home / "curious"
    (folder / "flwr").mkdir(parents=True)
    ca = folder / "ca.crt"
    shutil.copy(page.home / "bundles" / "server" / "ca.crt", ca)
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "it"\n\n[superlink.it]\naddress = "{address}"\nroot-certificates = "{ca}"\n'
    )
    shutil.copytree(operators.ROOT / "tests" / "support" / "curious", folder / "app")
    page.machines.give(folder, *account)
    words = ("env", f"FLWR_HOME={folder}/flwr", "flwr", "run", f"{folder}/app", "it")
    done = page.machines.call(machine, account, home, *words, check=False)
    assert "403" in done.stdout + done.stderr, done.stdout + done.stderr
