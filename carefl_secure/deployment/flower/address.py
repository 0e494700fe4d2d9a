"""Where a server listens and which certificate it shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.errors import EngineError
from carefl_secure.strict_json import load_json


@dataclass(frozen=True)
class ServerAddress:
    """Where a running server can be reached on its own machine; the content of ``address``.

    ``address`` is the ``host:port`` of the SuperLink; ``socket`` is where its ServerApp looks for
    the process that runs the rounds.
    """

    address: str
    socket: Path

    def write(self, bundle: Path) -> None:
        """Write it into the server's bundle."""
        text = json.dumps({"address": self.address, "socket": str(self.socket)})
        (bundle / "address").write_text(text + "\n")

    @classmethod
    def read(cls, bundle: Path) -> ServerAddress:
        """Read what `write` left; `EngineError` when no server runs from this bundle."""
        try:
            raw = load_json((bundle / "address").read_text())
            return cls(str(raw["address"]), Path(raw["socket"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"no server runs from {bundle}; start it with carefl-secure server start") from error
