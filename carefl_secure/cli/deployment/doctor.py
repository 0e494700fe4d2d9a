"""``carefl-secure doctor``: tells whether this machine is fit to take part."""

from __future__ import annotations

import dataclasses
import json as json_text
from typing import Annotated

import typer

from carefl_secure.errors import EngineError


def doctor(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Check environment, entropy, clock, ports and TLS, and run every invariant on itself."""
    from carefl_secure.deployment.doctor import examine

    found = examine()
    if json:
        typer.echo(json_text.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        for one in found:
            typer.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.seen}")
    bad = [one.name for one in found if not one.ok]
    if bad:
        raise EngineError(f"this machine is not fit: {', '.join(bad)}; see the lines above")
