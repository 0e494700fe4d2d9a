"""Commands that only read, and arguments that are wrong, import nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from carefl_secure.privacy import Ledger, SampledGaussian

_SCIPY = ("scipy.stats", "scipy.signal", "scipy.optimize")
HEAVY = ("torch", "transformers", "opacus", "flwr", *_SCIPY, "sklearn", "tenseal")
Seen = tuple[int, list[str], str]

# A module counts against the first command that imports it.
SCRIPT = """
import contextlib, io, json, sys
before = set(sys.modules)
from carefl_secure.cli import main
for words in json.loads(sys.argv.pop()):
    sys.argv[1:], code = words, 0
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, sorted(set(sys.modules) - before), said.getvalue()]))
    before = set(sys.modules)
"""


def imported(*commands: list[str]) -> list[Seen]:
    """Return each command's exit code, the heavy modules that it imported, and what was said."""
    words = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, [name for name in HEAVY if name in modules], said) for code, modules, said in answers]


LIGHT: list[tuple[list[str], int, str]] = [
    (["--help"], 0, "train"),
    (["train", "--data", "nosuch"], 10, "nosuch is not a folder"),
    (["train", "--resume", "nosuch"], 40, "not a run folder"),
    (["caption", "nosuch", "--model", "x", "--cache", "y"], 10, "nosuch is not a folder"),
    (["evaluate", "nosuch"], 40, "not a run folder"),
    (["audit", "nosuch"], 40, "not a run folder"),
    (["report", "nosuch"], 40, "not a run folder"),
    (["experiment", "nosuch"], 2, "cannot read"),
    (["status", "nosuch"], 40, "not a run folder"),
    (["ledger", "show", "nosuch"], 23, "nosuch"),
    (["ledger", "verify", "nosuch"], 23, "nosuch"),
    (["threat-model", "list"], 0, "adapter-user"),
    (["threat-model", "show", "adapter-user"], 0, "what remains"),
    (["data", "check", "nosuch"], 10, "nosuch is not a folder"),
]


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return imported(*(words for words, _, _ in LIGHT))


@pytest.mark.parametrize("place", range(len(LIGHT)), ids=lambda place: "-".join(LIGHT[place][0]))
def test_nothing_heavy_is_imported(seen: list[Seen], place: int) -> None:
    _, status, text = LIGHT[place]
    code, heavy, said = seen[place]
    assert (code, heavy) == (status, [])
    assert text in said


def test_a_budget_needs_neither_torch_nor_opacus() -> None:
    words = ["--sample-rate", "0.01", "--noise-multiplier", "1", "--rounds", "10"]
    ((code, heavy, _),) = imported(["budget", "--delta", "1e-5", *words])
    assert code == 0
    assert not set(heavy) - {"scipy.optimize"}


def test_a_ledger_is_shown_without_anything_heavy(tmp_path: Path) -> None:
    """Nor is the status of a run, or what its ledgers hold priced with more than arrays."""
    (tmp_path / "config.yaml").write_text("{}\n")
    event = SampledGaussian(0.1, 1.0, 10)
    Ledger(tmp_path / "ledger.jsonl").append("spend", {"event": event.to_json(), "round": 1})
    commands = [["ledger", *words, str(tmp_path)] for words in (["show"], ["verify"], ["verify", "--json"])]
    found = imported(*commands, ["status", str(tmp_path)])
    assert [(code, heavy) for code, heavy, _ in found] == 4 * [(0, [])], found
    assert re.search(r"epsilon [1-9][\d.]+ at delta 1e-05 for 10 spends, by PLD", found[0][2])


def test_a_heavy_import_would_be_seen() -> None:
    """After another command, as in the tests above."""
    _, (_, heavy, _) = imported(["--help"], ["doctor"])
    assert "flwr" in heavy


def test_an_agent_that_waits_for_a_run_holds_no_model_library() -> None:
    script = (
        "import sys, carefl_secure.deployment.site.agent; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0
