"""Takes the CPU seconds of every command to its first output and to its end.

``python benchmarks/cli.py [--quick] [--json]``. A small run is trained first, then each command is
started anew and timed, user and system time together, with its child processes. The bars: what only
reads, or refuses a wrong argument, takes a second; what searches a budget or writes a report takes
three. The last line says how many bars hold; the exit code is 1 where one is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import typer.main
from _bench import Bar, Report, arguments, finish, say

from carefl_secure.cli.app import app

READS, SEARCHES = 1.0, 3.0
_TICK = os.sysconf("SC_CLK_TCK")
_TRAIN = (
    "data.records=120",
    "federation.clients=3",
    "federation.rounds=1",
    "privacy.delta=0.001",
    "simulation.dropout=0",
    "evaluation.baselines=false",
)


@dataclass(frozen=True)
class Timed:
    """CPU seconds of one command, and how it ended."""

    first: float
    end: float
    code: int


def timed(words: list[str]) -> Timed:
    """Run a command of the package; its first output is its first byte on either stream."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from carefl_secure.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert process.stdout is not None
    process.stdout.read(1)
    first = _used(process.pid)
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    end = usage.ru_utime + usage.ru_stime
    return Timed(min(first, end), end, process.returncode)


def _used(pid: int) -> float:
    """Return the CPU seconds of a process so far; all of them where it cannot be asked."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / _TICK


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command without commands of its own."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*words, name))
    elif not command.hidden:
        yield words


def questions(run: Path, folder: Path) -> dict[str, tuple[list[str], int, float]]:
    """Return the commands, with the exit code that each must have and its bar."""
    budget = ["budget", "--delta", "1e-5"]
    skellam = ["--mechanism", "skellam"]
    return {
        "--version": (["--version"], 0, READS),
        "status": (["status", str(run)], 0, READS),
        "ledger show": (["ledger", "show", str(run)], 0, READS),
        "ledger verify": (["ledger", "verify", str(run)], 0, READS),
        "threat-model list": (["threat-model", "list"], 0, READS),
        "runs list": (["runs", "list", str(folder)], 0, READS),
        "settings list": (["settings", "list"], 0, READS),
        "settings show": (["settings", "show", "privacy.epsilon"], 0, READS),
        "typo: train": (["train", "--data", str(folder / "nosuch")], 10, READS),
        "typo: evaluate": (["evaluate", str(folder / "nosuch")], 40, READS),
        "typo: audit": (["audit", str(folder / "nosuch")], 40, READS),
        "typo: report": (["report", str(folder / "nosuch")], 40, READS),
        "budget: epsilon": (
            [*budget, "--noise-multiplier", "1", "--rounds", "100", "--sample-rate", "0.05"],
            0,
            SEARCHES,
        ),
        "budget: noise": ([*budget, "--epsilon", "8", "--rounds", "40", "--sample-rate", "0.05"], 0, SEARCHES),
        "budget: noise, skellam": (
            [*budget, *skellam, "--epsilon", "8", "--rounds", "40", "--sample-rate", "0.05"],
            0,
            SEARCHES,
        ),
        "budget: rounds": (
            [*budget, "--epsilon", "3", "--noise-multiplier", "1", "--sample-rate", "0.05"],
            0,
            SEARCHES,
        ),
        "budget: sample rate": (
            [*budget, "--epsilon", "3", "--noise-multiplier", "1", "--rounds", "100"],
            0,
            SEARCHES,
        ),
        "report": (["report", str(run)], 0, SEARCHES),
    }


def main() -> int:
    """Run the benchmark and print its verdict."""
    options = arguments(__doc__)
    report = Report("CPU seconds of the commands, user and system time together")
    repeats = 1 if options.quick else 3
    with tempfile.TemporaryDirectory(prefix="carefl-cli-") as name:
        folder = Path(name)
        say("training a small run")
        train = ["train", "--set", f"run.dir={folder}", "--set", "run.name=small"]
        for text in _TRAIN:
            train += ["--set", text]
        made = timed(train)
        report.rows.append({"command": "train (3 clients, 1 round)", "first": made.first,
                            "end": made.end, "exit": made.code})  # fmt: skip
        report.bars.append(Bar("train ends with exit code 0", float(made.code == 0), 1.0))
        asked = questions(folder / "small", folder)
        for words in leaves(typer.main.get_command(app)):
            asked[f"{' '.join(words)} --help"] = ([*words, "--help"], 0, READS)
        for title, (words, code, limit) in asked.items():
            say(title)
            best = min((timed(words) for _ in range(repeats)), key=lambda one: one.end)
            report.rows.append({"command": title, "first": best.first, "end": best.end,
                                "exit": best.code})  # fmt: skip
            report.bars.append(Bar(f"{title}, CPU seconds", best.end, limit, False))
            if best.code != code:
                report.bars.append(Bar(f"{title}, exit code {code}", 0.0, 1.0))
                report.notes.append(f"{title} ended with exit code {best.code}, not {code}")
    return finish(report, options.json)


if __name__ == "__main__":
    sys.exit(main())
