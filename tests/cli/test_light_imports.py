"""Commands that only read, and arguments that are wrong, import nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from carefl_secure.privacy import Ledger

HEAVY = ("torch", "transformers", "opacus", "flwr", "scipy.stats", "sklearn", "matplotlib")


def imported(*words: str) -> tuple[int, list[str], str]:
    """Return exit code, heavy modules that were imported, and what was said."""
    code = (
        "import json, sys\n"
        f"sys.argv = ['carefl-secure', *{list(words)!r}]\n"
        "from carefl_secure.cli import main\n"
        "code = 0\ntry:\n    main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write('\\n' + json.dumps([code, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    said, _, last = done.stderr.rpartition("\n")
    status, heavy = json.loads(last)
    return status, heavy, done.stdout + said


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
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
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported(words: list[str], status: int, text: str) -> None:
    code, heavy, said = imported(*words)
    assert (code, heavy) == (status, [])
    assert text in said


def test_a_budget_needs_neither_torch_nor_opacus() -> None:
    words = ["--sample-rate", "0.01", "--noise-multiplier", "1", "--rounds", "10"]
    code, heavy, _ = imported("budget", "--delta", "1e-5", *words)
    assert code == 0
    assert not {"torch", "transformers", "opacus", "flwr", "sklearn", "matplotlib"} & set(heavy)


def test_a_ledger_is_shown_without_anything_heavy(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl").append("note", {"text": "nothing spent"})
    for words in (["show"], ["verify"], ["verify", "--json"]):
        code, heavy, _ = imported("ledger", words[0], str(tmp_path), *words[1:])
        assert (code, heavy) == (0, [])


def test_a_heavy_import_would_be_seen() -> None:
    _, heavy, _ = imported("doctor")
    assert "flwr" in heavy
