"""Keys from a seed whose place outlives the process, so that a resumed test repeats no noise."""

from __future__ import annotations

from pathlib import Path

from carefl_secure.noise import DeterministicKeySource

__all__ = ["KeptKeys"]


class KeptKeys:
    """Keys from a seed that go on where an earlier process stopped; only tests have a seed.

    Parameters
    ----------
    source : DeterministicKeySource
        At its beginning.
    path : Path
        One line per key that was drawn, holding its label; made when missing.

    Guarantees
    ----------
    A key is noted before it is handed out, so no process hands out a key that another one did; a
    run that was stopped between two rounds goes on with the keys that it would have had.
    """

    def __init__(self, source: DeterministicKeySource, path: Path) -> None:
        self._source = source
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for label in path.read_text().splitlines() if path.exists() else ():
            source.key(label)

    def key(self, label: str) -> bytes:
        """Return the next key under ``label``."""
        with self._path.open("a") as file:
            file.write(label + "\n")
        return self._source.key(label)
