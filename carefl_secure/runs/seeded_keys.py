"""Keys from a seed whose position outlives the process: a resumed test repeats no noise."""

from __future__ import annotations

from pathlib import Path

from carefl_secure.noise import DeterministicKeySource


class KeptKeys:
    """Keys from a seed, continued where an earlier process stopped; only tests have a seed.

    ``source`` is at its beginning; the file ``path`` has one line, the label, per key that was
    drawn.

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
