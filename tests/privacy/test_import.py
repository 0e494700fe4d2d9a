"""Importing the room stays light: no torch, no opacus, no accounting library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import carefl_secure.privacy as privacy

REPOSITORY = Path(__file__).parents[2]


def test_heavy_packages_stay_out() -> None:
    code = (
        "import sys, carefl_secure.privacy\n"
        "heavy = {'torch', 'opacus', 'dp_accounting', 'scipy.stats'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_exported_name_exists_in_order() -> None:
    assert list(privacy.__all__) == sorted(privacy.__all__)
    for name in privacy.__all__:
        assert hasattr(privacy, name)
