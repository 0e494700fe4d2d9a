"""A deployment as operators run it: every party a process of its own, started by its command."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("anger", "happiness", "sadness")
COMMAND = [sys.executable, "-c", "from carefl_secure.cli import main; main()"]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def image_folder(folder: Path, count: int, seed: int) -> None:
    """Draw faces whose colour tells the label."""
    chance = random.Random(seed)
    lines = []
    folder.mkdir(parents=True)
    for number in range(count):
        ground = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        picture = Image.new("RGB", (64, 64), ground)
        pen = ImageDraw.Draw(picture)
        place = number % len(WORDS)
        pen.ellipse((14, 14, 50, 50), fill=((230, 60, 40), (250, 210, 60), (70, 90, 200))[place])
        picture.save(folder / f"{number:04d}.png")
        line = {"file_name": f"{number:04d}.png", "label": WORDS[place]}
        lines.append(json.dumps({**line, "subject": f"{seed}-{number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def left_behind(root: Path) -> list[str]:
    """Return the command lines of all processes that run in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            place = os.readlink(entry / "cwd")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and place == str(root):
            found.append(line)
    return found


class Deployment:
    """Three sites with folders of their own, a server, and a proxy where nginx is installed.

    Agent and SuperNode of the third run apart; neither has a file of the other.
    """

    def __init__(self, root: Path, helpers: Sequence[str] = ()) -> None:
        self.root = root
        self.front, self.back = free_port(), free_port()
        self.names = ("north", "south", "west")
        self.sites = (*self.names, *helpers)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for seed, name in enumerate(self.names):
            image_folder(root / "data" / name, 36, seed)
        image_folder(root / "data" / "server", 60, 9)
        sites = {
            "name": "test",
            "server": "localhost",
            "port": self.front if NGINX else self.back,
            "days": 2,
            "clients": {name: str(root / "data" / name) for name in self.names},
            "helpers": list(helpers),
        }
        (root / "sites.yaml").write_text(yaml.safe_dump(sites))
        run = {
            "data": {"source": str(root / "data" / "server"), "words": list(WORDS)},
            "privacy": {"epsilon": 8, "delta": 1.0e-4, "sample_rate": 0.5},
            "federation": {"clients": 3, "rounds": 1, "public_records": 108},
            "evaluation": {"baselines": False},
            "run": {"dir": str(root / "runs")},
        }
        (root / "run.yaml").write_text(yaml.safe_dump(run))
        self.call("provision", "sites.yaml", "--rehearsal", "--out", "bundles")

    def bundle(self, name: str) -> Path:
        return self.root / "bundles" / "sites" / name

    def allow(self, name: str, **changes: Any) -> None:
        path = self.bundle(name) / "policy.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words], cwd=self.root, capture_output=True, text=True, timeout=600, check=False
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(
        self, name: str, *sets: str, key: str = "bundles/submit", check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        words = ["submit", "run.yaml", "--server", "bundles/server", "--key", key, "--json"]
        for one in (f"run.name={name}", *sets):
            words += ["--set", one]
        return self.call(*words, check=check)

    def start(self, name: str, *words: str) -> None:
        self._start(name, [*COMMAND, *words])

    def start_all(self) -> None:
        self.start("server", "server", "start", "bundles/server", "--port", str(self.back))
        self.wait(self.root / "bundles/server/address")
        if NGINX:
            self.start_proxy()
        for name in self.sites:
            if name == "west":
                self.start_halves(name)
            else:
                self.start(name, "node", "start", f"bundles/sites/{name}")

    def start_halves(self, name: str) -> None:
        half = self.root / "halves" / name
        half.parent.mkdir(parents=True)
        shutil.move(self.bundle(name) / "supernode", half)
        meet = ["--socket", str(self.root / f"{name}.sock")]
        self.start(name, "node", "start", f"bundles/sites/{name}", "--only", "agent", *meet)
        words = ["--only", "supernode", *meet, "--work", str(self.root / "work")]
        self.start(f"{name}-node", "node", "start", str(half), *words)

    def start_proxy(self) -> None:
        assert NGINX
        text = (ROOT / "configs/deploy/nginx.conf").read_text()
        for old, new in (
            ("listen 9092", f"listen 127.0.0.1:{self.front}"),
            ("127.0.0.1:9093$uri", f"127.0.0.1:{self.back}$uri"),
            ("/etc/carefl/", f"{self.root}/bundles/server/"),
            ("/tmp/carefl-nginx", f"{self.root}/nginx"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        (self.root / "nginx.conf").write_text(text)
        self._start("nginx", [NGINX, "-c", str(self.root / "nginx.conf"), "-g", "daemon off;"])

    def _start(self, name: str, words: Sequence[str]) -> None:
        with (self.root / f"{name}.out").open("ab") as log:
            self.running[name] = subprocess.Popen(
                words, cwd=self.root, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait(self, path: Path) -> None:
        deadline = time.monotonic() + 300
        while not path.exists():
            for name, process in self.running.items():
                assert process.poll() is None, (self.root / f"{name}.out").read_text()
            assert time.monotonic() < deadline, path
            time.sleep(0.2)

    def stop_one(self, name: str, number: int = signal.SIGINT) -> int:
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def stop(self) -> dict[str, int]:
        """Press Ctrl-C everywhere; return the exit codes."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        try:
            return {name: process.wait(60) for name, process in self.running.items()}
        finally:
            for process in self.running.values():
                process.kill()
            self.running.clear()

    def remains(self) -> list[str]:
        """Return what still runs after a while; Flower's children watch for their parent."""
        end = time.monotonic() + 30
        while left_behind(self.root) and time.monotonic() < end:
            time.sleep(0.5)
        return left_behind(self.root)
