"""What all sections of the configuration share."""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` where a number is asked for, which Python would read as 1; resolve ``~/``."""
        name = info.field_name
        if isinstance(value, bool) and name and cls.model_fields[name].annotation not in (bool, bool | None):
            raise ValueError("expected a number or text, not true or false")
        return _home(value) if isinstance(value, str) and value.startswith("~/") else value


def _home(path: str) -> str:
    """Write a path from the home folder in full, as shells do; no shell sees a file, nor what follows ``=``."""
    if (whole := os.path.expanduser(path)) == path:
        raise ValueError("there is no home folder that ~ could stand for; write the whole path")
    return whole


def installed(name: str, own: Collection[str], group: str) -> str:
    """Return a name that the package or an entry point provides; else raise `ValueError`."""
    brought = {one.name for one in entry_points(group=group)}
    if name not in own and name not in brought:
        known = ", ".join([*own, *sorted(brought)])
        raise ValueError(
            f"choose one of {known}, or install the package that brings {name!r} (entry point group {group})"
        )
    return name
