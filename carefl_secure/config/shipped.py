"""Where the files that come with the package are: in a source tree, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import carefl_secure
from carefl_secure.errors import ConfigError

PREFIX = "carefl:"
"""Marks a path below the shipped ``configs/``, such as ``carefl:tasks/NAME.yaml``."""


def shipped_folder(name: str) -> Path:
    """Return ``configs`` or ``threat_models``, of the source tree or else of the wheel."""
    package = Path(carefl_secure.__file__).resolve().parent
    places = (package.parent / name, package / "shipped" / name)
    # An installed package stands among others, one of which may own a folder of the same name.
    if (package.parent / "pyproject.toml").is_file() and places[0].is_dir():
        return places[0]
    if places[1].is_dir():
        return places[1]
    raise ConfigError(f"this installation of carefl-secure lacks its folder {name}; reinstall the package")


def resolve_shipped(path: Path) -> Path:
    """Return the file that ``carefl:FOLDER/NAME.yaml`` stands for; any other path as it is.

    If no such file is shipped, a `ConfigError` lists those that are.
    """
    text = path.as_posix()
    if not text.startswith(PREFIX):
        return path
    root = shipped_folder("configs")
    known = {
        file.relative_to(root).as_posix(): file
        for folder in ("tasks", "experiments")
        for file in sorted((root / folder).glob("*.yaml"))
    }
    asked = text.removeprefix(PREFIX)
    if asked not in known:
        raise ConfigError(
            f"no configuration {asked!r} is shipped; choose one of {', '.join(PREFIX + name for name in known)}"
        )
    return known[asked]
