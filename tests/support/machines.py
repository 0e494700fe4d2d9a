"""Machines of a deployment: one network namespace each, and accounts that see no more than their own files."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SUBNET = "10.213.7"

# Run as root in a namespace: the interpreter may stand in a folder that only root can enter, so this account gets a
# private view of the file system in which nothing of that folder but the interpreter is left.
_AS = """\
base=$1; user=$2; group=$3; shift 3
as() { setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs "$@"; }
if ! as test -x "$base/bin/python3"; then
    hold=$(mktemp -d)
    mount --bind "$base" "$hold"
    mount -t tmpfs -o mode=0755 none "/$(echo "$base" | cut -d/ -f2)"
    mkdir -p "$base"
    mount --move "$hold" "$base"
    rmdir "$hold"
fi
exec setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs "$@"
"""


def missing() -> str:
    """Say what this machine lacks for namespaces and accounts; nothing where it has all."""
    tools = [name for name in ("ip", "setpriv", "mount") if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if tools:
        return f"{', '.join(tools)} is not installed"
    name = f"cf{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"no network namespace can be made: {made.stderr.strip()}"


class Machines:
    """Namespaces on one bridge; `close` ends every process that was started in them, and removes them."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cf"))  # short, for sockets, and open to all accounts
        self.root.chmod(0o711)
        self._prefix = f"cf{os.getpid()}"
        self._made: list[str] = []
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._script = self.root / "as.sh"
        self._script.write_text(_AS)
        self._hub = self._namespace("hub")
        self._in(self._hub, "ip", "link", "add", "br0", "type", "bridge")
        self._in(self._hub, "ip", "link", "set", "br0", "up")

    def _namespace(self, name: str) -> str:
        full = self._prefix + name
        subprocess.run(["ip", "netns", "add", full], check=True)
        self._made.append(full)
        self._in(full, "ip", "link", "set", "lo", "up")
        return full

    def _in(self, namespace: str, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", namespace, *words], check=True, capture_output=True)

    def machine(self, name: str, number: int) -> str:
        """Make a machine with one address, and return the address; with number 0 it has no network."""
        full = self._namespace(name)
        if number == 0:
            return ""
        near = f"v{number}"
        words = ("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", full)
        self._in(self._hub, *words)
        self._in(self._hub, "ip", "link", "set", near, "master", "br0", "up")
        self._in(full, "ip", "address", "add", f"{_SUBNET}.{number}/24", "dev", "eth0")
        self._in(full, "ip", "link", "set", "eth0", "up")
        return f"{_SUBNET}.{number}"

    def home(self, name: str, user: int, group: int) -> Path:
        """Make the folder of an account, for that account alone."""
        path = self.root / name
        path.mkdir()
        self.give(path, user, group)
        path.chmod(0o700)
        return path

    def give(self, path: Path, user: int, group: int) -> None:
        subprocess.run(["chown", "-R", f"{user}:{group}", str(path)], check=True)

    def _words(self, machine: str, account: tuple[int, int], home: Path, words: list[str], more: str) -> list[str]:
        base, (user, group) = sys.base_prefix, account
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/bin"
        env = [f"PATH={path}", f"HOME={home}", f"USER=u{user}", "FLWR_TELEMETRY_ENABLED=0", "OMP_NUM_THREADS=1"]
        env += [f"PYTHONPATH={ROOT}{more}", "PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1"]
        enter = ["ip", "netns", "exec", self._prefix + machine, "sh", str(self._script), base, str(user), str(group)]
        return [*enter, "env", "-i", *env, "sh", "-c", f"cd {shlex.quote(str(home))} && exec {shlex.join(words)}"]

    def call(
        self, machine: str, account: tuple[int, int], home: Path, *words: str, check: bool = True, more: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of an account on a machine; ``more`` is put before other folders of modules."""
        command = self._words(machine, account, home, list(words), f":{more}" if more else "")
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, name: str, machine: str, account: tuple[int, int], home: Path, *words: str) -> None:
        """Start what stays."""
        with (self.root / f"{name}.out").open("ab") as log:
            command = self._words(machine, account, home, list(words), "")
            self.running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def output(self, name: str) -> str:
        return (self.root / f"{name}.out").read_text()

    def wait(self, path: Path) -> None:
        """Wait for a file, while all that was started still runs."""
        end = time.monotonic() + 300
        while not path.exists():
            for name, process in self.running.items():
                assert process.poll() is None, f"{name}: {self.output(name)}"
            assert time.monotonic() < end, path
            time.sleep(0.2)

    def stop(self) -> dict[str, int]:
        """Press Ctrl-C everywhere; return the exit codes."""
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        codes = {name: process.wait(60) for name, process in self.running.items()}
        self.running.clear()
        return codes

    def left(self) -> list[str]:
        """Return the numbers of the processes that are still in one of the namespaces."""
        found: list[str] = []
        for name in self._made:
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
            found += listed.stdout.split()
        return found

    def close(self) -> None:
        for number in self.left():
            os.kill(int(number), signal.SIGKILL)
        for process in self.running.values():
            process.wait()
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False)
        shutil.rmtree(self.root, ignore_errors=True)
