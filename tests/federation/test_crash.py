"""Runs killed at random instants: nothing is released unpaid, nothing repeats, and all end well."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[1] / "support" / "crash_worker.py"


def killed(folder: Path, kills: int, *more: str) -> dict[str, int]:
    seed = secrets.randbits(32)
    command = [sys.executable, str(WORKER), str(folder), str(kills), str(seed), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr}"
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(found: dict[str, int], kills: int) -> None:
    assert found["kills"] == kills
    assert found["vectors"] >= 30 + 3 * found["runs"], "runs were killed before they did anything"
    assert found["keys"] > found["vectors"]


def test_five_kills(tmp_path: Path) -> None:
    check(killed(tmp_path, 5), 5)


@pytest.mark.slow
def test_fifty_kills_under_banded_noise(tmp_path: Path) -> None:
    """No number serves twice, no key repeats, and every ledger pays for the rounds that one record may be in."""
    check(killed(tmp_path, 50, "banded"), 50)


@pytest.mark.slow
def test_sixty_kills(tmp_path: Path) -> None:
    found = killed(tmp_path, 60)
    check(found, 60)
    assert found["runs"] >= 3
