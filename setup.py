"""The one build step that pyproject.toml cannot express: two top-level folders go into the wheel.

``configs/`` and ``threat_models/`` stand at the top of the source tree, where people look for them.
A wheel installs below ``carefl_secure/shipped/``; ``carefl_secure.config.load`` finds either.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("configs", "threat_models")


class BuildWithShippedFiles(build_py):
    """Copies the shipped folders into the built package; an editable install needs no copy."""

    def run(self) -> None:
        """Build the package, then add the folders."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "carefl_secure" / "shipped"
        shutil.rmtree(target, ignore_errors=True)  # left over from an earlier build
        for name in SHIPPED:
            shutil.copytree(ROOT / name, target / name)


setup(cmdclass={"build_py": BuildWithShippedFiles})
