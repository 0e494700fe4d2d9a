"""What other packages bring under a group of Python entry points."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Any

from carefl_secure.errors import ConfigError


def find_extension(group: str, setting: str, name: str, own: Collection[str]) -> tuple[str, Any]:
    """Return where the value ``name`` of a setting comes from, and what the package that registers it brings.

    ``own`` are the values that this package has itself. Raises ConfigError when no package or several register the
    name, or what they name cannot be imported.
    """
    found = entry_points(group=group)
    mine = [point for point in found if point.name == name]
    if not mine:
        known = ", ".join([*own, *sorted({point.name for point in found})])
        raise ConfigError(
            f"{setting} is {name!r}, which is unknown; choose one of {known}, or install the package that registers "
            f"{name!r} as an entry point of the group {group}"
        )
    if len(mine) > 1:
        where = ", ".join(point.value for point in mine)
        raise ConfigError(f"{setting} is {name!r}, which several packages bring ({where}); uninstall all but one")
    try:
        return mine[0].value, mine[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{setting}={name} is brought by {mine[0].value}, which cannot be imported: {error}; repair that package"
        ) from error
